"""CPU kernel that packs the signs of gates, finds rows that are not finite, and can compute SiLU(gate)·up on the way.

Numba compiles its loops, for any processor. They run on the OpenMP threads of PyTorch and vLLM: more threads of our own
would compete with them. `activation_reference` packs the same with NumPy.

The output equals PyTorch's, bit for bit. On x86, PyTorch calls SLEEF's e^x for whole vectors and libm's for the rest:
here are the same calls for the same elements. Its operations cut a tensor into one range of elements per thread, and
take two vectors at a time from each row of a range.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparcom_data.schema import mask_bytes

_BYTES_PER_THREAD = 1 << 20  # of gates: waking a thread takes as long as packing half of it
_GRAIN = 32_768  # elements per thread in PyTorch: at::internal::GRAIN_SIZE
_LANES = {"AVX512": 16, "AVX2": 8}  # floats per vector, by PyTorch's capability
_EXPONENTS = {torch.float32: 0x7F800000, torch.bfloat16: 0x7F80, torch.float16: 0x7C00}  # all ones: NaN or infinity
_ARGUMENTS = 11


def pack_rows(gate: Tensor, threshold: float, masks: NDArray[np.uint8], nonfinite: NDArray[np.uint8]) -> None:
    """Pack gate > threshold, and set `nonfinite` to 1 where a row holds NaN or an infinity; other flags stay.
    gate: CPU tensor (rows, neurons) of float32, bfloat16 or float16. masks: (rows, ⌈neurons / 8⌉), little bit order,
    bytes of a row adjacent. nonfinite: (rows,). A threshold is compared in float32, as in vLLM's activations."""
    neurons = gate.shape[1]
    if threshold and gate.dtype != torch.float32:
        gate = gate.float()
    if neurons < 8:
        gate = torch.nn.functional.pad(gate, (0, 8 - neurons))
    if gate.stride(1) != 1:
        gate = gate.contiguous()
    threads = min(torch.get_num_threads(), 1 + gate.nbytes // _BYTES_PER_THREAD)
    _run(_kernel(gate.dtype, float(np.float32(threshold)), 0), gate, neurons, masks, nonfinite, threads)


def silu_and_pack(gate_up: Tensor, masks: NDArray[np.uint8], nonfinite: NDArray[np.uint8]) -> Tensor:
    """Return silu(gate)·up of float32 `gate_up` (rows, 2·neurons), as PyTorch computes it: (rows, neurons). Capture its
    gates, the first half, as `pack_rows` does. Needs at least 8 neurons, adjacent in memory; see `silu_lanes`."""
    rows, neurons = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty((rows, neurons))
    size = rows * neurons
    threads = 1 if size < _GRAIN else min(torch.get_num_threads(), -(-size // _GRAIN))
    _run(_kernel(torch.float32, 0.0, silu_lanes()), gate_up, neurons, masks, nonfinite, threads, out)
    return out


@functools.cache
def silu_lanes() -> int:
    """Return the floats per vector with which PyTorch computes SiLU on this processor; 0 if it is unknown here."""
    return _LANES.get(torch.backends.cpu.get_cpu_capability(), 0)


def _run(
    kernel: Any,
    gate: Tensor,
    neurons: int,
    masks: NDArray[np.uint8],
    nonfinite: NDArray[np.uint8],
    threads: int,
    out: Tensor | None = None,
) -> None:
    """Run a kernel of `_kernel` on `threads` threads. gate: (rows, at least `neurons` and 8); more columns are up."""
    rows, width = gate.shape[0], max(neurons, 8)
    if not rows:
        return
    if masks.shape != (rows, mask_bytes(neurons)) or masks.strides[1] != 1 or nonfinite.shape != (rows,):
        raise ValueError(f"masks {masks.shape} and flags {nonfinite.shape} must fit gates {(rows, neurons)}")
    places = (gate.data_ptr(), gate.stride(0) * gate.itemsize, rows, width)
    targets = (masks.ctypes.data, masks.strides[0], nonfinite.ctypes.data, nonfinite.strides[0])
    output = (gate.data_ptr() + width * gate.itemsize, 0 if out is None else out.data_ptr())
    arguments = (ctypes.c_int64 * _ARGUMENTS)(*places, *targets, *output, threads)
    _openmp("GOMP_parallel", None)(kernel.address, arguments, threads, 0)


@functools.cache
def _kernel(dtype: torch.dtype, threshold: float, lanes: int) -> Any:
    """Compile the loop of one OpenMP thread. lanes: floats per vector of the output; 0 without output."""
    from numba import carray, cfunc, types

    signs_of_eight, store, size = _signs_of_eight(dtype, threshold), _store_byte(), dtype.itemsize
    vector, scalar = _silu(max(lanes, 1)), _silu(1)
    thread, threads = _openmp("omp_get_thread_num", ctypes.c_int), _openmp("omp_get_num_threads", ctypes.c_int)

    @cfunc(types.void(types.CPointer(types.int64)))
    def kernel(arguments):  # type: ignore[no-untyped-def]
        values = carray(arguments, _ARGUMENTS)
        gates, stride, rows, neurons, masks, mask_stride, flags, flag_stride, ups, out, ranges = values
        elements = (rows * neurons + ranges - 1) // ranges
        for number in range(thread(), ranges, threads()):  # a range may begin and end within a row
            begin, end = number * elements, min((number + 1) * elements, rows * neurons)
            for row in range(begin // neurons, (end + neurons - 1) // neurons):
                gate, mask = gates + row * stride, masks + row * mask_stride
                first, last = max(begin - row * neurons, 0), min(end - row * neurons, neurons)
                if first == 0:  # the range with the first element packs the row
                    found = 0
                    for byte in range(neurons // 8):
                        signs = signs_of_eight(gate + byte * 8 * size)
                        store(mask + byte, signs)
                        found |= signs
                    if neurons % 8:  # the last eight neurons, less those that are packed already
                        signs = signs_of_eight(gate + (neurons - 8) * size)
                        store(mask + neurons // 8, (signs & 255) >> (8 - neurons % 8))
                        found |= signs
                    if found >> 8:
                        store(flags + row * flag_stride, 1)
                if lanes:
                    up, output = ups + row * stride, out + row * neurons * 4
                    while first + 2 * lanes <= last:
                        vector(gate + first * 4, up + first * 4, output + first * 4)
                        vector(gate + (first + lanes) * 4, up + (first + lanes) * 4, output + (first + lanes) * 4)
                        first += 2 * lanes
                    while first < last:
                        scalar(gate + first * 4, up + first * 4, output + first * 4)
                        first += 1

    return kernel


def _signs_of_eight(dtype: torch.dtype, threshold: float) -> Any:
    """Return a function from the address of eight gates to their signs, in bits 0 to 7, and whether each is not finite,
    in bits 8 to 15. 16-bit numbers are compared with 0 as integers, which keep their order there."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    bits = ir.VectorType(ir.IntType(8 * dtype.itemsize), 8)
    floats = ir.VectorType(ir.FloatType(), 8)
    exponent = ir.Constant(bits, [_EXPONENTS[dtype]] * 8)
    wide = ir.IntType(64)

    @intrinsic
    def signs_of_eight(_context, _address):  # type: ignore[no-untyped-def]
        def code(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
            gates = builder.load(builder.inttoptr(arguments[0], bits.as_pointer()), align=dtype.itemsize)
            if dtype == torch.float32:
                limits = ir.Constant(floats, [threshold] * 8)
                active = builder.fcmp_ordered(">", builder.bitcast(gates, floats), limits)
            else:
                positive = builder.icmp_signed(">", gates, ir.Constant(bits, [0] * 8))
                active = builder.and_(positive, builder.icmp_signed("<=", gates, exponent))
            wrong = builder.icmp_unsigned("==", builder.and_(gates, exponent), exponent)
            low, high = (builder.zext(builder.bitcast(lanes, ir.IntType(8)), wide) for lanes in (active, wrong))
            return builder.or_(low, builder.shl(high, ir.Constant(wide, 8)))

        return types.int64(types.int64), code

    return signs_of_eight


def _silu(lanes: int) -> Any:
    """Return a function of the addresses of `lanes` gates, ups and outputs, which stores silu(gate)·up."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    number = ir.FloatType() if lanes == 1 else ir.VectorType(ir.FloatType(), lanes)
    one = ir.Constant(number, 1.0 if lanes == 1 else [1.0] * lanes)
    library, name = (ctypes.CDLL("libm.so.6"), "expf") if lanes == 1 else (_torch_library(), f"Sleef_expf{lanes}_u10")
    address = ir.Constant(ir.IntType(64), ctypes.cast(getattr(library, name), ctypes.c_void_p).value)

    @intrinsic
    def silu(_context, _gate, _up, _out):  # type: ignore[no-untyped-def]
        def code(context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
            places = [builder.inttoptr(argument, number.as_pointer()) for argument in arguments]
            gate, up = (builder.load(place, align=4) for place in places[:2])
            exp = builder.inttoptr(address, ir.FunctionType(number, [number]).as_pointer())
            denominator = builder.fadd(one, builder.call(exp, [builder.fneg(gate)]))
            builder.store(builder.fmul(builder.fdiv(gate, denominator), up), places[2], align=4)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), code

    return silu


def _store_byte() -> Any:
    """Return a function that stores the low byte of its second argument at the address in its first."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def store(_context, _address, _value):  # type: ignore[no-untyped-def]
        def code(context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
            byte = ir.IntType(8)
            builder.store(builder.trunc(arguments[1], byte), builder.inttoptr(arguments[0], byte.as_pointer()))
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), code

    return store


@functools.cache
def _openmp(name: str, result: Any) -> Callable[..., Any]:
    """Return a function of the OpenMP library that PyTorch runs on: a preloaded one comes before its own."""
    library = ctypes.CDLL(None)
    function = getattr(library if hasattr(library, name) else _torch_library(), name)
    function.restype = result
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint] if result is None else []
    return function  # type: ignore[no-any-return]


def _torch_library() -> ctypes.CDLL:
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
