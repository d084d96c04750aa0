"""Which choices of experts a router's scores allow: the largest, tied ones in either way, by group where it is so."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparcom_extractor.reference_choice import (
    Groups,
    Tolerance,
    could_be_chosen,
    weight_factor,
    weight_slope,
    weights_of_choice,
)

EXACT = Tolerance.of("float64")
FLOAT32 = Tolerance.of("float32")


def allowed(
    scores: list[float], chosen: list[int], groups: Groups | None = None, tolerance: Tolerance = FLOAT32
) -> bool:
    return could_be_chosen(np.array(scores, np.float32), np.array(chosen), groups, tolerance)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [([0, 2], True), ([2, 0], True), ([0, 1], False), ([3, 1], False), ([0, 0], False), ([0, 65535], False)],
)
def test_the_largest_scores_are_chosen_in_any_order(chosen: list[int], expected: bool) -> None:
    """Ids that repeat or are no expert's are never a choice."""
    assert allowed([0.4, 0.1, 0.3, 0.2], chosen) is expected


@pytest.mark.parametrize(("apart", "expected"), [(0.0, True), (9e-7, True), (1.2e-6, False)])
def test_scores_tie_within_a_millionth(apart: float, expected: bool) -> None:
    """Of two experts whose scores are so far apart either may be chosen; with no tolerance the larger alone."""
    scores = [0.6, 0.1 + apart, 0.1, 0.01]
    assert allowed(scores, [0, 2]) is expected
    assert allowed(scores, [0, 1])
    assert allowed(scores, [0, 2], tolerance=EXACT) is (apart == 0.0)


def test_far_down_the_softmax_a_tie_is_a_share() -> None:
    """Scores of 8e-7 and 3e-7 are within a millionth, but the router was sure: no tie."""
    assert not allowed([0.999, 8e-7, 3e-7], [0, 2])
    assert allowed([0.999, 8e-7, 7.9999e-7], [0, 2])


def test_experts_of_other_groups_are_not_chosen() -> None:
    """Two of four groups take part, by their best experts: a large score in a third does not count."""
    scores = [0.30, 0.01, 0.02, 0.25, 0.03, 0.20, 0.10, 0.09]
    pairs = Groups(count=4, chosen=2)
    assert allowed(scores, [0, 3], pairs)
    assert not allowed(scores, [0, 5], pairs)
    assert allowed(scores, [0, 3, 2], pairs)
    assert not allowed(scores, [0, 3, 5], pairs)


def test_groups_may_tie() -> None:
    """Where the best of two groups score alike either group may take part, though their other experts differ; an
    expert of both is of no choice."""
    scores = [0.30, 0.01, 0.20, 0.15, 0.2000001, 0.02, 0.10, 0.09]
    pairs = Groups(count=4, chosen=2)
    assert allowed(scores, [0, 2, 3], pairs)
    assert allowed(scores, [0, 4, 5], pairs)
    assert not allowed(scores, [0, 4, 3], pairs)
    assert not allowed(scores, [0, 2, 3], pairs, EXACT)


def test_weights_follow_the_way_of_the_reference() -> None:
    """Normalised weights stay so for another choice; plain and scaled ones keep their factor."""
    scores = np.array([0.4, 0.2, 0.2, 0.1], np.float32)
    own, other = np.array([0, 1]), np.array([2, 0])
    normalised = np.array([2 / 3, 1 / 3], np.float32)
    assert weights_of_choice(scores, other, own, normalised) == pytest.approx([1 / 3, 2 / 3])
    assert weights_of_choice(scores, other, own, scores[own] * 1.5) == pytest.approx([0.3, 0.6])


@given(seed=st.integers(0, 2**32 - 1), normalised=st.booleans(), scale=st.sampled_from([1.0, 1.5, 16.0]))
def test_weights_move_no_further_than_their_slope_says(seed: int, normalised: bool, scale: float) -> None:
    """Logits moved by at most d move a weight by at most its slope times d, whatever makes weights of scores."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (4, 12))
    own = np.argsort(-logits, axis=1)[:, :3]

    def weights(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        scores = np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)
        chosen = np.take_along_axis(scores, own, axis=1)
        return scores, chosen / chosen.sum(axis=1, keepdims=True) if normalised else scale * chosen

    scores, before = weights(logits)
    _, after = weights(logits + random.uniform(-1, 1, logits.shape) * 1e-4)
    factor = weight_factor(scores.astype(np.float32), own, before.astype(np.float32))
    slope = weight_slope(before.astype(np.float32), factor)
    assert (np.abs(after - before) <= slope * 1e-4 * 1.01 + 1e-12).all()
