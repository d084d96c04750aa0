"""Decide from the ranked scores whether a router can have picked given experts.

The reference records those scores, including the router's own scoring function, selection bias and groups. Rounding may
swap only experts, or groups, with tied scores. A set of experts is possible if such swaps make it the top-k.

Two probabilities tie if they are within limits.TIE and within the relative difference limits.TIE_SHARE: in the tail of
a softmax every difference is below any absolute tolerance. Other scores (sigmoid, or with a bias) tie within
TIE · max(1, score).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from sparcom_verification.limits import TIE, TIE_SHARE

Scores = NDArray[np.float32]
TopkIds = NDArray[np.int64]
Tolerance = Callable[[float], float]
"""Returns how far below a given score a tied score may lie."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Group-limited routing: only experts of the best `top_k` groups take part. scores: float32 ([T,] groups)."""

    scores: Scores
    top_k: int


@dataclass(frozen=True, slots=True)
class Routing:
    """Routing of T tokens in one MoE layer.

    topk_ids: int64 (T, top_k). scores: float32 (T, experts), as ranked, before groups are masked; None if not visible.
    groups: groups of all tokens. probabilities: whether the scores sum to 1.
    """

    topk_ids: TopkIds
    scores: Scores | None = None
    groups: Groups | None = None
    probabilities: bool = True

    def allows(self, token: int, topk_ids: TopkIds, dtype: str) -> bool:
        """Return whether the scores of a token allow `topk_ids`, int64 (top_k,); False without scores."""
        if self.scores is None:
            return False
        groups = Groups(self.groups.scores[token], self.groups.top_k) if self.groups else None
        return can_be_topk(self.scores[token], topk_ids, groups, tolerance_of(dtype, self.probabilities))


def tolerance_of(dtype: str, probabilities: bool = True) -> Tolerance:
    """Return the tolerance for a model's dtype; 0 if the dtype has no limit."""
    tie, share = TIE.get(dtype, 0.0), TIE_SHARE.get(dtype, 0.0)
    return lambda score: min(tie, share * score) if probabilities else tie * max(1.0, abs(score))


def can_be_topk(scores: Scores, topk_ids: TopkIds, groups: Groups | None, tolerance: Tolerance) -> bool:
    """Return whether `topk_ids`, int64 (top_k,), can be the top-k of one token's scores, float32 (experts,).

    Tied experts and tied groups may swap. Out-of-range and repeated ids are never a top-k.
    """
    if len(topk_ids) == 0 or topk_ids.min() < 0 or topk_ids.max() >= len(scores):
        return False
    inside = np.zeros(len(scores), dtype=bool)
    inside[topk_ids] = True
    if inside.sum() != len(topk_ids):
        return False
    lowest = float(scores[inside].min())
    for candidates in _candidates(len(scores), groups, tolerance):
        best = float(scores[candidates & ~inside].max(initial=-np.inf))
        if candidates[inside].all() and (best <= lowest or best - lowest <= tolerance(best)):
            return True
    return False


def _candidates(experts: int, groups: Groups | None, tolerance: Tolerance) -> Iterator[NDArray[np.bool_]]:
    """Yield every set of experts that may take part, bool (experts,); several if groups tie."""
    if groups is None:
        yield np.ones(experts, dtype=bool)
        return
    last = float(np.sort(groups.scores)[-groups.top_k])
    tied = np.abs(groups.scores - last) <= tolerance(last)
    sure = np.flatnonzero((groups.scores > last) & ~tied)
    for taken in combinations(np.flatnonzero(tied).tolist(), groups.top_k - len(sure)):
        allowed = np.zeros(len(groups.scores), dtype=bool)
        allowed[[*sure, *taken]] = True
        yield allowed.repeat(experts // len(groups.scores))
