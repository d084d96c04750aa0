"""Means over pairs of instructions, by their categories: what equations 10 and 14 share.

Takes values of pairs a block of rows at a time and keeps sums alone. A pair without a value (NaN) is in no mean. Knows
nothing of what the values are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.reading.categories import category_codes, category_labels

PAIRED = 128  # instructions on a side of a block: fixed, since sums of floats depend on their order


def pair_blocks(count: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of blocks that hold every pair i ≤ j of `count` instructions in one of them."""
    for first in range(0, count, PAIRED):
        for begin in range(first, count, PAIRED):
            yield slice(first, min(first + PAIRED, count)), slice(begin, min(begin + PAIRED, count))


class PairMeans:
    """Sums and numbers of the pairs of two different instructions, for every two of c categories."""

    def __init__(self, categories: Sequence[str]) -> None:
        self.labels = category_labels(categories)
        self._codes = category_codes(categories)
        self._sums = np.zeros((len(self.labels), len(self.labels)))
        self._pairs = np.zeros_like(self._sums)

    def add(self, rows: slice, columns: slice, block: NDArray[np.float64]) -> None:
        """Add the pairs i < j of a block: float64 (rows, columns), the value of each two."""
        later = np.arange(rows.start, rows.stop)[:, None] < np.arange(columns.start, columns.stop)
        later &= ~np.isnan(block)
        where = (self._codes[rows, None] * len(self.labels) + self._codes[None, columns])[later]
        size = self._sums.size
        self._sums += np.bincount(where, weights=block[later], minlength=size).reshape(self._sums.shape)
        self._pairs += np.bincount(where, minlength=size).reshape(self._sums.shape)

    def without_self(self) -> NDArray[np.float64]:
        """float64 (c, c): means over pairs of two instructions, both orders of a pair counted; NaN where none is."""
        sums, pairs = self._sums + self._sums.T, self._pairs + self._pairs.T
        return np.divide(sums, pairs, out=np.full_like(sums, np.nan), where=pairs > 0)

    def with_self(self, itself: NDArray[np.float64]) -> NDArray[np.float64]:
        """float64 (c, c): the same with each instruction paired with itself, whose value is given: float64 (n,), NaN
        where it has none."""
        known = ~np.isnan(itself)
        own = np.diag(np.bincount(self._codes[known], weights=itself[known], minlength=len(self.labels)))
        members = np.diag(np.bincount(self._codes[known], minlength=len(self.labels)))
        sums, pairs = self._sums + self._sums.T + own, self._pairs + self._pairs.T + members
        return np.divide(sums, pairs, out=np.full_like(sums, np.nan), where=pairs > 0)
