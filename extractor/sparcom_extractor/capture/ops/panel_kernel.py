"""The signs of the gates of chosen experts from packed panels, in machine code for whatever CPU this is.

One call of the inner kernel multiplies eight rows with two panels of 16 neurons. Its sixteen sums stay in vector
registers over the whole hidden axis, so that each weight is loaded once for eight rows. It ends in 16 bits per row and
panel, and 16 more that say which gates are NaN or infinite: gates are never written. It is written in LLVM's vectors of
16 numbers, which become AVX-512, AVX2 or NEON code; the loops around it are Numba's. What it saves is in DECISIONS.md,
"Gates of experts on a CPU". float32 only; `panels.py` has a way for other types. It knows neither vLLM nor torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]  # no types are shipped
from numba import njit, types
from numba.extending import intrinsic

ROWS, PANELS, LANES = 8, 2, 16

_FLOAT, _INDEX, _BITS = ir.FloatType(), ir.IntType(64), ir.IntType(16)
_VECTOR = ir.VectorType(_FLOAT, LANES)


@intrinsic  # type: ignore[untyped-decorator]
def _block(  # the names are those of the call; their types alone come in here
    _context: Any,
    rows: Any,  # noqa: ARG001
    panel: Any,  # noqa: ARG001
    stride: Any,  # noqa: ARG001
    hidden: Any,  # noqa: ARG001
    bias: Any,  # noqa: ARG001
    above: Any,  # noqa: ARG001
    out: Any,  # noqa: ARG001
) -> Any:
    """Eight rows times two panels.

    rows: address of eight addresses of float32 rows. panel, stride: address of the first panel, bytes to the second.
    hidden: numbers of a row. bias: address of 32 numbers. out: address of 32 uint16: the signs of (row, panel), then
    which of its gates are not finite.
    """
    signature = types.void(types.intp, types.intp, types.intp, types.intp, types.intp, types.float32, types.intp)

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        rows, panel, stride, hidden, bias, above, out = arguments
        pointers = [_load(builder, rows, row, _INDEX) for row in range(ROWS)]
        starts = [panel, builder.add(panel, stride)]
        biases = [_load(builder, bias, index, _VECTOR) for index in range(PANELS)]
        sums = _sum_products(builder, pointers, starts, hidden, biases)
        for index, value in enumerate(sums):
            active = builder.fcmp_ordered(">", value, _splat(builder, above))
            nothing = builder.fsub(value, value)  # NaN where the gate is NaN or infinite, otherwise 0
            nonfinite = builder.fcmp_unordered("uno", nothing, nothing)
            for place, lanes in ((index, active), (ROWS * PANELS + index, nonfinite)):
                bits = builder.bitcast(lanes, _BITS)
                builder.store(bits, _pointer(builder, out, place, _BITS), align=2)

    return signature, generate


def _sum_products(builder: Any, rows: list[Any], panels: list[Any], hidden: Any, biases: list[Any]) -> list[Any]:
    """The loop over the hidden axis; sums are (row, panel), one after the other."""
    before = builder.block
    loop = builder.append_basic_block("hidden")
    after = builder.append_basic_block("summed")
    builder.branch(loop)
    builder.position_at_end(loop)
    place = builder.phi(_INDEX)
    sums = [builder.phi(_VECTOR) for _ in range(ROWS * PANELS)]
    weights = [_load(builder, panel, place, _VECTOR) for panel in panels]
    added = []
    for row in range(ROWS):
        number = _splat(builder, _load(builder, rows[row], place, _FLOAT))
        added += [_multiply_add(builder, number, weights[p], sums[row * PANELS + p]) for p in range(PANELS)]
    following = builder.add(place, ir.Constant(_INDEX, 1))
    place.add_incoming(ir.Constant(_INDEX, 0), before)
    place.add_incoming(following, loop)
    for index, (total, value) in enumerate(zip(sums, added, strict=True)):
        total.add_incoming(biases[index % PANELS], before)
        total.add_incoming(value, loop)
    builder.cbranch(builder.icmp_signed("<", following, hidden), loop, after)
    builder.position_at_end(after)
    return added


def _pointer(builder: Any, address: Any, index: Any, kind: Any) -> Any:
    """Where number `index` of a kind lies behind an address."""
    base = builder.inttoptr(address, kind.as_pointer())
    return builder.gep(base, [index if isinstance(index, ir.Value) else ir.Constant(_INDEX, index)])


def _load(builder: Any, address: Any, index: Any, kind: Any) -> Any:
    align = 4 if kind is _VECTOR else None  # nobody promises more
    return builder.load(_pointer(builder, address, index, kind), align=align)


def _splat(builder: Any, number: Any) -> Any:
    """A vector of one number."""
    zero = ir.Constant(ir.IntType(32), 0)
    single = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), number, zero)
    return builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a · b + c, in one instruction where the CPU has one."""
    name = f"llvm.fmuladd.v{LANES}f32"
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    known = builder.module.globals.get(name)
    return builder.call(known or ir.Function(builder.module, kind, name), [a, b, c])


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def pack_gates(
    rows: int,
    row_bytes: int,
    panels: int,
    expert_bytes: int,
    panel_bytes: int,
    hidden: int,
    bias: np.ndarray[Any, Any],
    places: np.ndarray[Any, Any],
    borders: np.ndarray[Any, Any],
    experts: np.ndarray[Any, Any],
    choices: int,
    above: float,
    first: int,
    stop: int,
    out: np.ndarray[Any, Any],
    nonfinite: np.ndarray[Any, Any],
) -> None:
    """Panels [first, stop) of all chosen experts; both are even.

    rows, row_bytes: address of the float32 rows, bytes from one to the next. panels, expert_bytes, panel_bytes: address
    of the first expert's first panel, bytes to the next expert and to the next panel. hidden: numbers of a row.
    bias: float32 (experts, neurons), or (1, neurons) for all. places: int64, (token, choice) numbers in the order of
    the experts. borders: int64 (groups + 1,), where each expert's places begin. experts: int64 (groups,).
    out: uint16 (places, panels), the bits of one panel each. nonfinite: bool (places,), set where a gate is NaN or
    infinite.
    """
    pointers = np.empty(ROWS, np.int64)
    bits = np.empty(2 * ROWS * PANELS, np.uint16)
    for group in range(len(experts)):
        expert = experts[group]
        own = bias[expert if len(bias) > 1 else 0]
        for panel in range(first, stop, PANELS):
            weights = panels + expert * expert_bytes + panel * panel_bytes
            offset = own[panel * LANES :].ctypes.data
            for start in range(borders[group], borders[group + 1], ROWS):
                count = min(ROWS, borders[group + 1] - start)
                for row in range(ROWS):  # what is missing of eight is the last one again
                    pointers[row] = rows + places[start + min(row, count - 1)] // choices * row_bytes
                _block(pointers.ctypes.data, weights, panel_bytes, hidden, offset, np.float32(above), bits.ctypes.data)
                for row in range(count):
                    for index in range(PANELS):
                        place = row * PANELS + index
                        out[places[start + row], panel + index] = bits[place]
                        if bits[ROWS * PANELS + place]:
                            nonfinite[places[start + row]] = True
