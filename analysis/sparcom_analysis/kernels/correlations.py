"""Pearson correlations of all pairs of count vectors, in blocks, from exact sums."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.kernels.intersections import Blocks, pair_blocks
from sparcom_data.errors import UnsupportedArchiveError


def correlation_blocks(counts: NDArray[np.uint32], tokens: NDArray[np.int64]) -> Blocks:
    """Yield Pearson's r of the expert counts of each pair of instructions, equation 13; NaN if one is constant.

    Counts c = T · f have the same r as frequencies: with N experts of all layers, r = (N Σ c c' − Σ c Σ c') /
    √((N Σ c² − (Σ c)²) (N Σ c'² − (Σ c')²)). Sums and differences are exact.

    Args:
        counts: uint32 (n, layer, expert). tokens: int64 (n,), T, used only in the error.

    Raises:
        UnsupportedArchiveError: an instruction is too long for exact sums (millions of tokens).
    """
    vectors = counts.reshape(len(counts), -1)
    size, sums = vectors.shape[1], vectors.sum(axis=1, dtype=np.int64)
    largest = max((int(np.square(row, dtype=np.float64).sum()) for row in vectors), default=0)
    if largest >= 2**53 or size * largest >= 2**63 or int(sums.max()) ** 2 >= 2**63:
        raise UnsupportedArchiveError(
            f"correlations are exact for instructions of up to about a million tokens; the longest here has "
            f"{int(tokens.max())}. Leave such instructions out"
        )
    spread = np.array([size * int(np.square(row, dtype=np.int64).sum()) for row in vectors]) - sums * sums
    varied = np.where(spread > 0, spread, np.nan)
    for rows, columns in pair_blocks(len(counts)):
        shared = vectors[rows].astype(np.float64) @ vectors[columns].astype(np.float64).T
        above = size * shared.astype(np.int64) - sums[rows, None] * sums[None, columns]
        yield rows, columns, np.clip(above / np.sqrt(varied[rows, None] * varied[None, columns]), -1.0, 1.0)


def pearson(left: NDArray[np.uint32], right: NDArray[np.uint32]) -> float:
    """Return Pearson's r of two rows of counts; NaN if one is constant."""
    x, y, size = left.astype(np.int64), right.astype(np.int64), len(left)
    sums = int(x.sum()), int(y.sum())
    spread = [size * int(z @ z) - total * total for z, total in zip((x, y), sums, strict=True)]
    if not all(spread):
        return math.nan
    above = size * int(x @ y) - sums[0] * sums[1]
    squared = above * above / (spread[0] * spread[1])  # integers, rounded once, so identical rows give exactly 1
    return math.copysign(math.sqrt(squared), above)
