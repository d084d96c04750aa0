"""Top-k sets that a router's scores allow: the largest scores, with ties either way, and by groups if any."""

from __future__ import annotations

import numpy as np
import pytest

from sparcom_verification.reference.routing import Groups, Routing, Tolerance, can_be_topk, tolerance_of

EXACT = tolerance_of("float64")
FLOAT32 = tolerance_of("float32")


def allowed(
    scores: list[float], topk_ids: list[int], groups: Groups | None = None, tolerance: Tolerance = FLOAT32
) -> bool:
    return can_be_topk(np.array(scores, np.float32), np.array(topk_ids), groups, tolerance)


@pytest.mark.parametrize(
    ("topk_ids", "expected"),
    [([0, 2], True), ([2, 0], True), ([0, 1], False), ([3, 1], False), ([0, 0], False), ([0, 65535], False)],
)
def test_the_largest_scores_are_allowed_in_any_order(topk_ids: list[int], expected: bool) -> None:
    """Repeated and out-of-range ids are never a top-k set."""
    assert allowed([0.4, 0.1, 0.3, 0.2], topk_ids) is expected


@pytest.mark.parametrize(("apart", "expected"), [(0.0, True), (9e-7, True), (1.2e-6, False)])
def test_scores_tie_within_a_millionth(apart: float, expected: bool) -> None:
    """Either of two experts with tied scores may be picked; without tolerance only the larger one."""
    scores = [0.6, 0.1 + apart, 0.1, 0.01]
    assert allowed(scores, [0, 2]) is expected
    assert allowed(scores, [0, 1])
    assert allowed(scores, [0, 2], tolerance=EXACT) is (apart == 0.0)


def test_in_the_tail_of_a_softmax_a_tie_is_relative() -> None:
    """Scores of 8e-7 and 3e-7 are within a millionth, but clearly differ: no tie."""
    assert not allowed([0.999, 8e-7, 3e-7], [0, 2])
    assert allowed([0.999, 8e-7, 7.9999e-7], [0, 2])


def test_experts_of_other_groups_are_not_allowed() -> None:
    """Only the two best of four groups take part; a large score in a third group does not count."""
    scores = [0.30, 0.01, 0.02, 0.25, 0.03, 0.20, 0.10, 0.09]
    best = Groups(np.array([0.30, 0.25, 0.20, 0.10], np.float32), top_k=2)
    assert allowed(scores, [0, 3], best)
    assert not allowed(scores, [0, 5], best)
    assert allowed(scores, [0, 3, 2], best)
    assert not allowed(scores, [0, 3, 5], best)
    sums = Groups(np.array([0.31, 0.27, 0.23, 0.19], np.float32), top_k=2)
    assert allowed(scores, [0, 3], sums), "groups rank by the sum of their two best scores"


def test_groups_may_tie() -> None:
    """Either of two tied groups may take part, even with other experts; experts of both at once may not."""
    scores = [0.30, 0.01, 0.20, 0.15, 0.2000001, 0.02, 0.10, 0.09]
    pairs = Groups(np.array([0.30, 0.20, 0.2000001, 0.10], np.float32), top_k=2)
    assert allowed(scores, [0, 2, 3], pairs)
    assert allowed(scores, [0, 4, 5], pairs)
    assert not allowed(scores, [0, 4, 3], pairs)
    assert not allowed(scores, [0, 2, 3], pairs, EXACT)


@pytest.mark.parametrize(("bias", "apart", "expected"), [(0.0, 9e-7, True), (0.0, 2e-6, False), (30.0, 2e-5, True)])
def test_scores_with_a_bias_tie_by_their_size(bias: float, apart: float, expected: bool) -> None:
    """A sigmoid plus a bias is not a probability: float32 scores near 30 are at least 2e-6 apart."""
    scores = [bias + 0.9, bias + 0.5 + apart, bias + 0.5, bias + 0.1]
    assert allowed(scores, [0, 2], tolerance=tolerance_of("float32", probabilities=False)) is expected


def test_without_scores_nothing_is_a_tie() -> None:
    """A router without visible scores must pick the same experts."""
    own = np.array([[1, 2]])
    assert not Routing(own).allows(0, own[0], "bfloat16")


@pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", True), ("float16", False), ("float32", False)])
def test_in_16_bits_a_tie_is_relative_too(dtype: str, expected: bool) -> None:
    """All 60 experts are within 0.066 of each other, but an expert with half the score is still no tie."""
    scores = [0.05, 0.02, 0.016, 0.008, *[0.001] * 56]
    assert allowed(scores, [0, 2], tolerance=tolerance_of(dtype)) is expected
    assert not allowed(scores, [0, 3], tolerance=tolerance_of(dtype))
