"""Numba loops that NumPy is too slow for, with the compile decorator and thread helper for all kernels.

Compiled functions release the GIL and run on Python threads (`parallel_for`). They do not use Numba's own parallelism,
because its default threading layer ends the process if two threads enter it at once.
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

MAX_BYTE_COUNT = 255  # largest value of a one-byte counter
TILE_WORDS = 1024  # words of a set per tile: 8 KiB per set
PAIR_ROWS = 16  # left sets per block of pairs: 128 KiB of tiles, which fit into L2 cache
PAIR_COLUMNS = 32  # right sets per block of pairs
MIN_SPLIT_BYTES = 4 << 20  # below this size, threads cost more than they gain


def compiled(function: F) -> F:
    """Compile a function on its first call; cache the machine code on disk if a folder is writable."""
    try:
        return njit(nogil=True, cache=True)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # Numba: "no locator available": read-only installation and no writable home
        return njit(nogil=True)(function)  # type: ignore[no-any-return]


_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
SPREAD: NDArray[np.uint64] = np.ascontiguousarray(_BITS).view(np.dtype("<u8"))[:, 0].astype(np.uint64)
"""uint64 (256,): byte k of entry b is bit k of b. Adding entries adds eight counters at once."""


@compiled
def widen(lanes: NDArray[np.uint64], counts: NDArray[np.uint32]) -> None:
    """Add lanes (byte,) of eight byte counters to counts (8 × byte,)."""
    for i in range(lanes.shape[0]):
        lane = lanes[i]
        if lane:
            for bit in range(8):
                counts[i * 8 + bit] += np.uint32((lane >> np.uint64(8 * bit)) & np.uint64(255))


@compiled
def _histogram(values: NDArray[np.uint32], bins: NDArray[np.int64]) -> None:
    """Count each value. Even and odd indices use separate bins, so that equal neighbors do not stall each other."""
    half = len(bins) // 2
    for i in range(0, len(values) - 1, 2):
        bins[values[i]] += 1
        bins[half + values[i + 1]] += 1
    if len(values) % 2:
        bins[values[-1]] += 1


@intrinsic  # type: ignore[untyped-decorator]
def _popcount(typing_context: Any, word: Any) -> Any:  # noqa: ARG001  (Numba's signature)
    """Return the number of bits set in a uint64; LLVM vectorizes it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@compiled
def _intersect(
    left: NDArray[np.uint64],
    right: NDArray[np.uint64],
    rows: tuple[int, int],
    columns: tuple[int, int],
    shared: NDArray[np.int64],
) -> None:
    """Write the bits common to left[i] and right[j] to shared[i, j], for i in rows and j in columns."""
    shared[rows[0] : rows[1], columns[0] : columns[1]] = 0
    for begin in range(0, left.shape[1], TILE_WORDS):  # the tile of the rows stays in cache for every j
        end = min(begin + TILE_WORDS, left.shape[1])
        for j in range(columns[0], columns[1]):
            one = right[j, begin:end]
            for i in range(rows[0], rows[1]):
                other = left[i, begin:end]  # one view per row; Numba does not vectorize a loop with two indices
                total = np.uint64(0)
                for word in range(other.shape[0]):
                    total += _popcount(one[word] & other[word])
                shared[i, j] += np.int64(total)


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def per_core(entries: int, size: int) -> int:
    """Return the number of `entries` per core, or all of them if `size` in bytes is too small to split."""
    return max(1, entries if size < MIN_SPLIT_BYTES else -(-entries // cores()))


def parallel_for(function: Callable[[int, int], None], stop: int, step: int) -> None:
    """Call function(first, last) on consecutive ranges of at most `step` that cover 0..stop, on all cores.

    Re-raises the first exception. Ranges must not write to the same memory.
    """
    ranges = [(first, min(first + step, stop)) for first in range(0, stop, step)]
    workers = min(cores(), len(ranges))
    if workers <= 1:
        for first, last in ranges:
            function(first, last)
        return
    with ThreadPoolExecutor(workers) as pool:
        for future in [pool.submit(function, first, last) for first, last in ranges]:
            future.result()


def histogram(values: NDArray[np.uint32], largest: int) -> NDArray[np.int64]:
    """Return the frequency of each of 0..largest: int64 (largest + 1,). Twice as fast as `numpy.bincount`.

    Args:
        values: uint32 (n,), at most `largest`.
    """
    if len(values) and int(values.max()) > largest:
        raise ValueError(f"values must be at most {largest}; the largest is {values.max()}")
    part = max(-(-len(values) // cores()), MIN_SPLIT_BYTES // 8, 16 * (largest + 1))
    bins = np.zeros((-(-len(values) // part), 2 * (largest + 1)), dtype=np.int64)
    parallel_for(lambda first, last: _histogram(values[first:last], bins[first // part]), len(values), part)
    halves: NDArray[np.int64] = bins.sum(axis=0).reshape(2, -1).sum(axis=0)
    return halves


def pack_at_least(counts: NDArray[np.uint32], least: int, packed: NDArray[np.uint8], sizes: NDArray[np.int64]) -> None:
    """Select the entries with a count of at least `least`.

    Args:
        counts: uint32 (layer, 8 × byte).
        packed: uint8 (layer, byte), written: bit k of byte b is entry 8·b + k, as in `numpy.packbits`, little order.
        sizes: int64 (layer,), written: selected entries per layer.
    """
    packed[...] = np.packbits(counts >= least, axis=1, bitorder="little")
    np.bitwise_count(packed).sum(axis=1, out=sizes)


def intersection_sizes(
    left: NDArray[np.uint64], right: NDArray[np.uint64], *, later_only: bool = False
) -> NDArray[np.int64]:
    """Return the size of the intersection of each left set with each right set: int64 (a, b).

    Args:
        left: uint64 (a, word), right: uint64 (b, word); one bit per element.
        later_only: compute only pairs i ≤ j, if `right` equals `left`; other entries may be 0.
    """
    shared = np.zeros((len(left), len(right)), dtype=np.int64)
    across = max(1, -(-len(right) // PAIR_COLUMNS))

    def tile(first: int, last: int) -> None:
        for number in range(first, last):
            row, column = number // across * PAIR_ROWS, number % across * PAIR_COLUMNS
            stop = min(column + PAIR_COLUMNS, len(right))
            begin = max(column, row) if later_only else column
            if begin < stop:
                _intersect(left, right, (row, min(row + PAIR_ROWS, len(left))), (begin, stop), shared)

    parallel_for(tile, -(-len(left) // PAIR_ROWS) * across, 1)
    return shared
