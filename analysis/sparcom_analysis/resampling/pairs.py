"""Similarity or correlation of every pair of instructions, the input of means, intervals and permutation tests.

Up to 128 MiB (4,096 instructions), values are in memory; larger matrices are in an unnamed temporary file, read by
contiguous rows. Undefined pairs are NaN and enter neither numerators nor denominators. The Jaccard index of two empty
sets is undefined, as is the correlation of constant expert counts.

Resampled sums use integers: a value v becomes round(v · 2^q). q is as large as keeps every sum exact, in float64 over
one row (2^53) and in int64 over all pairs (2^63). Intervals and p-values thus do not depend on block size, number of
cores or BLAS. The rounding error of a value is at most 2^-(q + 1): 1.1e-13 for 1,200 instructions, 4.5e-13 for 4,096,
1.8e-12 for 8,000 and 2.9e-11 for 32,768.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.archive.categories import Grouped, category_codes, category_labels
from sparcom_analysis.errors import NotComputableError
from sparcom_analysis.kernels.intersections import Blocks, pair_blocks
from sparcom_data.errors import StorageError

Floats = NDArray[np.float64]

MAX_INSTRUCTIONS = 32_768  # 8 GiB of values
MEMORY_BYTES = 128 << 20
STRIP_ROWS = 256  # rows read at once


@dataclass(frozen=True, eq=False)
class PairMatrix(Grouped):
    """One value for every pair of n instructions.

    Attributes:
        categories: n strings, the group of each instruction.
        values: float64 (n, n), symmetric, -1 to 1; NaN if undefined. The diagonal holds self pairs.
    """

    categories: Sequence[str]
    values: Floats

    def __post_init__(self) -> None:
        count, values = len(self.categories), self.values
        if values.shape != (count, count) or values.dtype != np.float64:
            raise ValueError(f"values of {count} instructions must be float64 ({count}, {count}); got {values.shape}")
        for first in range(0, count if values.nbytes <= MEMORY_BYTES else 0, STRIP_ROWS):
            rows = slice(first, first + STRIP_ROWS)
            if not np.array_equal(values[rows], values[:, rows].T, equal_nan=True):
                raise ValueError("values must be symmetric")
            if np.fmax.reduce(np.abs(values[rows]), axis=None, initial=0) > 1:
                raise ValueError("values must be from -1 to 1, or NaN for an undefined pair")

    def __len__(self) -> int:
        return len(self.categories)

    @cached_property
    def unknown(self) -> NDArray[np.int64]:
        """Undefined pairs per instruction: int64 (n,)."""
        strips = [np.isnan(self.values[k : k + STRIP_ROWS]).sum(axis=1) for k in range(0, len(self), STRIP_ROWS)]
        return np.concatenate([np.zeros(0, dtype=np.int64), *strips])

    @property
    def defined(self) -> NDArray[np.bool_]:
        """Instructions with at least one defined pair: bool (n,). Tests exclude the others."""
        return self.unknown < len(self)

    def with_values(self) -> PairMatrix:
        """Return the pairs of the `defined` instructions."""
        return self if self.defined.all() else self.take(np.flatnonzero(self.defined))

    def take(self, places: NDArray[np.intp]) -> PairMatrix:
        """Return the pairs of the instructions at these indices: intp (m,)."""
        values = _storage(len(places))
        for first in range(0, len(places), STRIP_ROWS):
            values[first : first + STRIP_ROWS] = self.values[places[first : first + STRIP_ROWS]][:, places]
        return PairMatrix([self.categories[place] for place in places], values)

    def means(self) -> tuple[Floats, Floats]:
        """Return the mean for each pair of groups, with and without self pairs: float64 (c, c) each; NaN: undefined."""
        blocks = ((rows, columns, self.values[rows, columns]) for rows, columns in pair_blocks(len(self)))
        return category_means(self.categories, blocks)[:2]


def keep_pairs(categories: Sequence[str], blocks: Blocks) -> PairMatrix:
    """Collect the values of all blocks.

    Raises:
        NotComputableError: there are more instructions than `MAX_INSTRUCTIONS`.
        StorageError: the temporary file cannot be written.
    """
    if (count := len(categories)) > MAX_INSTRUCTIONS:
        raise NotComputableError(
            f"Intervals and tests support up to {MAX_INSTRUCTIONS:,} instructions; there are {count:,}. Analyze fewer "
            "instructions, with `sel` or in a separate archive."
        )
    values = _storage(count)
    for rows, columns, block in blocks:
        values[columns, rows] = block.T
        values[rows, columns] = np.triu(block) + np.triu(block, 1).T if rows == columns else block  # filled above only
    return PairMatrix(categories, values)


def _storage(count: int) -> Floats:
    """Return uninitialized float64 (count, count): an array, or a memory-mapped temporary file."""
    size = 8 * count * count
    if size <= MEMORY_BYTES:
        return np.empty((count, count))
    try:
        with tempfile.TemporaryFile(prefix=".sparcom-pairs-") as file:
            # Writing to a mapped sparse file kills the process if the disk is full.
            getattr(os, "posix_fallocate", lambda number, _first, length: os.truncate(number, length))(
                file.fileno(), 0, size
            )
            return np.asarray(np.memmap(file, np.float64, "r+", shape=(count, count)))
    except OSError as error:
        raise StorageError(
            f"the pairs of {count:,} instructions need a temporary file of {size / 2**30:,.1f} GiB: {error}. Free "
            "disk space, or set TMPDIR"
        ) from error


def fixed_bits(count: int) -> int:
    """Return q, the number of binary places for exact sums over the pairs of `count` instructions."""
    return min(53 - count.bit_length(), 63 - (count * (count - 1) // 2).bit_length())


def fixed(values: Floats, bits: int) -> Floats:
    """Return round(v · 2^bits) as float64, which holds it exactly; halves go to even."""
    return np.asarray(np.rint(values * 2.0**bits))


def category_means(categories: Sequence[str], blocks: Blocks) -> tuple[Floats, Floats, Floats]:
    """Return `PairMatrix.means` and the value of each self pair (n,), without storing all pairs."""
    codes, count = category_codes(categories), len(category_labels(categories))
    sums, pairs, itself = np.zeros((count, count)), np.zeros((count, count)), np.empty(len(codes))
    for rows, columns, block in blocks:
        if rows == columns:
            itself[rows] = np.diagonal(block)
        later = np.arange(rows.start, rows.stop)[:, None] < np.arange(columns.start, columns.stop)
        later &= ~np.isnan(block)
        cell = (codes[rows, None] * count + codes[None, columns])[later]
        sums += np.bincount(cell, weights=block[later], minlength=sums.size).reshape(sums.shape)
        pairs += np.bincount(cell, minlength=sums.size).reshape(sums.shape)
    sums, pairs = sums + sums.T, pairs + pairs.T
    known = ~np.isnan(itself)
    own = np.diag(np.bincount(codes[known], weights=itself[known], minlength=count))
    members = np.diag(np.bincount(codes[known], minlength=count))
    return ratio(sums + own, pairs + members), ratio(sums, pairs), itself


def ratio(sums: Floats, counts: NDArray[Any]) -> Floats:
    """Return sums / counts; NaN where a count is not positive."""
    return np.asarray(np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0))
