# ruff: noqa: N803, N806  (Triton's constants are capitals, to be told from what a device holds)
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, import-untyped"
"""The Triton kernel of a gated activation and its signs.

One pass over (rows, neurons), a program for every row and block of neurons:

    1. load the gate once, and pack gate > threshold, eight neurons a byte, into the layer's rows of the step's masks;
    2. load up once, and write f(gate)·g(up), rounded where vLLM's own code rounds, so that the model says the same
       with and without capture;
    3. where a gate is NaN or infinite, set the row's flag of the layer: a plain store, the same from any program;
    4. the first program moves the layer's write counter by one write of so many rows.

Where a token goes through several experts, row r is choice r % choices of token r // choices.

It allocates the result alone, if that is not given, reads nothing on the host and compiles once for all numbers of
rows, so that it runs in CUDA graphs. `rounding` says whose arithmetic the product follows, operation by operation:

    kernel    vLLM's CUDA kernels: f rounded to the tensor's type, then the product; division to the nearest
    compiled  what TorchInductor makes of `forward_native`: float32 throughout, rounded once; Triton's own division
    None      no product: the signs alone

For `kernel` the one addition that nvcc contracts with a multiplication is spelt out as `fma` and Triton is told to
contract nothing; nvcc keeps subnormal numbers within libdevice's functions, and so does it. For `compiled` Triton is
given the same operations with the options that TorchInductor gives it, and so makes the same instructions: contracted
where it likes, subnormals flushed in libdevice.

The functions that differ between a device and Triton's interpreter are parameters: libdevice's are where nvcc and
TorchInductor get theirs from; the interpreter has none of them, and a test hands in others.

It does not know vLLM, nor whether a rounding fits the device and versions at hand: `install.py` measures that.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from triton.backends.nvidia.compiler import CUDAOptions
from triton.language.extra import libdevice

from sparcom_extractor.capture.discovery.activations import GatedActivation, Kind
from sparcom_extractor.capture.ops.reference import Rounding

# Kinds whose product is made here. The others have their signs taken beside the model's own activation: their
# divisions by constants, clamps and sigmoids are what TorchInductor rewrites from version to version.
FUSED: dict[Rounding, frozenset[Kind]] = {
    "kernel": frozenset({"silu", "gelu", "gelu_tanh", "fatrelu", "swiglu_clamp", "swiglu_oai", "situ"}),
    "compiled": frozenset({"silu", "gelu", "gelu_tanh", "fatrelu"}),
}
_MOST_NEURONS = 1024  # of a program: 128 threads of 8, each of which loads 16 bytes of bfloat16 and packs a byte alone


@dataclass(frozen=True, slots=True)
class Functions:
    """What differs between a device and the interpreter, as jitted functions of a block.

    exp, erf, tanh: of float32. narrow: float32 to the given type, to the nearest, ties to even. widen: back to float32.
    """

    exp: Any
    erf: Any
    tanh: Any
    narrow: Any
    widen: Any


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


DEVICE = Functions(_exp, _erf, _tanh, _narrow, _widen)


@triton.jit
def _gelu(x, TANH_FORM: tl.constexpr, ERF: tl.constexpr, TANH: tl.constexpr):
    if TANH_FORM:
        inner = 0.7978845608028654 * tl.fma(x * x * x, 0.044715, x)
        result = 0.5 * x * (1.0 + TANH(inner))
    else:
        result = x * 0.5 * (1.0 + ERF(x * 0.7071067811865476))
    return result


@triton.jit
def _product_of_kernel(
    gate, up,
    KIND: tl.constexpr, DTYPE: tl.constexpr, THRESHOLD: tl.constexpr, LIMIT: tl.constexpr, ALPHA: tl.constexpr,
    BETA: tl.constexpr, INVERSE_BETA: tl.constexpr, LINEAR_BETA: tl.constexpr, INVERSE_LINEAR_BETA: tl.constexpr,
    EXP: tl.constexpr, ERF: tl.constexpr, TANH: tl.constexpr, NARROW: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """f(gate)·g(up) in float32 as vLLM's CUDA kernels compute it; the caller rounds the result."""
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
def _product_of_compiled(
    gate, up,
    KIND: tl.constexpr, THRESHOLD: tl.constexpr, EXP: tl.constexpr, ERF: tl.constexpr, TANH: tl.constexpr,
):  # fmt: skip
    """f(gate)·g(up) in float32 as TorchInductor computes it; the caller rounds the result."""
    if KIND == "fatrelu":
        activated = tl.where(gate <= THRESHOLD, 0.0, gate)  # NaN stays NaN; vLLM's kernel makes it 0
    elif KIND == "silu":
        activated = gate / (1.0 + EXP(-gate))
    else:
        activated = _gelu(gate, KIND == "gelu_tanh", ERF, TANH)
    return activated * up


