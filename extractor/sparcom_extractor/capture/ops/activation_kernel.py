# ruff: noqa: N803, N806  (Triton's constants are capitals)
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, import-untyped"
"""Triton kernel of a gated activation that captures the signs of its gate; see `activation_reference`.

One program per row and block of neurons reads gate and up once. It packs gate > threshold, eight neurons per byte, and
flags the row if a gate is not finite. Flags are plain stores of one value, so programs may race. With top_k experts per
token, row r is entry r % top_k of token r // top_k. The kernel compiles once for all numbers of rows, for CUDA graphs.
`numerics` names the code that the activation output must match, operation by operation:

    VLLM_KERNEL  vLLM's CUDA kernels: f is rounded to the tensor's dtype before the product; division rounds to nearest.
                 nvcc contracts one addition with a multiplication, which is `fma` here. Triton must contract nothing
                 itself. libdevice's functions keep subnormals.
    INDUCTOR     TorchInductor's code of `forward_native`: float32, rounded once. With TorchInductor's operations and
                 options, Triton makes the same instructions: it may contract, and flushes subnormals.
    None         no output, signs only
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import triton
import triton.language as tl
from torch import Tensor
from triton.backends.nvidia.compiler import CUDAOptions
from triton.compiler import CompiledKernel
from triton.language.extra import libdevice

from sparcom_extractor.capture.discovery.activations import ActivationSpec
from sparcom_extractor.capture.ops.activation_reference import Numerics
from sparcom_extractor.capture.ops.step_buffers import Kept, MaskBuffer

_BLOCKS = (1024, 512, 256)  # neurons per program; a thread has 8: it loads 16 bytes of bfloat16 and packs one byte
_MIN_BUSY = 0.85  # fraction of threads with neurons, above which a larger block is better than fewer idle threads


@triton.jit
def narrow(x, DTYPE: tl.constexpr):
    """Round float32 to the nearest number of a dtype, ties to even."""
    return x.to(DTYPE)


@triton.jit
def widen(x):
    return x.to(tl.float32)


@triton.jit
def _gelu(x, TANH_FORM: tl.constexpr):
    if TANH_FORM:
        inner = 0.7978845608028654 * tl.fma(x * x * x, 0.044715, x)
        result = 0.5 * x * (1.0 + libdevice.tanh(inner))
    else:
        result = x * 0.5 * (1.0 + libdevice.erf(x * 0.7071067811865476))
    return result


@triton.jit
def _output(
    gate, up, NUMERICS: tl.constexpr,
    KIND: tl.constexpr, DTYPE: tl.constexpr, THRESHOLD: tl.constexpr, LIMIT: tl.constexpr, ALPHA: tl.constexpr,
    BETA: tl.constexpr, INVERSE_BETA: tl.constexpr, LINEAR_BETA: tl.constexpr, INVERSE_LINEAR_BETA: tl.constexpr,
):  # fmt: skip
    """Return f(gate)·g(up) in float32; the caller rounds it."""
    if KIND == "fatrelu":
        if NUMERICS == "inductor":
            result = tl.where(gate <= THRESHOLD, 0.0, gate) * up  # NaN stays NaN; vLLM's kernel makes it 0
        else:
            result = tl.where(gate > THRESHOLD, gate, 0.0) * up
    elif KIND == "situ":
        if LINEAR_BETA > 0:
            up = LINEAR_BETA * libdevice.tanh(up * INVERSE_LINEAR_BETA)
        result = tl.div_rn(BETA * libdevice.tanh(gate * INVERSE_BETA), 1.0 + libdevice.exp(-gate)) * up
    elif KIND == "swiglu_oai":
        gate, up = tl.minimum(gate, LIMIT), tl.maximum(tl.minimum(up, LIMIT), -LIMIT)
        result = tl.div_rn((up + 1.0) * gate, 1.0 + libdevice.exp(-gate * ALPHA))
    else:
        if KIND == "swiglu_clamp":
            gate = widen(narrow(tl.minimum(gate, LIMIT), DTYPE))
            up = tl.maximum(tl.minimum(up, LIMIT), -LIMIT)
        if KIND == "gelu" or KIND == "gelu_tanh":
            activated = _gelu(gate, KIND == "gelu_tanh")
        elif NUMERICS == "inductor":
            activated = gate / (1.0 + libdevice.exp(-gate))
        else:
            activated = tl.div_rn(gate, 1.0 + libdevice.exp(-gate * ALPHA))
        if NUMERICS == "inductor":  # noqa: SIM108  Triton would compute both branches of an expression
            result = activated * up
        else:
            result = widen(narrow(activated, DTYPE)) * (up + BETA)
    return result


@triton.jit(do_not_specialize=["rows"])
def _gated_activation_kernel(
    gate_up, out, masks, write_counters, nonfinite, layer,
    rows, neurons, gate_offset, up_offset, row_stride, column_stride, mask_stride, layer_stride, flag_stride,
    TOP_K: tl.constexpr, BLOCK: tl.constexpr, KIND: tl.constexpr, ACTIVE_ABOVE: tl.constexpr,
    THRESHOLD: tl.constexpr, LIMIT: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, NUMERICS: tl.constexpr,
    INVERSE_BETA: tl.constexpr, LINEAR_BETA: tl.constexpr, INVERSE_LINEAR_BETA: tl.constexpr,
):  # fmt: skip
    """Process one block of a row as (bytes, 8): each thread holds and packs the eight neurons of a byte."""
    row = tl.program_id(0).to(tl.int64)
    index = tl.load(layer)
    if row < rows:  # a step without rows launches one program, for the write counter
        byte = tl.program_id(1) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
        bit = tl.arange(0, 8)[None, :]
        neuron = byte[:, None] * 8 + bit
        source = gate_up + row * row_stride + neuron * column_stride

        gate = widen(tl.load(source + gate_offset, mask=neuron < neurons, other=0.0))
        if NUMERICS is not None:  # before the masks are stored: a store might alias, so the load would wait behind it
            up = widen(tl.load(source + up_offset, mask=neuron < neurons, other=0.0))
        packed = tl.sum((gate > ACTIVE_ABOVE).to(tl.int32) << bit, axis=1).to(tl.uint8)
        neuron_bytes = (neurons + 7) // 8
        target = (row // TOP_K) * mask_stride + index * layer_stride + (row % TOP_K) * neuron_bytes
        tl.store(masks + target + byte, packed, mask=byte < neuron_bytes)

        # An exponent of ones is NaN or infinity. Each thread checks its own eight neurons: no reduction across threads.
        exponent = tl.max(gate.to(tl.int32, bitcast=True) & 0x7F800000, axis=1)
        flag = nonfinite + (row // TOP_K) * flag_stride + index + byte * 0
        tl.store(flag, tl.full((BLOCK // 8,), 1, dtype=tl.uint8), mask=exponent == 0x7F800000)

        if NUMERICS is not None:
            DTYPE: tl.constexpr = out.dtype.element_ty
            output = _output(
                gate, up, NUMERICS, KIND, DTYPE, THRESHOLD, LIMIT, ALPHA, BETA, INVERSE_BETA, LINEAR_BETA,
                INVERSE_LINEAR_BETA,
            )  # fmt: skip
            tl.store(out + row * neurons + neuron, narrow(output, DTYPE), mask=neuron < neurons)

    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        tl.store(write_counters + index, tl.load(write_counters + index) + (1 << 32) + (rows // TOP_K).to(tl.int64))


def aligned(*tensors: Tensor) -> tuple[bool, ...]:
    """Return which tensors start at a multiple of 16 bytes, as Triton's JIT specializes."""
    return tuple(tensor.data_ptr() % 16 == 0 for tensor in tensors)


