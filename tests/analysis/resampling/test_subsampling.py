"""Rank correlation, checked with SciPy; changes of a matrix, with loops over cells; reasons not to subsample."""

from __future__ import annotations

from itertools import combinations_with_replacement

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from sparcom_analysis import find_ises, find_isns
from sparcom_analysis.errors import NotComputableError
from sparcom_analysis.measures.experts.length_control import routing_length_control
from sparcom_analysis.measures.neurons.length_control import length_control
from sparcom_analysis.resampling.ranks import doubled_ranks, rank_correlation
from sparcom_analysis.resampling.subsampling import matrix_change
from sparcom_data.errors import IncompleteArchiveError, UnsupportedArchiveError

few = st.integers(-3, 3).map(lambda value: value / 7)


@given(st.lists(st.tuples(few, few), min_size=2, max_size=30))
def test_rank_correlation_is_scipys(pairs: list[tuple[float, float]]) -> None:
    """Ties are allowed; the result is NaN if one side has a single value."""
    left, right = np.array(pairs).T
    np.testing.assert_array_equal(doubled_ranks(left), 2 * rankdata(left))
    found = rank_correlation(left, right)
    if len(set(left)) < 2 or len(set(right)) < 2:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(spearmanr(left, right).statistic, abs=1e-12)


def test_values_that_differ_in_the_last_digit_are_ties() -> None:
    """The value 0.1 + 0.2 has the rank of 0.3."""
    assert doubled_ranks([0.1 + 0.2, 0.3, 0.0]).tolist() == [5, 5, 2]


def matrix(values: list[float | None], count: int) -> np.ndarray:
    """Return a symmetric matrix from the cells on and above its diagonal, None as NaN."""
    full = np.empty((count, count))
    for (i, j), value in zip(combinations_with_replacement(range(count), 2), values, strict=True):
        full[i, j] = full[j, i] = np.nan if value is None else value
    return full


@given(count=st.integers(1, 5), data=st.data())
def test_changes_are_those_of_loops(count: int, data: st.DataObject) -> None:
    """Order, largest and mean change and largest diagonals cover the cells that both matrices have."""
    size = count * (count + 1) // 2
    cells = st.lists(st.one_of(st.none(), few), min_size=size, max_size=size)
    before, after = matrix(data.draw(cells), count), matrix(data.draw(cells), count)
    found = matrix_change(before, after)
    known = {
        (i, j): (before[i, j], after[i, j])
        for i in range(count)
        for j in range(count)
        if not np.isnan(before[i, j]) and not np.isnan(after[i, j])
    }
    above = [both for (i, j), both in known.items() if i < j]
    expected = rank_correlation(*zip(*above, strict=True)) if len(above) >= 3 else np.nan
    assert found["rank_correlation"] == pytest.approx(expected, nan_ok=True)
    changes = {(i, j): b - a for (i, j), (a, b) in known.items() if i <= j}
    if changes:
        assert found["mean_change"] == pytest.approx(np.mean(list(changes.values())), abs=1e-12)
        assert abs(found["largest_change"]) == max(map(abs, changes.values()))
        assert changes[found["cell"]] == found["largest_change"]
        assert found["cell"] == min(
            cell for cell, change in changes.items() if abs(change) == abs(found["largest_change"])
        )
    else:
        assert np.isnan([found["mean_change"], found["largest_change"]]).all()
        assert found["cell"] == (-1, -1)
    rows = [k for k in range(count) if (k, k) in known and any((k, j) in known for j in range(count) if j != k)]
    assert found["compared_rows"] == len(rows)
    for which, count_largest in enumerate(found["diagonal_largest"]):
        wins = [
            k
            for k in rows
            if all(known[k, k][which] > known[k, j][which] for j in range(count) if (k, j) in known and j != k)
        ]
        assert count_largest == len(wins)


def test_no_equal_length_has_a_reason(make_case, make_moe) -> None:  # type: ignore[no-untyped-def]
    """If switched off, for counts, or with too few long instructions, there is no measure. An explicit request is an
    error.
    """
    long = find_isns(make_case((9, 12, 10, 3), ("a", "b", "a", "b")).archive)
    with pytest.raises(NotComputableError, match="switched off"):
        length_control(long, equal_length=False)
    for isn, error in (
        (find_isns(make_case((9, 12), ("a", "b"), granularity="count").archive), UnsupportedArchiveError),
        (find_isns(make_case((3, 4), ("a", "b")).archive), IncompleteArchiveError),
        (long.sel(instruction=["i1", "i3"]), IncompleteArchiveError),
    ):
        with pytest.raises(NotComputableError, match=r"^Instructions cannot be subsampled to equal length: .*\.$"):
            length_control(isn)
        with pytest.raises(error):
            length_control(isn, equal_length=True)
    with pytest.raises(IncompleteArchiveError, match="at least 2 instructions with 11 tokens; there are 1"):
        length_control(long, equal_length_tokens=11)
    with pytest.raises(NotComputableError, match="switched off"):
        routing_length_control(find_ises(make_moe().archive), equal_length=False)


def test_a_selection_is_subsampled_to_its_own_shortest(make_case) -> None:  # type: ignore[no-untyped-def]
    """The shortest selected instruction with at least 8 tokens sets the number; others take no part."""
    isn = find_isns(make_case((9, 12, 10, 3, 14), ("a", "b", "a", "b", "b")).archive)
    found = length_control(isn.sel(instruction=["i1", "i2", "i3", "i4"]), n_resamples=0)
    assert found.attrs["drawn_tokens"] == 10
    assert (found.attrs["instructions"], int(found["used"].sum())) == (3, 3)
    assert found["too_short"].sel(category="b") == 1