@triton.jit(do_not_specialize=["rows"])
def _gated_activation_kernel(
    gate_up, out, masks, writes, flags, layer,
    rows, neurons, gate_offset, up_offset, row_stride, column_stride, mask_stride, layer_stride, flag_stride,
    CHOICES: tl.constexpr,
    ROUNDING: tl.constexpr, KIND: tl.constexpr, ACTIVE_ABOVE: tl.constexpr, THRESHOLD: tl.constexpr,
    LIMIT: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, INVERSE_BETA: tl.constexpr,
    LINEAR_BETA: tl.constexpr, INVERSE_LINEAR_BETA: tl.constexpr,
    EXP: tl.constexpr, ERF: tl.constexpr, TANH: tl.constexpr, NARROW: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One row's block of neurons as (bytes, 8): a thread holds the neurons of a byte and packs them on its own."""
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
        place = (row // CHOICES) * mask_stride + index * layer_stride + (row % CHOICES) * neuron_bytes
        tl.store(masks + place + byte, packed, mask=byte < neuron_bytes)

        # An exponent of ones is NaN or infinity. A thread looks at its own eight: no reduction, and no store if all is
        # well.
        exponent = tl.max(gate.to(tl.int32, bitcast=True) & 0x7F800000, axis=1)
        flag = flags + (row // CHOICES) * flag_stride + index + byte * 0
        tl.store(flag, tl.full((BLOCK // 8,), 1, dtype=tl.uint8), mask=exponent == 0x7F800000)

        if ROUNDING is not None:
            up = WIDEN(tl.load(source + up_offset, mask=neuron < neurons, other=0.0))
            DTYPE: tl.constexpr = out.dtype.element_ty
            if ROUNDING == "kernel":
                product = _product_of_kernel(
                    gate, up, KIND, DTYPE, THRESHOLD, LIMIT, ALPHA, BETA, INVERSE_BETA, LINEAR_BETA,
                    INVERSE_LINEAR_BETA, EXP, ERF, TANH, NARROW, WIDEN,
                )  # fmt: skip
            else:
                product = _product_of_compiled(gate, up, KIND, THRESHOLD, EXP, ERF, TANH)
            tl.store(out + row * neurons + neuron, NARROW(product, DTYPE), mask=neuron < neurons)

    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        tl.store(writes + index, tl.load(writes + index) + (1 << 32) + (rows // CHOICES).to(tl.int64))


def gated_activation(
    gate_up: torch.Tensor,
    layer: torch.Tensor,
    masks: torch.Tensor,
    writes: torch.Tensor,
    flags: torch.Tensor,
    rule: GatedActivation,
    rounding: Rounding | None,
    functions: Functions = DEVICE,
    out: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Run the kernel on the current stream; the caller has checked the shapes.

    Args:
        gate_up: (rows, 2·neurons), float32, bfloat16 or float16, any strides.
        layer: int64, one number, on the device. masks: uint8 (max_tokens, layers, ⌈neurons / 8⌉), contiguous;
            or (max_tokens, layers, choices, ⌈neurons / 8⌉), with a row of `gate_up` for each (token, choice).
        writes: int64 (layers,), write counters; see `buffer.WRITE`.
        flags: uint8 (max_tokens, layers), columns contiguous; set where a gate of the row is not finite.
        rule: how it gates. rounding: whose arithmetic the product follows; None: signs alone.
        out: where the product goes: (rows, neurons), contiguous, in the type of `gate_up`; made where not given.

    Returns:
        f(gate)·g(up): `out`, or a new tensor like it; None without a rounding.
    """
    rows, neurons = gate_up.shape[0], gate_up.shape[1] // 2
    if out is None and rounding is not None:
        out = gate_up.new_empty((rows, neurons))
    block = min(_MOST_NEURONS, max(64, triton.next_power_of_2(neurons)))
    gate_offset, up_offset = _offsets(rule, neurons, gate_up.stride(1))
    _gated_activation_kernel[(max(rows, 1), triton.cdiv(neurons, block))](
        gate_up,
        gate_up if out is None else out,
        masks,
        writes,
        flags,
        layer,
        rows,
        neurons,
        gate_offset,
        up_offset,
        gate_up.stride(0),
        gate_up.stride(1) * (2 if rule.place == "interleaved" else 1),
        masks.stride(0),
        masks.stride(1),
        flags.stride(0),
        CHOICES=masks.shape[2] if masks.dim() == 4 else 1,
        BLOCK=block,
        num_warps=max(1, block // 256),
        **constants(rule, rounding, functions),
        **compiler_options(rounding),
    )
    return out


@functools.cache
def constants(rule: GatedActivation, rounding: Rounding | None, functions: Functions) -> dict[str, Any]:
    """What the kernel is compiled for, but for its block. Reciprocals are those of float32, as vLLM's kernel's are."""
    linear_beta = rule.linear_beta or 0.0
    return {
        "ROUNDING": rounding,
        "KIND": rule.kind,
        "ACTIVE_ABOVE": rule.active_above,
        "THRESHOLD": rule.threshold,
        "LIMIT": rule.limit,
        "ALPHA": rule.alpha,
        "BETA": rule.beta,
        "INVERSE_BETA": float(np.float32(1) / np.float32(rule.beta)) if rule.beta else 0.0,
        "LINEAR_BETA": linear_beta,
        "INVERSE_LINEAR_BETA": float(np.float32(1) / np.float32(linear_beta)) if linear_beta else 0.0,
        "EXP": functions.exp,
        "ERF": functions.erf,
        "TANH": functions.tanh,
        "NARROW": functions.narrow,
        "WIDEN": functions.widen,
    }


@functools.cache
def compiler_options(rounding: Rounding | None) -> dict[str, bool]:
    """What Triton is told beside the kernel. Versions before `enable_reflect_ftz` flush in libdevice always."""
    known = {item.name for item in fields(CUDAOptions)}
    wanted = {"enable_fp_fusion": rounding == "compiled", "enable_reflect_ftz": rounding != "kernel"}
    return {name: value for name, value in wanted.items() if name in known}


def _offsets(rule: GatedActivation, neurons: int, column_stride: int) -> tuple[int, int]:
    """Where the gate and the up part of a row begin, in elements."""
    match rule.place:
        case "first":
            return 0, neurons * column_stride
        case "second":
            return neurons * column_stride, 0
        case "interleaved":
            return 0, column_stride
