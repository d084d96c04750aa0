"""Could a router have chosen these experts? Two that score alike may change places by rounding, any others may not.

Scores are the softmax of the router's logits over all experts, in float32. Two tie where they are within `tie` of one
another and within a share TIE_SHARE of the larger: far down the softmax everything is within any absolute tolerance,
however sure the router was. A choice is explained where swapping tied experts, or tied groups where the choice is by
group (the groups with the largest maxima, then the experts with the largest scores in them), makes it the reference's.
Knows arrays, no model and no archive.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]

# Units of rounding that two scores may be apart: 1e-6 in float32, 0.066 in bfloat16.
TIE = {"float32": 1e-6, "float16": 8e-3, "bfloat16": 6.6e-2}
TIE_SHARE = {"float32": 1e-3, "float16": 1.0, "bfloat16": 1.0}
NORMALISED = 1e-5


@dataclass(frozen=True, slots=True)
class Groups:
    """Choice by group: the experts are cut into `count` runs, of which `chosen` take part."""

    count: int
    chosen: int


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How near two scores are that tie."""

    tie: float = TIE["float32"]
    share: float = TIE_SHARE["float32"]

    @classmethod
    def of(cls, dtype: str) -> Tolerance:
        """That of a model's dtype; none for one that is not in the tables."""
        return cls(TIE.get(dtype, 0.0), TIE_SHARE.get(dtype, 0.0))

    def near(self, larger: float) -> float:
        """How far below `larger` a score may lie that ties with it."""
        return min(self.tie, self.share * larger)


def could_be_chosen(scores: Scores, chosen: NDArray[np.int64], groups: Groups | None, tolerance: Tolerance) -> bool:
    """Whether the largest scores are those of `chosen`, where tied ones may change places.

    Args:
        scores: float32 (experts,), of one token.
        chosen: int64 (choices,); ids that are no expert's, or that repeat, could not.
        groups: how the choice is by group, where it is.
        tolerance: what ties.
    """
    inside = np.zeros(len(scores), dtype=bool)
    if len(chosen) == 0 or chosen.min() < 0 or chosen.max() >= len(scores):
        return False
    inside[chosen] = True
    if inside.sum() != len(chosen):
        return False
    return any(
        not (inside & ~allowed).any() and _largest(scores, inside, allowed & ~inside, tolerance)
        for allowed in _allowed(scores, groups, tolerance)
    )


def _largest(scores: Scores, inside: NDArray[np.bool_], outside: NDArray[np.bool_], tolerance: Tolerance) -> bool:
    if not outside.any():
        return True
    best = float(scores[outside].max())
    return best - float(scores[inside].min()) <= tolerance.near(best)


def _allowed(scores: Scores, groups: Groups | None, tolerance: Tolerance) -> Iterator[NDArray[np.bool_]]:
    """Every set of experts, bool (experts,), that the choice may be from: one, and more where groups tie."""
    if groups is None:
        yield np.ones(len(scores), dtype=bool)
        return
    best = scores.reshape(groups.count, -1).max(axis=1)
    last = float(np.sort(best)[-groups.chosen])
    near = np.abs(best - last) <= tolerance.near(last)
    sure = np.flatnonzero((best > last) & ~near)
    for taken in combinations(np.flatnonzero(near).tolist(), groups.chosen - len(sure)):
        allowed = np.zeros(groups.count, dtype=bool)
        allowed[[*sure, *taken]] = True
        yield allowed.repeat(len(scores) // groups.count)


def weights_of_choice(scores: Scores, chosen: NDArray[np.int64], own: NDArray[np.int64], own_weight: Scores) -> Scores:
    """The weights that the reference would give `chosen`, told from those that it gave its own choice: float32
    (choices,).

    Weights that add up to 1 are normalised over the choice; others are scores times a factor, the same for all. Where
    plain scores happen to add up to 1 the two agree.

    Args:
        scores: float32 (experts,), of one token.
        chosen: int64 (choices,).
        own: int64 (choices,), the reference's own choice; own_weight: float32 (choices,), its weights.
    """
    those = scores[chosen].astype(np.float64)
    factor = weight_factor(scores[None], own[None], own_weight[None])[0]
    return np.asarray(those / those.sum() if np.isnan(factor) else those * factor, dtype=np.float32)


def weight_factor(scores: Scores, own: NDArray[np.int64], own_weight: Scores) -> NDArray[np.float64]:
    """By what a router multiplies its scores to make weights: float64 (T,), NaN where it makes them add up to 1.

    Args:
        scores: float32 (T, experts); own: int64 (T, choices); own_weight: float32 (T, choices).
    """
    total = own_weight.astype(np.float64).sum(axis=1)
    chosen = np.take_along_axis(scores, own, axis=1).astype(np.float64).sum(axis=1)
    return np.where(np.abs(total - 1) < NORMALISED, np.nan, total / chosen)


def weight_slope(choice_weight: Scores, factor: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far a weight moves at most where every logit of its token moves by one: float64 (T, choices).

    A weight is f · p of a softmax p, whose logits z move it by |dp| ≤ p (1 - p) (max dz - min dz). Where weights are
    made to add up to 1 they are a softmax over the choice themselves, f = 1.

    Args:
        choice_weight: float32 (T, choices); factor: float64 (T,), see `weight_factor`.
    """
    scale = np.where(np.isnan(factor), 1.0, factor)[:, None]
    share = np.clip(choice_weight / scale, 0.0, 1.0)
    return np.asarray(2 * scale * share * (1 - share), dtype=np.float64)
