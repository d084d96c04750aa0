# ruff: noqa: N803, N806  (Triton's constants are capitals)
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, import-untyped"
"""The Triton kernel of a gated activation that captures the signs of its gate; `activation_reference` is its reference.

One program per row and block of neurons:

    1. load the gate once and pack gate > threshold, eight neurons per byte, into the layer's rows of the masks;
    2. load up once and write f(gate)·g(up), rounded like vLLM's own code, so that capture does not change the model;
    3. flag rows with a nonfinite gate: a plain store, the same from any program;
    4. the first program adds the write to the layer's write counter.

With top_k experts per token, row r is choice r % top_k of token r // top_k.

The kernel reads nothing on the host and compiles once for all numbers of rows, so that it runs in CUDA graphs.
`numerics` says which code the activation output must equal, operation by operation:

    VLLM_KERNEL  vLLM's CUDA kernels: f rounded to the tensor's dtype, then the product; division to the nearest
    INDUCTOR     TorchInductor's code of `forward_native`: float32 throughout, rounded once; Triton's own division
    None         no output: signs alone

For VLLM_KERNEL the one addition that nvcc contracts with a multiplication is written as `fma`, and Triton must contract
nothing; nvcc keeps subnormal numbers in libdevice's functions, and so does it. For INDUCTOR Triton gets the same
operations and options as from TorchInductor, so it makes the same instructions: contracted where it likes, subnormals
flushed in libdevice. `install.py` checks that the result is equal with the device and versions at hand.
"""

from __future__ import annotations

import functools
from dataclasses import fields
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from triton.backends.nvidia.compiler import CUDAOptions
from triton.language.extra import libdevice

from sparcom_extractor.capture.discovery.activations import ActivationSpec, Kind
from sparcom_extractor.capture.ops.activation_reference import Numerics

# Kinds with an activation output. For the others the model's own activation runs beside the signs: TorchInductor
# rewrites their divisions by constants, clamps and sigmoids from version to version.
FUSED: dict[Numerics, frozenset[Kind]] = {
    Numerics.VLLM_KERNEL: frozenset({"silu", "gelu", "gelu_tanh", "fatrelu", "swiglu_clamp", "swiglu_oai", "situ"}),
    Numerics.INDUCTOR: frozenset({"silu", "gelu", "gelu_tanh", "fatrelu"}),
}
_MAX_BLOCK = 1024  # neurons per program: 128 threads of 8, each of which loads 16 bytes of bfloat16 and packs one byte


@triton.jit
def _exp(x):
    return libdevice.exp(x)


@triton.jit
def _erf(x):
    return libdevice.erf(x)


@triton.jit
def _tanh(x):
    return libdevice.tanh(x)


@triton.jit
def _narrow(x, DTYPE: tl.constexpr):
    return x.to(DTYPE)


@triton.jit
def _widen(x):
    return x.to(tl.float32)


# Jitted functions of a block. Triton's interpreter has no libdevice and rounds bfloat16 differently: tests pass others.
# NARROW: float32 to a dtype, to the nearest, ties to even. WIDEN: back to float32.
DEVICE = {"EXP": _exp, "ERF": _erf, "TANH": _tanh, "NARROW": _narrow, "WIDEN": _widen}


@triton.jit
def _gelu(x, TANH_FORM: tl.constexpr, ERF: tl.constexpr, TANH: tl.constexpr):
    if TANH_FORM:
        inner = 0.7978845608028654 * tl.fma(x * x * x, 0.044715, x)
        result = 0.5 * x * (1.0 + TANH(inner))
    else:
        result = x * 0.5 * (1.0 + ERF(x * 0.7071067811865476))
    return result


