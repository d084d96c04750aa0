"""The loops that numpy is too slow for, compiled by Numba: ranking, selecting, intersecting; and what compiles them.

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
TILE_WORDS = 1024  # words of a set handled at once: 8 KiB a set
PAIR_ROWS = 16  # sets of one side of a block of pairs: 128 KiB of tiles, in the second-level cache
PAIR_COLUMNS = 32  # sets of the other side that one call compares them with
MIN_SPLIT_BYTES = 4 << 20  # below this, starting threads costs more than it gains


def compiled(function: F) -> F:
    """Compile on first call and keep the machine code on disk where a folder can be written."""
    try:
        return njit(nogil=True, cache=True)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # Numba: "no locator available": read-only installation and no writable home
        return njit(nogil=True)(function)  # type: ignore[no-any-return]


def _spread_table() -> NDArray[np.uint64]:
    """uint64 (256,): byte k of entry b is bit k of b, so that adding entries adds eight counters at once."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return np.ascontiguousarray(bits).view(np.dtype("<u8"))[:, 0].astype(np.uint64)


SPREAD = _spread_table()


@compiled
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


@compiled
def _intersect(
    left: NDArray[np.uint64],
    right: NDArray[np.uint64],
    rows: tuple[int, int],
    columns: tuple[int, int],
    shared: NDArray[np.int64],
) -> None:
    """shared[i, j] = bits in both of left[i] and right[j], for i and j in the given ranges.

    By tiles of words, so that a tile of the rows is read from cache for every j.
    """
    shared[rows[0] : rows[1], columns[0] : columns[1]] = 0
    for begin in range(0, left.shape[1], TILE_WORDS):
        end = min(begin + TILE_WORDS, left.shape[1])
        for j in range(columns[0], columns[1]):
            one = right[j, begin:end]
            for i in range(rows[0], rows[1]):
                other = left[i, begin:end]  # a view of its own: indexed in two dimensions the loop is no vector loop
                total = np.uint64(0)
                for word in range(other.shape[0]):
                    total += _popcount(one[word] & other[word])
                shared[i, j] += np.int64(total)


@compiled
def _pack(
    counts: NDArray[np.uint32],
    least: np.uint32,
    packed: NDArray[np.uint8],
    sizes: NDArray[np.int64],
    first: int,
    last: int,
) -> None:
    """Set the bit of every count of layers first..last that is at least `least`, and count the bits of each layer."""
    for layer in range(first, last):
        total = 0
        values, bytes_ = counts[layer], packed[layer]
        for column in range(bytes_.shape[0]):
            byte = 0
            for bit in range(8):
                chosen = int(values[column * 8 + bit] >= least)
                byte |= chosen << bit
                total += chosen
            bytes_[column] = byte
        sizes[layer] = total


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel_for(function: Callable[[int, int], None], stop: int, step: int) -> None:
    """Call function(first, last) on consecutive ranges of at most `step` that cover 0..stop, on every core.

    The first exception is raised again; ranges must not write to the same place.
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
    """How often each of 0..largest occurs.

    Args:
        values: uint32 (n,), none above `largest`.

    Returns:
        int64 (largest + 1,).
    """
    if len(values) and int(values.max()) > largest:
        raise ValueError(f"values must be at most {largest}; one is {values.max()}")
    part = max(-(-len(values) // cores()), MIN_SPLIT_BYTES // 8, 16 * (largest + 1))
    bins = np.zeros((-(-len(values) // part), 2 * (largest + 1)), dtype=np.int64)
    parallel_for(lambda first, last: _histogram(values[first:last], bins[first // part]), len(values), part)
    halves: NDArray[np.int64] = bins.sum(axis=0).reshape(2, -1).sum(axis=0)
    return halves


def pack_at_least(counts: NDArray[np.uint32], least: int, packed: NDArray[np.uint8], sizes: NDArray[np.int64]) -> None:
    """Select what is counted often enough.

    Args:
        counts: uint32 (layer, 8 × byte).
        least: the count from which an entry belongs.
        packed: uint8 (layer, byte), written: bit k of byte b is entry 8·b + k, as in `numpy.packbits`, little order.
        sizes: int64 (layer,), written: entries that belong.
    """
    layers, columns = packed.shape
    if counts.shape != (layers, columns * 8) or counts.dtype != np.uint32 or sizes.shape != (layers,):
        raise ValueError(f"counts must be uint32 ({layers}, {columns * 8}) for bytes {packed.shape}: {counts.shape}")
    split = layers if counts.nbytes < MIN_SPLIT_BYTES else -(-layers // cores())
    parallel_for(lambda a, b: _pack(counts, np.uint32(least), packed, sizes, a, b), layers, max(1, split))


def intersection_sizes(
    left: NDArray[np.uint64], right: NDArray[np.uint64], *, later_only: bool = False
) -> NDArray[np.int64]:
    """How many elements each set on the left shares with each on the right.

    Args:
        left: uint64 (a, word), right: uint64 (b, word), one bit an element.
        later_only: right are the sets of left, and only pairs of a set with itself or a later one are wanted; what is
            not is 0 or right.

    Returns:
        int64 (a, b).
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
