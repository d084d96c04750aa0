"""One matrix over categories computed in two ways, plain and matched, and how far the picture changes between them.

Knows nothing of what the values are. A cell without a value (NaN) in one of the two is in no comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.statistics.bootstrap import Interval
from sparcom_analysis.statistics.ranks import rank_correlation

LEAST_CELLS = 3  # two cells are either in the same order or not


@dataclass(frozen=True, slots=True)
class Change:
    """How far a cell of a matrix over categories moved: row and column are indices, row ≤ column."""

    row: int
    column: int
    value: float


@dataclass(frozen=True, slots=True)
class MatrixPairIntervals:
    """Intervals of every cell, (c, c) each, from the same draws of instructions."""

    plain: Interval
    matched: Interval
    difference: Interval


@dataclass(frozen=True, slots=True)
class MatrixPair:
    """One measure plain and matched, over the same instructions.

    categories: c names. plain, matched: float64 (c, c), symmetric; NaN where there is no pair. intervals: None where
    none were drawn.
    """

    categories: Sequence[str]
    plain: NDArray[np.float64]
    matched: NDArray[np.float64]
    intervals: MatrixPairIntervals | None = None

    @property
    def difference(self) -> NDArray[np.float64]:
        """float64 (c, c): matched minus plain."""
        return self.matched - self.plain

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's, over the cells of two different categories; None where fewer than three have both values, or all
        of one matrix are the same."""
        above = np.triu_indices(len(self.categories), 1)
        known = ~np.isnan(self.difference[above])
        if known.sum() < LEAST_CELLS:
            return None
        return rank_correlation(self.plain[above][known], self.matched[above][known])

    @property
    def largest_change(self) -> Change | None:
        """The cell on or above the diagonal that differs most, the first of equals; None where no cell has values."""
        rows, columns = np.triu_indices(len(self.categories))
        moved = np.abs(self.difference[rows, columns])
        if np.isnan(moved).all():
            return None
        at = int(np.nanargmax(moved))
        row, column = int(rows[at]), int(columns[at])
        return Change(row, column, float(self.difference[row, column]))

    @property
    def mean_change(self) -> float | None:
        """The mean difference of the cells on and above the diagonal: how far the level moves; None where none has
        values."""
        moved = self.difference[np.triu_indices(len(self.categories))]
        moved = moved[~np.isnan(moved)]
        return float(moved.mean()) if len(moved) else None

    @property
    def compared_rows(self) -> int:
        """Rows with a value on the diagonal and one beside it: those that `diagonal_largest` is counted of."""
        known = ~np.isnan(self.difference)
        return int((known.diagonal() & (known.sum(axis=1) > 1)).sum())

    @property
    def diagonal_largest(self) -> tuple[int, int]:
        """In how many of these rows the diagonal is larger than every other value: plain, and matched."""
        known = ~np.isnan(self.difference)
        return _largest(np.where(known, self.plain, np.nan)), _largest(np.where(known, self.matched, np.nan))


def _largest(matrix: NDArray[np.float64]) -> int:
    others = np.where(np.isnan(matrix) | np.eye(len(matrix), dtype=bool), -np.inf, matrix).max(axis=1, initial=-np.inf)
    return int((np.isfinite(others) & (matrix.diagonal() > others)).sum())