def launch(
    kernel: Any,
    kept: Kept,
    key: tuple[Any, ...],
    grid: tuple[int, int, int],
    arguments: tuple[Any, ...],
    make_rest: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]],
) -> None:
    """Launch on the current stream with the machine code in `kept`: the JIT's look-up costs several times a launch.
    key: all that the JIT specializes on and that may vary among launches that share `kept`. A new key goes to the JIT.
    arguments: the kernel's first ones. make_rest: returns the others, fixed for the key, and options for Triton."""
    found = kept.get(key)
    if found is not None:
        compiled, rest = found
        compiled[grid](*arguments, *rest)
        return
    rest, options = make_rest()
    compiled = kernel[grid](*arguments, *rest, **options)
    if isinstance(compiled, CompiledKernel):  # the interpreter returns nothing
        kept[key] = compiled, rest


def gated_activation(
    gate_up: Tensor,
    index: Tensor,
    buffer: MaskBuffer,
    spec: ActivationSpec,
    numerics: Numerics | None,
    out: Tensor | None = None,
) -> Tensor | None:
    """Run the kernel on the current stream for rows that fit. Return f(gate)·g(up), or None without numerics.
    gate_up: (rows, 2·neurons), float32, bfloat16 or float16, any strides. index: layer index, one int64 on the device.
    out: receives the result, (rows, neurons), contiguous, of the dtype of `gate_up`; allocated if None."""
    rows, neurons = gate_up.shape[0], gate_up.shape[1] // 2
    if out is None and numerics is not None:
        out = gate_up.new_empty((rows, neurons))
    target, strides = gate_up if out is None else out, gate_up.stride()
    launch(
        _gated_activation_kernel,
        buffer.kernels,
        (spec, numerics, gate_up.dtype, target.dtype, neurons, strides, aligned(gate_up, target, index)),
        (max(rows, 1), -(-neurons // block_size(neurons)), 1),
        (gate_up, target, buffer.masks, buffer.write_counters, buffer.nonfinite, index, rows),
        lambda: _rest(neurons, strides, buffer, spec, numerics),
    )
    return out


def _rest(
    neurons: int, strides: tuple[int, ...], buffer: MaskBuffer, spec: ActivationSpec, numerics: Numerics | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the kernel's arguments after `rows`, and options for Triton."""
    row_stride, column_stride = strides
    second = column_stride * (1 if spec.layout == "interleaved" else neurons)
    gate_offset, up_offset = (second, 0) if spec.layout == "second" else (0, second)
    neuron_stride = column_stride * (2 if spec.layout == "interleaved" else 1)
    block = block_size(neurons)
    arguments = (
        *(neurons, gate_offset, up_offset, row_stride, neuron_stride),
        *(buffer.masks.stride(0), buffer.masks.stride(1), buffer.nonfinite.stride(0)),
        *(max(1, buffer.top_k), block, *constants(spec, numerics).values()),
    )
    return arguments, {"num_warps": max(1, block // 256), **compiler_options(numerics)}


@functools.cache
def block_size(neurons: int) -> int:
    """Return the neurons per program: the largest block that keeps most threads busy."""
    if neurons <= _BLOCKS[-1]:
        return max(64, 1 << (neurons - 1).bit_length())
    busy = {block: neurons / (-(-neurons // block) * block) for block in _BLOCKS}
    return next((block for block in _BLOCKS if busy[block] >= _MIN_BUSY), max(_BLOCKS, key=lambda block: busy[block]))


@functools.cache
def constants(spec: ActivationSpec, numerics: Numerics | None) -> dict[str, Any]:
    """Return the kernel's last arguments, in order. Reciprocals are computed in float32, as in vLLM's kernels."""
    names = ("kind", "active_above", "threshold", "limit", "alpha", "beta")
    beta, linear = spec.beta, spec.linear_beta or 0.0
    return {name.upper(): getattr(spec, name) for name in names} | {
        "NUMERICS": numerics and numerics.value,
        "INVERSE_BETA": float(np.float32(1) / np.float32(beta)) if beta else 0.0,
        "LINEAR_BETA": linear,
        "INVERSE_LINEAR_BETA": float(np.float32(1) / np.float32(linear)) if linear else 0.0,
    }


@functools.cache
def compiler_options(numerics: Numerics | None) -> dict[str, bool]:
    """Return options for Triton's compiler. Versions without `enable_reflect_ftz` flush subnormals in libdevice."""
    known = {item.name for item in fields(CUDAOptions)}
    fusion, flush = numerics == Numerics.INDUCTOR, numerics != Numerics.VLLM_KERNEL
    options = {"enable_fp_fusion": fusion, "enable_reflect_ftz": flush}
    return {name: value for name, value in options.items() if name in known}
