"""Spearman's rank correlation from doubled ranks, which are integers, so sums are exact."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

TIE_DIGITS = 12  # values equal to 1e-12 are ties


def doubled_ranks(values: ArrayLike) -> NDArray[np.int64]:
    """Return twice the rank of each of n numbers: int64 (n,), 2 for the smallest; ties share their mean rank."""
    rounded = np.asarray(values, dtype=np.float64).round(TIE_DIGITS)
    ordered = np.sort(rounded)
    return (ordered.searchsorted(rounded, "left") + ordered.searchsorted(rounded, "right") + 1).astype(np.int64)


def rank_correlation(left: ArrayLike, right: ArrayLike) -> float:
    """Return Spearman's rank correlation, -1 to 1; NaN if one side is constant."""
    one, other = (list(map(int, doubled_ranks(side))) for side in (left, right))
    count, total = len(one), sum(one)  # both sides sum to n (n + 1)
    spread = [count * sum(rank * rank for rank in ranks) - total * total for ranks in (one, other)]
    if not all(spread):
        return math.nan
    above = count * sum(a * b for a, b in zip(one, other, strict=True)) - total * total
    return max(-1.0, min(1.0, above / math.sqrt(spread[0] * spread[1])))
