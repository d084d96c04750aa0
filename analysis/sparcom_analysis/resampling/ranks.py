"""Spearman's rank correlation: Pearson's of ranks, ties at the mean of their ranks. Knows nothing of what is ranked.

Ranks are whole numbers when doubled, so that no sum of them is rounded and the result does not depend on their order.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

TIE_DIGITS = 12  # values that agree to so many digits are ties: sums of floats differ in the sixteenth


def doubled_ranks(values: ArrayLike) -> NDArray[np.int64]:
    """int64 (n,): twice the rank of each of n numbers, the least first, 2 for rank 1; ties have their mean."""
    rounded = np.asarray(values, dtype=np.float64).round(TIE_DIGITS)
    ordered = np.sort(rounded)
    below, not_above = ordered.searchsorted(rounded, side="left"), ordered.searchsorted(rounded, side="right")
    ranks: NDArray[np.int64] = (below + not_above + 1).astype(np.int64)
    return ranks


def rank_correlation(left: ArrayLike, right: ArrayLike) -> float | None:
    """-1 to 1; None where one of the two has fewer than two different values."""
    one: list[int] = doubled_ranks(left).tolist()
    other: list[int] = doubled_ranks(right).tolist()
    count, total = len(one), sum(one)  # both add up to n (n + 1)
    spread = [count * sum(rank * rank for rank in ranks) - total * total for ranks in (one, other)]
    if not all(spread):
        return None
    above = count * sum(a * b for a, b in zip(one, other, strict=True)) - total * total
    return max(-1.0, min(1.0, above / math.sqrt(spread[0] * spread[1])))
