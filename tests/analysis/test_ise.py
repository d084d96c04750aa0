"""Equations 11 and 12 and table 6, checked with direct sums and sorts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparcom_analysis import expert_frequencies, find_ises
from sparcom_data.errors import DamagedArchiveError, IncompleteArchiveError, UnsupportedArchiveError


def true_frequencies(case, index: int) -> NDArray[np.float64]:  # type: ignore[no-untyped-def]
    """Return f of equation 11, token by token."""
    chosen = case.truth.expert[case.rows(index)]
    found = np.zeros((chosen.shape[1], case.archive.moe.experts))
    for j, e in np.ndindex(found.shape):
        found[j, e] = np.mean([e in chosen[t, j] for t in range(len(chosen))])
    return found


@settings(deadline=None, max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    experts=st.integers(1, 9),
    chunk=st.integers(1, 40),
    block_bytes=st.integers(1, 400),
    dense=st.integers(0, 1),
    granularity=st.sampled_from(["token", "count"]),
    data=st.data(),
)
def test_frequencies_are_fractions_of_tokens(make_moe, experts, chunk, block_bytes, dense, granularity, data):  # type: ignore[no-untyped-def]
    """f equals the equations for any shape, chunks, blocks and failures, from masks or counts, also for one
    instruction.
    """
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
    found = find_ises(case.archive, block_bytes=block_bytes)
    expected = {index: true_frequencies(case, index) for index in case.complete}
    assert found.instruction.tolist() == case.complete
    for k, index in enumerate(case.complete):
        np.testing.assert_allclose(found.frequencies[k], expected[index], rtol=0, atol=1e-12)
        np.testing.assert_array_equal(found.frequencies[k], expert_frequencies(case.archive, index))
        np.testing.assert_allclose(found.frequencies[k].sum(axis=1), found.top_k, rtol=0, atol=1e-12)


def test_ises_are_all_activated_experts(make_moe) -> None:  # type: ignore[no-untyped-def]
    """An expert with at least one token is an ISE, as in section 3.1 of the paper."""
    case = make_moe(experts=9, choices=2, lengths=(2, 4))
    found = find_ises(case.archive)
    for k, index in enumerate(case.complete):
        expected = true_frequencies(case, index) > 0
        assert (found.activated[k] == expected).all()
        assert not found.activated[k].all()


def test_most_used_experts_include_ties(make_moe) -> None:  # type: ignore[no-untyped-def]
    """The k most frequent experts per layer, all ties with the last, and none without tokens."""
    found = find_ises(make_moe(experts=9, choices=2).archive, top_experts=3)
    for k in (None, 1, 4, 20):
        wanted = min(3 if k is None else k, 9)
        for n, j in np.ndindex(*found.counts.shape[:2]):
            counts = found.counts[n, j]
            least = max(sorted(counts.tolist(), reverse=True)[wanted - 1], 1)
            assert found.most_used(k)[n, j].tolist() == [count >= least for count in counts.tolist()]


@pytest.mark.parametrize("value", [65_535, 6])
def test_a_row_without_experts_is_damage(make_moe, damage, value: int) -> None:  # type: ignore[no-untyped-def]
    """In a complete instruction, such a row is never counted; the error names the instruction."""
    case = make_moe()
    archive = damage(case.archive, "router/expert", (case.rows(7).start, 0, 0), value)
    with pytest.raises(DamagedArchiveError, match="instruction 'i007'"):
        find_ises(archive)
    with pytest.raises(DamagedArchiveError, match="instruction 'i007'"):
        expert_frequencies(archive, 7)
    assert expert_frequencies(archive, 6).shape == (2, 6)


def test_counts_that_do_not_add_up_are_damage(make_moe, damage) -> None:  # type: ignore[no-untyped-def]
    """The counts of an instruction must sum to rows times top_k in each layer; otherwise an error is raised."""
    case = make_moe(granularity="count")
    with pytest.raises(DamagedArchiveError, match=r"'i003' .* must sum to 2 experts"):
        find_ises(damage(case.archive, "router/count", (3, 1), 1))


def test_archives_without_experts_or_instructions_are_refused(make_moe, typical) -> None:  # type: ignore[no-untyped-def]
    """Dense models have no expert frequencies; one complete instruction is too few."""
    with pytest.raises(UnsupportedArchiveError, match=r"holds neuron\. Extract from a model with experts"):
        find_ises(typical.archive)
    lonely = make_moe(categories=("a",), per_category=3, failed=(0, 1)).archive
    with pytest.raises(IncompleteArchiveError, match="at least 2 complete"):
        find_ises(lonely, least=2)
    assert len(find_ises(lonely)) == 1
    with pytest.raises(IncompleteArchiveError, match=r"'i001' of .* is failed"):
        expert_frequencies(lonely, 1)
