"""The loops that numpy is too slow for, compiled by Numba: counting bits by neuron, ranking, intersecting sets.

They take raw arrays and know nothing of archives, instructions or categories. They release the interpreter lock and are
spread over cores by plain threads (`parallel_for`), not by Numba's own parallelism: its default threading layer ends
the process when two threads of a server enter it at once, and compiles five times as long.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])

MAX_BYTE_COUNT = 255  # what one byte lane of a block counter holds
TILE_BYTES = 2048  # packed bytes of a row handled at once: their byte counters, 16 KiB, stay in the first-level cache
TILE_WORDS = 1024  # words of a set handled at once: 8 KiB a set
PAIR_ROWS = 16  # sets of one side of a block of pairs: 128 KiB of tiles, in the second-level cache
MIN_SPLIT_BYTES = 4 << 20  # below this, starting threads costs more than it gains


def _compiled(function: F) -> F:
    """Compile on first call and keep the machine code on disk where a folder can be written."""
    try:
        return njit(nogil=True, cache=True)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # Numba: "no locator available": read-only installation and no writable home
        return njit(nogil=True)(function)  # type: ignore[no-any-return]


def _spread_table() -> NDArray[np.uint64]:
    """uint64 (256,): byte k of entry b is bit k of b, so that adding entries adds eight counters at once."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return np.ascontiguousarray(bits).view(np.dtype("<u8"))[:, 0].astype(np.uint64)


_SPREAD = _spread_table()


@_compiled
def _add_bits(
    rows: NDArray[np.uint8], counts: NDArray[np.uint32], spread: NDArray[np.uint64], first: int, last: int
) -> None:
    """Add the bits of columns first..last of every row to eight counters a column.

    For each tile of columns and at most 255 rows: sum in byte lanes, then widen the lanes into `counts`.
    """
    lanes = np.empty(TILE_BYTES, dtype=np.uint64)
    for left in range(first, last, TILE_BYTES):
        width = min(TILE_BYTES, last - left)
        for top in range(0, rows.shape[0], MAX_BYTE_COUNT):
            lanes[:width] = 0
            for row in range(top, min(top + MAX_BYTE_COUNT, rows.shape[0])):
                for i in range(width):
                    lanes[i] += spread[rows[row, left + i]]
            for i in range(width):
                lane = lanes[i]
                base = (left + i) * 8
                for bit in range(8):
                    counts[base + bit] += np.uint32((lane >> np.uint64(8 * bit)) & np.uint64(255))


@_compiled
def _histogram(values: NDArray[np.uint32], bins: NDArray[np.int64]) -> None:
    """Count each value; even and odd places apart, so that equal neighbours need not wait for each other."""
    half = len(bins) // 2
    for i in range(0, len(values) - 1, 2):
        bins[values[i]] += 1
        bins[half + values[i + 1]] += 1
    if len(values) % 2:
        bins[values[-1]] += 1


@intrinsic  # type: ignore[untyped-decorator]
def _popcount(typing_context: Any, word: Any) -> Any:  # noqa: ARG001  (Numba's signature)
    """Bits set in a uint64; LLVM turns it into vector instructions."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@_compiled
def _intersect(
    sets: NDArray[np.uint64], first: int, last: int, start: int, shared: NDArray[np.int64], offset: int
) -> None:
    """shared[i - offset, j - start] = bits in both of sets i and j, for first ≤ i < last and j ≥ start.

    By tiles of words, so that a tile of the rows first..last is read from cache for every j.
    """
    shared[first - offset : last - offset, :] = 0
    for left in range(0, sets.shape[1], TILE_WORDS):
        right = min(left + TILE_WORDS, sets.shape[1])
        for j in range(start, sets.shape[0]):
            for i in range(first, last):
                total = np.uint64(0)
                for word in range(left, right):
                    total += _popcount(sets[i, word] & sets[j, word])
                shared[i - offset, j - start] += np.int64(total)


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel_for(function: Callable[[int, int], None], stop: int, step: int) -> None:
    """Call function(first, last) on consecutive ranges of at most `step` that cover 0..stop, on every core.

    The first exception is raised again; ranges must not write to the same place.
    """
    ranges = [(first, min(first + step, stop)) for first in range(0, stop, step)]
    if len(ranges) <= 1 or cores() == 1:
        for first, last in ranges:
            function(first, last)
        return
    with ThreadPoolExecutor(cores()) as pool:
        for future in [pool.submit(function, first, last) for first, last in ranges]:
            future.result()


def add_bit_counts(rows: NDArray[np.uint8], counts: NDArray[np.uint32]) -> None:
    """Add to counts how many rows have each bit set.

    Args:
        rows: uint8 (row, byte), bit-packed in little bit order.
        counts: uint32 (byte × 8,), changed in place; entry 8·b + k belongs to bit k of byte b.
    """
    columns = rows.shape[1]
    if counts.shape != (columns * 8,) or counts.dtype != np.uint32 or rows.dtype != np.uint8:
        raise ValueError(f"counts must be uint32 ({columns * 8},) for uint8 rows {rows.shape}; got {counts.shape}")
    split = columns if rows.nbytes < MIN_SPLIT_BYTES else -(-columns // cores())
    tiles = -(-max(split, 1) // TILE_BYTES)
    parallel_for(lambda first, last: _add_bits(rows, counts, _SPREAD, first, last), columns, tiles * TILE_BYTES)


def histogram(values: NDArray[np.uint32], largest: int) -> NDArray[np.int64]:
    """How often each of 0..largest occurs.

    Args:
        values: uint32 (n,), none above `largest`.

    Returns:
        int64 (largest + 1,).
    """
    if len(values) and int(values.max()) > largest:
        raise ValueError(f"values must be at most {largest}; one is {values.max()}")
    bins = np.zeros(2 * (largest + 1), dtype=np.int64)
    _histogram(values, bins)
    halves: NDArray[np.int64] = bins.reshape(2, -1).sum(axis=0)
    return halves


def intersection_sizes(sets: NDArray[np.uint64], first: int, last: int) -> NDArray[np.int64]:
    """How many elements sets first..last share with every set from `first` on.

    Args:
        sets: uint64 (set, word), one bit an element.

    Returns:
        int64 (last - first, n - first); the square on the left is symmetric and holds the sizes on its diagonal.
    """
    shared = np.empty((last - first, len(sets) - first), dtype=np.int64)

    def block(begin: int, end: int) -> None:
        _intersect(sets, first + begin, first + end, first, shared, first)

    parallel_for(block, last - first, PAIR_ROWS)
    return shared
