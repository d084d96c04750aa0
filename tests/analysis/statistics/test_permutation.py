"""Permutation tests, against scipy and loops over pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import permutation_test

from sparcom_analysis.resampling.pairs import PairMatrix
from sparcom_analysis.resampling.permutation import (
    MOST_CATEGORIES,
    LabelTests,
    against_namings,
    category_sums,
    permutation_tests,
    shuffled_names,
)
from sparcom_data.errors import InvalidInputError, UnsupportedArchiveError


def random_pairs(categories: Sequence[str], seed: int, lift: float = 0.0) -> PairMatrix:
    """Random values of every pair; `lift` is added where both are of one category."""
    rng = np.random.default_rng(seed)
    count = len(categories)
    values = rng.uniform(0, 0.5, (count, count))
    values = (values + values.T) / 2
    names = np.array(categories)
    values[names[:, None] == names] += lift
    values[np.diag_indices(count)] = 1
    return PairMatrix(list(categories), values)


def cell_mean(values: NDArray[np.float64], names: Sequence[int], inside: Callable[[int, int], bool]) -> float:
    """Mean over the pairs of two instructions whose two categories are asked for; NaN of none."""
    count = len(names)
    found = [values[i, j] for i in range(count) for j in range(i + 1, count) if inside(names[i], names[j])]
    return float(np.mean(found)) if found else np.nan


def statistics(values: NDArray[np.float64], names: Sequence[int], count: int) -> list[float]:
    """Of the whole, of each category, of every two, by loops."""
    whole = cell_mean(values, names, lambda a, b: a == b) - cell_mean(values, names, lambda a, b: a != b)
    own = [
        cell_mean(values, names, lambda a, b, c=c: a == b == c)  # type: ignore[misc]
        - cell_mean(values, names, lambda a, b, c=c: (a == c) != (b == c))  # type: ignore[misc]
        for c in range(count)
    ]
    both = [
        cell_mean(values, names, lambda a, b, x=x, y=y: {a, b} == {x, y})  # type: ignore[misc]
        for x in range(count)
        for y in range(x + 1, count)
    ]
    return [whole, *own, *both]


def step_down(table: NDArray[np.float64]) -> list[float]:
    """Westfall and Young's correction by its definition: (namings, k), the observed one first."""
    scores = (table - table.mean(axis=0)) / table.std(axis=0)
    order = sorted(range(table.shape[1]), key=lambda k: -scores[0, k])
    result, before = [0.0] * len(order), 0.0
    for place, k in enumerate(order):
        largest = scores[:, order[place:]].max(axis=1)
        before = max(before, float((largest[1:] >= scores[0, k]).sum() + 1) / len(scores))
        result[k] = before
    return result


