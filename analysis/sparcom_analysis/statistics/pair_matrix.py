"""The value of every pair of instructions, kept: what intervals and tests draw from again and again.

Values are those of `jaccard_blocks` or `correlation_blocks`, filled in as they come, so that the sets are read once and
category means taken from here have the same bits as those taken on the way. Knows neither sets nor experts.

What is drawn from it is summed in fixed point: a value v becomes the whole number round(v · 2^q), with q as large as
lets every sum stay exact, of a row of n pairs in float64 (2^53), of all pairs in int64. Whole numbers add up to the
same in any order, so neither blocks nor cores nor a BLAS change a digit of an interval or of a p. The rounding is at
most 2^-(q + 1): 1.1e-13 for 1,200 instructions and 4.5e-13 for the most that are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.measures.pairs import pair_blocks
from sparcom_analysis.reading.categories import category_codes, category_labels
from sparcom_data.errors import UnsupportedArchiveError

MOST_INSTRUCTIONS = 4096  # 128 MiB of values; 1,200 instructions are 11 MiB. Beyond, fixed point rounds above 1e-12
_ROW_BITS = 53
_SUM_BITS = 63
_CHECKED = 256  # rows checked at once: a comparison of all takes as much memory again

Blocks = Iterable[tuple[slice, slice, NDArray[np.float64]]]
"""Rows, columns and values as `jaccard_blocks` yields them: every pair i ≤ j in one of them."""


@dataclass(frozen=True, slots=True)
class PairMatrix:
    """A value for every pair of n instructions.

    categories: n names, one an instruction. values: float64 (n, n), symmetric, -1 to 1, on the diagonal that of an
    instruction with itself. An instruction without values has a row and a column of NaN; there is no NaN elsewhere.
    """

    categories: Sequence[str]
    values: NDArray[np.float64]

    def __post_init__(self) -> None:
        count = len(self.categories)
        check_kept(count)
        if self.values.shape != (count, count) or self.values.dtype != np.float64:
            raise ValueError(f"values of {count} instructions must be float64 ({count}, {count}): {self.values.shape}")
        defined = self.defined
        for first in range(0, count, _CHECKED):
            rows = slice(first, first + _CHECKED)
            part, known = self.values[rows], defined[rows, None] & defined
            if not np.array_equal(part, self.values[:, rows].T, equal_nan=True):
                raise ValueError("values must be symmetric")
            if (
                not np.array_equal(~np.isnan(part), known)
                or np.abs(part, where=known, out=np.zeros_like(part)).max() > 1
            ):
                raise ValueError("values must be from -1 to 1, and NaN for all pairs of an instruction or for none")

    def __len__(self) -> int:
        return len(self.categories)

    @property
    def labels(self) -> list[str]:
        """c names of categories, in order of first appearance."""
        return category_labels(self.categories)

    @property
    def codes(self) -> NDArray[np.intp]:
        """intp (n,): each instruction's category, an index into `labels`."""
        return category_codes(self.categories)

    @property
    def defined(self) -> NDArray[np.bool_]:
        """bool (n,): instructions that have values."""
        return ~np.isnan(np.diagonal(self.values))

    @property
    def bits(self) -> int:
        """q: binary places of fixed point."""
        return fixed_bits(len(self))

    def blocks(self) -> Iterator[tuple[slice, slice, NDArray[np.float64]]]:
        """The values in the blocks and the order in which they were computed."""
        for rows, columns in pair_blocks(len(self)):
            yield rows, columns, self.values[rows, columns]


def keep_pairs(categories: Sequence[str], blocks: Blocks) -> PairMatrix:
    """Keep the values of all blocks.

    Raises:
        UnsupportedArchiveError: there are more instructions than `MOST_INSTRUCTIONS`.
    """
    check_kept(len(categories))
    values = np.empty((len(categories), len(categories)))
    for rows, columns, block in blocks:
        own = rows == columns  # what is left of the diagonal is not filled in
        values[rows, columns] = np.triu(block) + np.triu(block, 1).T if own else block
        if not own:
            values[columns, rows] = block.T
    return PairMatrix(categories, values)


def check_kept(count: int) -> None:
    """Refuse more instructions than pairs are kept of.

    Raises:
        UnsupportedArchiveError: naming the limit and what to do.
    """
    if count > MOST_INSTRUCTIONS:
        raise UnsupportedArchiveError(
            f"intervals and tests keep every pair of up to {MOST_INSTRUCTIONS} instructions; there are {count}. "
            "Analyse an archive of fewer instructions a category, or without intervals and tests"
        )


def fixed_bits(count: int) -> int:
    """q for sums over the pairs of `count` instructions."""
    return min(_ROW_BITS - count.bit_length(), _SUM_BITS - (count * (count - 1) // 2).bit_length())


def fixed(values: NDArray[np.float64], bits: int) -> NDArray[np.float64]:
    """round(v · 2^bits), still as float64, which holds it exactly; halves to even."""
    rounded: NDArray[np.float64] = np.rint(np.ldexp(values, bits))
    return rounded