@triton.jit
def _vllm_kernel_output(
    gate, up,
    KIND: tl.constexpr, DTYPE: tl.constexpr, THRESHOLD: tl.constexpr, LIMIT: tl.constexpr, ALPHA: tl.constexpr,
    BETA: tl.constexpr, INVERSE_BETA: tl.constexpr, LINEAR_BETA: tl.constexpr, INVERSE_LINEAR_BETA: tl.constexpr,
    EXP: tl.constexpr, ERF: tl.constexpr, TANH: tl.constexpr, NARROW: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Return f(gate)·g(up) in float32 as vLLM's CUDA kernels compute it; the caller rounds it."""
    if KIND == "fatrelu":
        result = tl.where(gate > THRESHOLD, gate, 0.0) * up
    elif KIND == "situ":
        if LINEAR_BETA > 0:
            up = LINEAR_BETA * TANH(up * INVERSE_LINEAR_BETA)
        result = tl.div_rn(BETA * TANH(gate * INVERSE_BETA), 1.0 + EXP(-gate)) * up
    elif KIND == "swiglu_oai":
        gate = tl.minimum(gate, LIMIT)
        up = tl.maximum(tl.minimum(up, LIMIT), -LIMIT)
        result = tl.div_rn((up + 1.0) * gate, 1.0 + EXP(-gate * ALPHA))
    else:
        if KIND == "swiglu_clamp":
            gate = WIDEN(NARROW(tl.minimum(gate, LIMIT), DTYPE))
            up = tl.maximum(tl.minimum(up, LIMIT), -LIMIT)
        if KIND == "gelu" or KIND == "gelu_tanh":
            activated = _gelu(gate, KIND == "gelu_tanh", ERF, TANH)
        else:
            activated = tl.div_rn(gate, 1.0 + EXP(-gate * ALPHA))
        result = WIDEN(NARROW(activated, DTYPE)) * (up + BETA)
    return result


@triton.jit
def _inductor_output(
    gate, up,
    KIND: tl.constexpr, THRESHOLD: tl.constexpr, EXP: tl.constexpr, ERF: tl.constexpr, TANH: tl.constexpr,
):  # fmt: skip
    """Return f(gate)·g(up) in float32 as TorchInductor computes it; the caller rounds it."""
    if KIND == "fatrelu":
        activated = tl.where(gate <= THRESHOLD, 0.0, gate)  # NaN stays NaN; vLLM's kernel makes it 0
    elif KIND == "silu":
        activated = gate / (1.0 + EXP(-gate))
    else:
        activated = _gelu(gate, KIND == "gelu_tanh", ERF, TANH)
    return activated * up


@triton.jit(do_not_specialize=["rows"])
def _gated_activation_kernel(
    gate_up, out, masks, write_counters, nonfinite, layer,
    rows, neurons, gate_offset, up_offset, row_stride, column_stride, mask_stride, layer_stride, flag_stride,
    TOP_K: tl.constexpr, NUMERICS: tl.constexpr, KIND: tl.constexpr, ACTIVE_ABOVE: tl.constexpr,
    THRESHOLD: tl.constexpr, LIMIT: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, INVERSE_BETA: tl.constexpr,
    LINEAR_BETA: tl.constexpr, INVERSE_LINEAR_BETA: tl.constexpr,
    EXP: tl.constexpr, ERF: tl.constexpr, TANH: tl.constexpr, NARROW: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Process one block of a row as (bytes, 8): each thread holds the eight neurons of a byte and packs them alone."""
    row = tl.program_id(0).to(tl.int64)
    index = tl.load(layer)
    if row < rows:  # a step without rows launches one program, for the write counter
        byte = tl.program_id(1) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
        bit = tl.arange(0, 8)[None, :]
        neuron = byte[:, None] * 8 + bit
        source = gate_up + row * row_stride + neuron * column_stride

        gate = WIDEN(tl.load(source + gate_offset, mask=neuron < neurons, other=0.0))
        packed = tl.sum((gate > ACTIVE_ABOVE).to(tl.int32) << bit, axis=1).to(tl.uint8)
        neuron_bytes = (neurons + 7) // 8
        target = (row // TOP_K) * mask_stride + index * layer_stride + (row % TOP_K) * neuron_bytes
        tl.store(masks + target + byte, packed, mask=byte < neuron_bytes)

        # An exponent of ones is NaN or infinity. Each thread checks its own eight neurons: no reduction across threads.
        exponent = tl.max(gate.to(tl.int32, bitcast=True) & 0x7F800000, axis=1)
        flag = nonfinite + (row // TOP_K) * flag_stride + index + byte * 0
        tl.store(flag, tl.full((BLOCK // 8,), 1, dtype=tl.uint8), mask=exponent == 0x7F800000)

        if NUMERICS is not None:
            up = WIDEN(tl.load(source + up_offset, mask=neuron < neurons, other=0.0))
            DTYPE: tl.constexpr = out.dtype.element_ty
            if NUMERICS == "vllm_kernel":
                output = _vllm_kernel_output(
                    gate, up, KIND, DTYPE, THRESHOLD, LIMIT, ALPHA, BETA, INVERSE_BETA, LINEAR_BETA,
                    INVERSE_LINEAR_BETA, EXP, ERF, TANH, NARROW, WIDEN,
                )  # fmt: skip
            else:
                output = _inductor_output(gate, up, KIND, THRESHOLD, EXP, ERF, TANH)
            tl.store(out + row * neurons + neuron, NARROW(output, DTYPE), mask=neuron < neurons)

    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        tl.store(write_counters + index, tl.load(write_counters + index) + (1 << 32) + (rows // TOP_K).to(tl.int64))


def gated_activation(
    gate_up: torch.Tensor,
    layer: torch.Tensor,
    masks: torch.Tensor,
    write_counters: torch.Tensor,
    nonfinite: torch.Tensor,
    spec: ActivationSpec,
    numerics: Numerics | None,
    functions: dict[str, Any] = DEVICE,
    out: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Run the kernel on the current stream. The caller has checked the shapes.

    Args:
        gate_up: (rows, 2·neurons), float32, bfloat16 or float16, any strides.
        layer: int64, one number, on the device.
        masks: uint8 (max_tokens, layers, ⌈neurons / 8⌉) or (max_tokens, layers, top_k, ⌈neurons / 8⌉), contiguous.
        write_counters: int64 (layers,), see `step_buffers.WRITE`.
        nonfinite: uint8 (max_tokens, layers), columns contiguous; set to 1 where a gate of the row is not finite.
        out: for the activation output, (rows, neurons), contiguous, in the dtype of `gate_up`; made if not given.

    Returns:
        f(gate)·g(up), that is `out` or a new tensor; None without numerics.
    """
    rows, neurons = gate_up.shape[0], gate_up.shape[1] // 2
    if out is None and numerics is not None:
        out = gate_up.new_empty((rows, neurons))
    block = min(_MAX_BLOCK, max(64, triton.next_power_of_2(neurons)))
    row_stride, column_stride = gate_up.stride()
    second = column_stride * (1 if spec.layout == "interleaved" else neurons)
    gate_offset, up_offset = (second, 0) if spec.layout == "second" else (0, second)
    neuron_stride = column_stride * (2 if spec.layout == "interleaved" else 1)
    _gated_activation_kernel[(max(rows, 1), triton.cdiv(neurons, block))](
        *(gate_up, gate_up if out is None else out, masks, write_counters, nonfinite, layer),
        *(rows, neurons, gate_offset, up_offset, row_stride, neuron_stride),
        *(masks.stride(0), masks.stride(1), nonfinite.stride(0)),
        TOP_K=masks.shape[2] if masks.dim() == 4 else 1,
        BLOCK=block,
        num_warps=max(1, block // 256),
        **constants(spec, numerics),
        **functions,
        **compiler_options(numerics),
    )
    return out


@functools.cache
def constants(spec: ActivationSpec, numerics: Numerics | None) -> dict[str, Any]:
    """Return what the kernel is compiled for. Reciprocals are those of float32, as in vLLM's kernels."""
    beta, linear_beta = spec.beta, spec.linear_beta or 0.0
    return {
        "NUMERICS": numerics and numerics.value,
        "KIND": spec.kind,
        "ACTIVE_ABOVE": spec.active_above,
        "THRESHOLD": spec.threshold,
        "LIMIT": spec.limit,
        "ALPHA": spec.alpha,
        "BETA": beta,
        "INVERSE_BETA": float(np.float32(1) / np.float32(beta)) if beta else 0.0,
        "LINEAR_BETA": linear_beta,
        "INVERSE_LINEAR_BETA": float(np.float32(1) / np.float32(linear_beta)) if linear_beta else 0.0,
    }


@functools.cache
def compiler_options(numerics: Numerics | None) -> dict[str, bool]:
    """Return options for Triton's compiler. Versions before `enable_reflect_ftz` always flush in libdevice."""
    known = {item.name for item in fields(CUDAOptions)}
    fusion, flush = numerics == Numerics.INDUCTOR, numerics != Numerics.VLLM_KERNEL
    options = {"enable_fp_fusion": fusion, "enable_reflect_ftz": flush}
    return {name: value for name, value in options.items() if name in known}
