"""Can a router have picked these experts? Judged on the scores that it ranks.

The reference shows those scores (`reference_ranking`): with the router's own scoring function, selection bias and
groups. Rounding may swap two experts whose scores tie, and two groups whose scores tie; it may not swap any others. A
set of experts is possible where swapping tied experts or groups makes it the top-k of the scores.

Two probabilities tie where they are within TIE of one another and within the share TIE_SHARE of the larger: far down a
softmax everything is within any absolute tolerance, however sure the router was. Other scores (sigmoid, or anything
plus a bias) tie within TIE times the larger of 1 and their size.
It takes arrays and does not depend on a model or an archive.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]

TIE = {"float32": 1e-6, "float16": 8e-3, "bfloat16": 6.6e-2}
# In 16 bits: what leaves at most 1 in 100 top-k sets of eleven tiny families unexplained between transformers in that
# type and in float32 (0.5 % the most), and passes the fewest sets with a wrong expert (8 % the most; DECISIONS.md).
TIE_SHARE = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 0.3}


@dataclass(frozen=True, slots=True)
class Groups:
    """Group-limited routing: the experts are `len(scores)` runs of equal length; the best `chosen` runs take part.

    scores: float32 (groups,) of one token, or (T, groups), as the router ranks them.
    """

    scores: Scores
    chosen: int

    def of_token(self, token: int) -> Groups:
        """The groups of one token: scores float32 (groups,)."""
        return Groups(self.scores[token], self.chosen)


@dataclass(frozen=True, slots=True)
class Choice:
    """The top-k experts of one MoE layer over a prompt of T tokens.

    expert: int64 (T, top_k). scores: float32 (T, experts), the scores that the router ranks, before groups are masked;
    None where the reference does not show them. groups: scores float32 (T, groups), for group-limited routing.
    probabilities: the scores are a softmax over all experts.
    """

    expert: NDArray[np.int64]
    scores: Scores | None = None
    groups: Groups | None = None
    probabilities: bool = True

    def allows(self, token: int, chosen: NDArray[np.int64], dtype: str) -> bool:
        """Return whether the scores of a token allow `chosen`, int64 (top_k,). Never, where there are no scores."""
        if self.scores is None:
            return False
        groups = self.groups.of_token(token) if self.groups else None
        return could_be_chosen(self.scores[token], chosen, groups, Tolerance.of(dtype, self.probabilities))


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How near two scores are that tie. share: None where the scores are no probabilities."""

    tie: float = TIE["float32"]
    share: float | None = TIE_SHARE["float32"]

    @classmethod
    def of(cls, dtype: str, probabilities: bool = True) -> Tolerance:
        """Return the tolerance for a model's dtype; 0 for a dtype that is not in the tables."""
        return cls(TIE.get(dtype, 0.0), TIE_SHARE.get(dtype, 0.0) if probabilities else None)

    def near(self, larger: float) -> float:
        """Return how far below `larger` a score may lie that ties with it."""
        if self.share is None:
            return self.tie * max(1.0, abs(larger))
        return min(self.tie, self.share * larger)


def could_be_chosen(scores: Scores, chosen: NDArray[np.int64], groups: Groups | None, tolerance: Tolerance) -> bool:
    """Return whether `chosen` is the top-k of the scores, where tied experts and tied groups may swap.

    Args:
        scores: float32 (experts,), of one token.
        chosen: int64 (top_k,). Ids of no expert and ids that repeat are never a top-k.
        groups: of the same token, for group-limited routing.
        tolerance: which scores tie.
    """
    inside = np.zeros(len(scores), dtype=bool)
    if len(chosen) == 0 or chosen.min() < 0 or chosen.max() >= len(scores):
        return False
    inside[chosen] = True
    if inside.sum() != len(chosen):
        return False
    return any(
        not (inside & ~allowed).any() and _largest(scores, inside, allowed & ~inside, tolerance)
        for allowed in _allowed(len(scores), groups, tolerance)
    )


def _largest(scores: Scores, inside: NDArray[np.bool_], outside: NDArray[np.bool_], tolerance: Tolerance) -> bool:
    if not outside.any():
        return True
    best = float(scores[outside].max())
    return best - float(scores[inside].min()) <= tolerance.near(best)


def _allowed(experts: int, groups: Groups | None, tolerance: Tolerance) -> Iterator[NDArray[np.bool_]]:
    """Yield every set of experts, bool (experts,), that the top-k may come from: several where groups tie."""
    if groups is None:
        yield np.ones(experts, dtype=bool)
        return
    best = groups.scores
    last = float(np.sort(best)[-groups.chosen])
    near = np.abs(best - last) <= tolerance.near(last)
    sure = np.flatnonzero((best > last) & ~near)
    for taken in combinations(np.flatnonzero(near).tolist(), groups.chosen - len(sure)):
        allowed = np.zeros(len(best), dtype=bool)
        allowed[[*sure, *taken]] = True
        yield allowed.repeat(experts // len(best))
