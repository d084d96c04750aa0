# ruff: noqa: N803
"""Code that TorchInductor 2.13 generates for vLLM's `forward_native`, in its order of operations; compiled, never run.

Taken from the code that it generates for bfloat16 and float32 on a device of capability 9.0.

"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def inductors_kernel(in_ptr0, out_ptr0, KIND: tl.constexpr, XBLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Compute f(gate)·up for rows of 2·11,008 numbers."""
    index = tl.program_id(0) * XBLOCK + tl.arange(0, XBLOCK)[:]
    column = index % 11008
    row = index // 11008
    x = tl.load(in_ptr0 + (column + 22016 * row), None).to(tl.float32)
    up = tl.load(in_ptr0 + (11008 + column + 22016 * row), None).to(tl.float32)
    if KIND == "silu":
        f = x / (libdevice.exp(-x) + tl.full([1], 1.0, tl.float32))
    elif KIND == "gelu":
        half = x * tl.full([1], 0.5, tl.float32)
        f = half * (libdevice.erf(x * tl.full([1], 0.7071067811865476, tl.float32)) + tl.full([1], 1.0, tl.float32))
    elif KIND == "gelu_tanh":
        half = x * tl.full([1], 0.5, tl.float32)
        cube = x * x * x
        inner = (x + cube * tl.full([1], 0.044715, tl.float32)) * tl.full([1], 0.7978845608028654, tl.float32)
        f = half * (libdevice.tanh(inner) + tl.full([1], 1.0, tl.float32))
    else:
        f = tl.where(x <= tl.full([1], 0.01, tl.float32), tl.full([1], 0.0, tl.float32), x)
    tl.store(out_ptr0 + index, f * up, None)