@settings(deadline=None, max_examples=15)
@given(
    categories=st.lists(st.sampled_from("abc"), min_size=6, max_size=12).filter(
        lambda names: len(set(names)) > 1 and all(names.count(name) > 1 for name in set(names))
    ),
    lift=st.sampled_from([0.0, 0.1, 0.4]),
    seed=st.integers(0, 999),
)
def test_everything_equals_loops(categories: list[str], lift: float, seed: int) -> None:
    """Means, p by itself and corrected p of every statistic are those of loops over the pairs of each naming."""
    pairs = random_pairs(categories, seed, lift)
    found = permutation_tests(pairs, permutations=19, seed=seed)
    names = [pairs.codes.tolist(), *np.concatenate(list(shuffled_names(pairs, 19, seed))).tolist()]
    count = len(pairs.labels)
    table = np.array([statistics(pairs.values, one, count) for one in names])
    p = (1 + (table[1:] >= table[0] - 1e-12).sum(axis=0)) / 20
    assert found.p == pytest.approx(p[0])
    assert found.within - found.between == pytest.approx(table[0, 0], abs=1e-12)
    np.testing.assert_allclose(found.category_within - found.category_others, table[0, 1 : 1 + count], atol=1e-12)
    np.testing.assert_allclose(found.category_p, p[1 : 1 + count])
    np.testing.assert_allclose(found.category_p_adjusted, step_down(table[:, 1 : 1 + count]))
    upper = np.triu_indices(count, 1)
    np.testing.assert_allclose(found.pair_p[upper], p[1 + count :])
    if count > 2:  # of one pair of categories there is nothing to correct
        np.testing.assert_allclose(found.pair_p_adjusted[upper], step_down(table[:, 1 + count :]))
    np.testing.assert_array_equal(found.pair_p_adjusted, found.pair_p_adjusted.T)
    assert np.isnan(np.diagonal(found.pair_p)).all()
    assert found.expected == pytest.approx(cell_mean(pairs.values, names[0], lambda *_: True), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_p_of_all_namings_is_scipys(seed: int) -> None:
    """Against every permutation of six instructions, p is that of scipy's exact permutation test."""
    pairs = random_pairs(list("aabacc"), seed, lift=0.05)
    names = pairs.codes
    every = np.array(list(permutations(names.tolist()))[1:], dtype=np.int16)
    found = against_namings(pairs, [every], len(every), 0)

    def of(place: int) -> float:
        def statistic(shuffled: NDArray[np.intp]) -> float:
            return statistics(pairs.values, shuffled.tolist(), 3)[place]

        return float(
            permutation_test(
                (names,), statistic, permutation_type="pairings", n_resamples=np.inf, alternative="greater"
            ).pvalue
        )

    assert found.p == pytest.approx(of(0))
    assert found.category_p[2] == pytest.approx(of(3))
    assert found.pair_p[0, 2] == pytest.approx(of(5))


@settings(deadline=None, max_examples=25)
@given(count=st.integers(2, 150), labels=st.integers(1, 5), seed=st.integers(0, 999), cores=st.sampled_from([1, 3]))
def test_sums_equal_loops_on_any_number_of_cores(count: int, labels: int, seed: int, cores: int) -> None:
    """Each cell is exactly the sum over pairs of its categories in fixed point, over several tiles of columns."""
    rng = np.random.default_rng(seed)
    pairs = random_pairs(["a"] * count, seed)
    names = rng.integers(0, labels, (4, count)).astype(np.int16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparcom_analysis.resampling.permutation.cores", lambda: cores)
        found = category_sums(pairs.values, names, labels, pairs.bits)
    whole = np.rint(np.ldexp(pairs.values, pairs.bits)).astype(np.int64)
    upper = np.triu(np.ones((count, count), dtype=bool), 1)
    for one, sums in zip(names, found, strict=True):
        for a, b in product(range(labels), repeat=2):
            cells = (one[:, None] == a) & (one == b) | (one[:, None] == b) & (one == a)
            assert sums[a, b] == whole[cells & upper].sum()


def test_shuffles_keep_the_sizes_of_categories() -> None:
    """Each shuffle holds every name as often as the categories have instructions with values, in another order."""
    pairs = random_pairs(["a"] * 7 + ["b"] * 3 + ["c"], 0)
    names = np.concatenate(list(shuffled_names(pairs, 50, 3)))
    assert names.shape == (50, 11)
    for one in names:
        assert np.bincount(one).tolist() == [7, 3, 1]
    assert len(np.unique(names, axis=0)) > 30


def same(one: LabelTests, other: LabelTests) -> None:
    """Every field of two results is the same, bit by bit."""
    for name in LabelTests.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def test_batches_and_cores_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shuffles in hand at once and the cores cannot be seen in the result; another seed can."""
    pairs = random_pairs([str(k % 4) for k in range(90)], 1, lift=0.01)
    expected = permutation_tests(pairs, permutations=200)
    other = permutation_tests(pairs, permutations=200, seed=1)
    assert (other.pair_p != expected.pair_p).any()
    for size, most, cores in ((1, 9, 1), (5000, 100, 2), (1 << 30, 7, 7)):
        monkeypatch.setattr("sparcom_analysis.resampling.permutation.BATCH_BYTES", size)
        monkeypatch.setattr("sparcom_analysis.resampling.permutation.BATCH", most)
        monkeypatch.setattr("sparcom_analysis.resampling.permutation.cores", lambda cores=cores: cores)
        monkeypatch.setattr("sparcom_analysis.kernels.compiled.cores", lambda cores=cores: cores)
        same(permutation_tests(pairs, permutations=200), expected)


def test_progress_ends_at_all_shuffles(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is called after each batch, with shuffles done and all of them."""
    monkeypatch.setattr("sparcom_analysis.resampling.permutation.BATCH", 20)
    calls: list[tuple[int, int]] = []
    permutation_tests(random_pairs(["a", "b"] * 3, 0), permutations=50, progress=lambda *call: calls.append(call))
    assert calls == [(20, 50), (40, 50), (50, 50)]


def test_categories_that_differ_are_found_and_others_not() -> None:
    """One category that is alike has the least p that there is; three that are names alone are not significant."""
    categories = ["same"] * 10 + ["x", "y", "z"] * 10
    pairs = random_pairs(categories, 2)
    values = pairs.values.copy()
    values[:10, :10] = np.maximum(values[:10, :10], 0.45)
    found = permutation_tests(PairMatrix(categories, values), permutations=499)
    assert found.p == found.category_p[0] == found.category_p_adjusted[0] == 1 / 500
    assert (found.category_p_adjusted[1:] > 0.05).all()
    assert (found.category_p_adjusted >= found.category_p).all()


def test_p_is_uniform_where_names_mean_nothing() -> None:
    """Of 200 archives without structure about 5 in 100 have p ≤ 0.05, and at most so many any corrected p."""
    whole = any_category = any_pair = 0
    for seed in range(200):
        found = permutation_tests(random_pairs(["a", "b", "c", "d"] * 4, seed), permutations=99, seed=seed)
        whole += found.p <= 0.05
        any_category += bool((found.category_p_adjusted <= 0.05).any())
        any_pair += bool(np.nanmin(found.pair_p_adjusted) <= 0.05)
    assert 2 <= whole <= 21
    assert 2 <= any_category <= 21
    assert 2 <= any_pair <= 21


def test_instructions_without_values_take_no_part() -> None:
    """An instruction whose pairs are not defined changes nothing but how many there are."""
    pairs = random_pairs(["a", "b"] * 6, 3, lift=0.1)
    values = np.full((13, 13), np.nan)
    values[:12, :12] = pairs.values
    found = permutation_tests(PairMatrix([*pairs.categories, "a"], values), permutations=50)
    assert found.instructions == 12
    assert found.p == pytest.approx(permutation_tests(pairs, permutations=50).p)


def test_a_category_of_one_has_no_test_of_its_own() -> None:
    """It has no pair within, so nothing is said of it; its pairs with others are tested, and other categories are."""
    found = permutation_tests(random_pairs(["a", "b", "b", "c", "c"], 0), permutations=30)
    assert np.isnan(found.category_p).tolist() == [True, False, False]
    assert np.isnan(found.category_p_adjusted).tolist() == [True, False, False]
    assert np.isfinite(found.pair_p_adjusted[0, 1:]).all()


def test_nothing_to_compare_is_no_number() -> None:
    """With one category there is nothing between, with single instructions nothing within: p is NaN, never 1 or 0."""
    for categories in (["a"] * 4, ["a", "b", "c"]):
        found = permutation_tests(random_pairs(categories, 0), permutations=9)
        assert np.isnan([found.p, *found.category_p, *found.category_p_adjusted]).all()
    nothing = PairMatrix(["a", "b"], np.full((2, 2), np.nan))
    found = permutation_tests(nothing, permutations=9)
    assert np.isnan([found.p, found.expected, found.pair_p[0, 1]]).all()


def test_the_same_value_everywhere_is_as_chance_has_it() -> None:
    """Where all pairs are alike, every naming gives the same statistic: p is 1, corrected or not."""
    values = np.full((9, 9), 0.3)
    values[np.diag_indices(9)] = 1
    found = permutation_tests(PairMatrix(list("abc") * 3, values), permutations=40)
    assert [found.p, *found.category_p, *found.category_p_adjusted] == [1.0] * 7
    assert found.pair_p_adjusted[0, 1] == 1.0


def test_many_categories_are_not_paired_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond one limit pairs of categories have no p, beyond the other nothing is tested and the error says why."""
    monkeypatch.setattr("sparcom_analysis.resampling.permutation.MOST_PAIRED", 2)
    found = permutation_tests(random_pairs(list("abc") * 3, 0), permutations=9)
    assert np.isnan(found.pair_p).all()
    assert np.isfinite(found.category_p_adjusted).all()
    many = [str(k) for k in range(MOST_CATEGORIES + 1)]
    with pytest.raises(UnsupportedArchiveError, match="up to 256; there are 257"):
        permutation_tests(random_pairs(many, 0), permutations=9)


def test_wrong_settings_are_refused_together() -> None:
    """The number of shuffles and the seed are checked, and both problems are named at once."""
    with pytest.raises(InvalidInputError) as raised:
        permutation_tests(random_pairs(["a", "b"], 0), permutations=0, seed=-1)
    assert len(raised.value.problems) == 2
