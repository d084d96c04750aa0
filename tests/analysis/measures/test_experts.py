"""Equations 11 and 12 and table 6, against sums and sorts written from them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparcom_analysis import category_experts, expert_frequencies, instruction_experts, top_experts
from sparcom_analysis.ise import CategoryExperts
from sparcom_data.errors import DamagedArchiveError, IncompleteArchiveError, UnsupportedArchiveError


def true_frequencies(case, index: int) -> NDArray[np.float64]:  # type: ignore[no-untyped-def]
    """f of equation 11, token by token."""
    chosen = case.truth.expert[case.rows(index)]
    found = np.zeros((chosen.shape[1], case.archive.moe.experts))
    for j, e in np.ndindex(found.shape):
        found[j, e] = np.mean([e in chosen[t, j] for t in range(len(chosen))])
    return found


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    experts=st.integers(1, 9),
    chunk=st.integers(1, 40),
    block_bytes=st.integers(1, 400),
    dense=st.integers(0, 1),
    granularity=st.sampled_from(["token", "count"]),
    data=st.data(),
)
def test_frequencies_are_shares_of_tokens(make_moe, experts, chunk, block_bytes, dense, granularity, data):  # type: ignore[no-untyped-def]
    """Whatever shape, chunks, blocks and failures, masks or counts: f and its category means are the equations'."""
    case = make_moe(
        categories=("b", "a", ""),
        per_category=3,
        experts=experts,
        choices=data.draw(st.integers(1, experts)),
        dense_layers=dense,
        chunk_tokens=chunk,
        failed=data.draw(st.sets(st.sampled_from([0, 3, 4, 7, 8]))),
        granularity=granularity,
    )
    found = instruction_experts(case.archive, block_bytes=block_bytes)
    expected = {index: true_frequencies(case, index) for index in case.complete}
    assert found.instruction.tolist() == case.complete
    for k, index in enumerate(case.complete):
        np.testing.assert_allclose(found.frequencies(k), expected[index], rtol=0, atol=1e-12)
        np.testing.assert_array_equal(found.frequencies(k), expert_frequencies(case.archive, index))
        np.testing.assert_allclose(found.frequencies(k).sum(axis=1), found.choices, rtol=0, atol=1e-12)
    means = category_experts(found)
    assert list(means.categories) == ["b", "a", "(none)"]
    for category, mean in enumerate(means.mean):
        members = [value for index, value in expected.items() if index // 3 == category]
        np.testing.assert_allclose(mean, np.mean(members, axis=0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(means.overall, np.mean(list(expected.values()), axis=0), rtol=0, atol=1e-12)


def test_top_experts_are_the_most_frequent(make_moe) -> None:  # type: ignore[no-untyped-def]
    """Five of each layer by mean frequency, ties by lower id, for each category and overall; fewer where there are."""
    case = make_moe(experts=9, choices=3)
    means = category_experts(instruction_experts(case.archive))
    top = top_experts(means)
    for c, j in np.ndindex(2, 2):
        ranked = sorted(range(9), key=lambda e, c=c, j=j: (-round(means.mean[c, j, e], 12), e))[:5]  # type: ignore[misc]
        assert top.expert[c, j].tolist() == ranked
        assert top.frequency[c, j].tolist() == means.mean[c, j, ranked].tolist()
    for j in range(2):
        assert top.overall_expert[j].tolist() == sorted(range(9), key=lambda e, j=j: (-means.overall[j, e], e))[:5]  # type: ignore[misc]
    assert top_experts(category_experts(instruction_experts(make_moe(experts=3).archive))).expert.shape == (2, 2, 3)


def test_ties_go_to_the_lower_id_also_where_sums_of_floats_differ() -> None:
    """Equal means whose floats differ in the last digit are ties: 1/3 + 2/3 + 1/7 in another order."""
    parts = [1 / 3, 2 / 3, 1 / 7, 1 / 49]
    high, low = parts[0] + parts[2] + parts[1] + parts[3], sum(parts)
    assert sum(map(Fraction, (Fraction(1, 3), Fraction(2, 3), Fraction(1, 7), Fraction(1, 49)))) == Fraction(57, 49)
    mean = np.array([[[0.1, min(high, low), max(high, low), np.nextafter(max(high, low), 2), 0.1]]])
    top = top_experts(CategoryExperts(["a"], [0], mean, mean[0]))
    assert top.expert.tolist() == [[[1, 2, 3, 0, 4]]]
    assert top.overall_expert.tolist() == [[1, 2, 3, 0, 4]]


@pytest.mark.parametrize("value", [65_535, 6])
def test_a_row_without_a_choice_is_damage(make_moe, damage, value: int) -> None:  # type: ignore[no-untyped-def]
    """In rows of a complete instruction it is an error that names the instruction, never counted."""
    case = make_moe()
    archive = damage(case.archive, "router/expert", (case.rows(7).start, 0, 0), value)
    with pytest.raises(DamagedArchiveError, match="instruction 'i007'"):
        instruction_experts(archive)
    with pytest.raises(DamagedArchiveError, match="instruction 'i007'"):
        expert_frequencies(archive, 7)
    assert expert_frequencies(archive, 6).shape == (2, 6)


def test_counts_that_do_not_add_up_are_damage(make_moe, damage) -> None:  # type: ignore[no-untyped-def]
    """Over a layer the counts of an instruction are its rows times the choices; anything else is not counted."""
    case = make_moe(granularity="count")
    with pytest.raises(DamagedArchiveError, match=r"'i003' .* must add up to 2 choices"):
        instruction_experts(damage(case.archive, "router/count", (3, 1), 1))


def test_archives_without_experts_or_instructions_are_refused(make_moe, typical) -> None:  # type: ignore[no-untyped-def]
    """A dense model has no expert frequencies; one complete instruction is nothing to compare."""
    with pytest.raises(UnsupportedArchiveError, match=r"holds neuron\. Extract from a model with experts"):
        instruction_experts(typical.archive)
    lonely = make_moe(categories=("a",), per_category=3, failed=(0, 1)).archive
    with pytest.raises(IncompleteArchiveError, match="at least 2 complete"):
        instruction_experts(lonely)
    assert len(instruction_experts(lonely, least=1)) == 1
    with pytest.raises(IncompleteArchiveError, match="instruction 1 of"):
        expert_frequencies(lonely, 1)
