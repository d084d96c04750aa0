"""Rank correlation against scipy, and what is said of two matrices against loops over their cells."""

from __future__ import annotations

from itertools import combinations_with_replacement

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from sparcom_analysis.statistics.matrix_pair import Change, MatrixPair
from sparcom_analysis.resampling.ranks import doubled_ranks, rank_correlation

few = st.integers(-3, 3).map(lambda value: value / 7)


@given(st.lists(st.tuples(few, few), min_size=2, max_size=30))
def test_rank_correlation_is_scipys(pairs: list[tuple[float, float]]) -> None:
    """With any ties; where one side has a single value there is none."""
    left, right = np.array(pairs).T
    np.testing.assert_array_equal(doubled_ranks(left), 2 * rankdata(left))
    found = rank_correlation(left, right)
    if len(set(left)) < 2 or len(set(right)) < 2:
        assert found is None
    else:
        assert found == pytest.approx(spearmanr(left, right).statistic, abs=1e-12)


def test_values_that_differ_in_the_last_digit_are_ties() -> None:
    """0.1 + 0.2 ranks with 0.3."""
    assert doubled_ranks([0.1 + 0.2, 0.3, 0.0]).tolist() == [5, 5, 2]


def matrix(values: list[float | None], count: int) -> np.ndarray:
    """A symmetric matrix from the cells on and above its diagonal, None as NaN."""
    full = np.empty((count, count))
    for (i, j), value in zip(combinations_with_replacement(range(count), 2), values, strict=True):
        full[i, j] = full[j, i] = np.nan if value is None else value
    return full


@given(count=st.integers(1, 5), data=st.data())
def test_what_is_said_of_two_matrices_is_so(count: int, data: st.DataObject) -> None:
    """Order, largest change and largest diagonals are those of the cells that both matrices have."""
    size = count * (count + 1) // 2
    cells = st.lists(st.one_of(st.none(), few), min_size=size, max_size=size)
    left, right = data.draw(cells), data.draw(cells)
    pair = MatrixPair([str(k) for k in range(count)], matrix(left, count), matrix(right, count))
    known = {
        (i, j): (pair.plain[i, j], pair.matched[i, j])
        for i in range(count)
        for j in range(count)
        if not np.isnan(pair.plain[i, j]) and not np.isnan(pair.matched[i, j])
    }
    above = [both for (i, j), both in known.items() if i < j]
    expected = rank_correlation(*zip(*above, strict=True)) if len(above) >= 3 else None
    assert pair.rank_correlation == expected
    moved = {(i, j): b - a for (i, j), (a, b) in known.items() if i <= j}
    change = pair.largest_change
    assert (change is None) == (not moved)
    assert pair.mean_change == (pytest.approx(np.mean(list(moved.values())), abs=1e-12) if moved else None)
    if change is not None:
        assert abs(change.value) == max(map(abs, moved.values()))
        assert moved[change.row, change.column] == change.value
    rows = [k for k in range(count) if (k, k) in known and any((k, j) in known for j in range(count) if j != k)]
    assert pair.compared_rows == len(rows)
    for which, largest in enumerate(pair.diagonal_largest):
        wins = [
            k
            for k in rows
            if all(known[k, k][which] > known[k, j][which] for j in range(count) if (k, j) in known and j != k)
        ]
        assert largest == len(wins)


def test_the_first_of_equal_changes_is_named() -> None:
    """A cell is said once, with its row before its column."""
    plain = matrix([0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 3)
    pair = MatrixPair("abc", plain, matrix([0.0, -0.5, 0.1, 0.0, 0.5, 0.0], 3))
    assert pair.largest_change == Change(0, 1, -0.5)
