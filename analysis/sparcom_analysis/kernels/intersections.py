"""Jaccard indices of all pairs of sets, in blocks of pairs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.kernels.bitsets import Bitsets
from sparcom_analysis.kernels.compiled import intersection_sizes

PAIRED = 128  # instructions per side of a block; constant, because float sums depend on their order

Blocks = Iterator[tuple[slice, slice, NDArray[np.float64]]]
"""Rows, columns and float64 (rows, columns); each pair i ≤ j is in exactly one block."""


def pair_blocks(count: int) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of blocks; each pair i ≤ j of `count` instructions is in exactly one block."""
    for first in range(0, count, PAIRED):
        for begin in range(first, count, PAIRED):
            yield slice(first, min(first + PAIRED, count)), slice(begin, min(begin + PAIRED, count))


def jaccard(shared: NDArray[np.int64], left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return |A ∩ B| / |A ∪ B| from broadcastable sizes; NaN for two empty sets."""
    union = left + right - shared
    index: NDArray[np.float64] = np.divide(shared, union, out=np.full(union.shape, np.nan), where=union > 0)
    return index


def jaccard_blocks(sets: Bitsets, sizes: NDArray[np.int64]) -> Blocks:
    """Yield the Jaccard index of each pair of sets. Blocks on the diagonal hold only entries i ≤ j.

    Args:
        sizes: int64 (n,), elements per set.
    """
    held, block = slice(0, 0), sets.rows(0, 0)
    for rows, columns in pair_blocks(len(sets)):
        if rows != held:
            held, block = rows, sets.rows(rows.start, rows.stop)
        others = block if rows == columns else sets.rows(columns.start, columns.stop)
        shared = intersection_sizes(block, others, later_only=rows == columns)
        yield rows, columns, jaccard(shared, sizes[rows, None], sizes[None, columns])
