"""The value of every pair of instructions, kept: what intervals and tests draw from again and again.

Values are those of `jaccard_blocks` or `correlation_blocks`, filled in as they come, so that the sets are read once and
category means taken from here have the same bits as those taken on the way. Knows neither sets nor experts.

What is drawn from it is summed in fixed point: a value v becomes the whole number round(v · 2^q), with q as large as
lets every sum stay exact, of a row of n pairs in float64 (2^53), of all pairs in int64. Whole numbers add up to the
same in any order, so neither blocks nor cores nor a BLAS change a digit of an interval or of a p. The rounding is at
most 2^-(q + 1): 1.1e-13 for 1,200 instructions and 4.5e-13 for the most that are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.archive.categories import category_codes, category_labels
from sparcom_analysis.kernels.intersections import Blocks, pair_blocks
from sparcom_data.errors import UnsupportedArchiveError

MOST_INSTRUCTIONS = 4096  # 128 MiB of values; 1,200 instructions are 11 MiB. Beyond, fixed point rounds above 1e-12
_EXACT_FLOAT = 2**53  # whole numbers up to here are exact as float64, in whichever order they are added
_EXACT_INTEGER = 2**63
_ROW_BITS = 53
_SUM_BITS = 63
_CHECKED = 256  # rows checked at once: a comparison of all takes as much memory again


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

    def blocks(self) -> Blocks:
        """Yield the values in the blocks and the order in which they were computed."""
        for rows, columns in pair_blocks(len(self)):
            yield rows, columns, self.values[rows, columns]

    def named(self, categories: Sequence[str]) -> PairMatrix:
        """Return the same values with other groups of instructions."""
        return PairMatrix(categories, self.values)

    def means(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the mean of every two groups, with the pair of an instruction with itself and without: float64 (c, c)
        each, symmetric; NaN where there is no pair with a value."""
        return category_means(self.categories, self.blocks(), np.diagonal(self.values))


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


def category_means(
    categories: Sequence[str], blocks: Blocks, itself: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the means of `PairMatrix.means` without keeping the pairs.

    Args:
        itself: float64 (n,), the value of each instruction with itself.
    """
    codes, count = category_codes(categories), len(category_labels(categories))
    sums, pairs = np.zeros((count, count)), np.zeros((count, count))
    for rows, columns, block in blocks:
        later = np.arange(rows.start, rows.stop)[:, None] < np.arange(columns.start, columns.stop)
        later &= ~np.isnan(block)
        cell = (codes[rows, None] * count + codes[None, columns])[later]
        sums += np.bincount(cell, weights=block[later], minlength=sums.size).reshape(sums.shape)
        pairs += np.bincount(cell, minlength=sums.size).reshape(sums.shape)
    sums, pairs = sums + sums.T, pairs + pairs.T
    known = ~np.isnan(itself)
    own = np.diag(np.bincount(codes[known], weights=itself[known], minlength=count))
    members = np.diag(np.bincount(codes[known], minlength=count))
    return _ratio(sums + own, pairs + members), _ratio(sums, pairs)


def _ratio(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def correlation_blocks(counts: NDArray[np.uint32], tokens: NDArray[np.int64]) -> Blocks:
    """Yield Pearson's r of every two instructions' expert counts, equation 13; NaN if one of them has no variance.

    Counts c = T · f have the same r as frequencies: with N experts of all layers, r = (N Σ c c' − Σ c Σ c') /
    √((N Σ c² − (Σ c)²) (N Σ c'² − (Σ c')²)). Sums and differences are exact.

    Args:
        counts: uint32 (n, layer, expert). tokens: int64 (n,), T, for the error alone.

    Raises:
        UnsupportedArchiveError: an instruction is so long that the sums would not be exact (millions of tokens).
    """
    vectors = counts.reshape(len(counts), -1)
    size, sums = vectors.shape[1], vectors.sum(axis=1, dtype=np.int64)
    largest = max((int(np.square(row, dtype=np.float64).sum()) for row in vectors), default=0)
    if largest >= _EXACT_FLOAT or size * largest >= _EXACT_INTEGER or int(sums.max()) ** 2 >= _EXACT_INTEGER:
        raise UnsupportedArchiveError(
            f"correlations are exact for instructions of up to about a million tokens; the longest here has "
            f"{int(tokens.max())}. Analyse it without such instructions"
        )
    spread = np.array([size * int(np.square(row, dtype=np.int64).sum()) for row in vectors]) - sums * sums
    varied = np.where(spread > 0, spread, np.nan)
    for rows, columns in pair_blocks(len(counts)):
        shared = vectors[rows].astype(np.float64) @ vectors[columns].astype(np.float64).T
        above = size * shared.astype(np.int64) - sums[rows, None] * sums[None, columns]
        yield rows, columns, np.clip(above / np.sqrt(varied[rows, None] * varied[None, columns]), -1.0, 1.0)


def pearson(left: NDArray[np.uint32], right: NDArray[np.uint32]) -> float:
    """Return Pearson's r of two rows of counts; NaN if one has no variance."""
    x, y, size = left.astype(np.int64), right.astype(np.int64), len(left)
    sums = int(x.sum()), int(y.sum())
    spread = [size * int(z @ z) - total * total for z, total in zip((x, y), sums, strict=True)]
    if not all(spread):
        return math.nan
    above = size * int(x @ y) - sums[0] * sums[1]
    squared = above * above / (spread[0] * spread[1])  # whole numbers, rounded once: exactly 1 of a row and itself
    return math.copysign(math.sqrt(squared), above)
