"""Permutation tests, checked with SciPy and loops over pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import permutation_test

from sparcom_analysis.errors import NotComputableError
from sparcom_analysis.options import Options
from sparcom_analysis.resampling.pairs import PairMatrix, fixed_bits
from sparcom_analysis.resampling.permutation import (
    MAX_GROUPS,
    category_sums,
    cell_means,
    holm,
    label_tests,
    permuted_labels,
    permuted_rows,
    pvalue,
    pvalues,
    step_down,
)


def label_pvalues(pairs: PairMatrix, permutations: int = 9999, seed: int = 0, progress: Any = None) -> dict[str, Any]:
    """Return the tests for this number of permutations."""
    return label_tests(pairs, Options(n_permutations=permutations, seed=seed), progress)


def random_pairs(categories: Sequence[str], seed: int, lift: float = 0.0, empty: Sequence[int] = ()) -> PairMatrix:
    """Return random pair values, `lift` higher within a category; NaN for pairs within `empty`."""
    rng = np.random.default_rng(seed)
    count = len(categories)
    values = rng.uniform(0, 0.5, (count, count))
    values = (values + values.T) / 2
    names = np.array(categories)
    values[names[:, None] == names] += lift
    values[np.diag_indices(count)] = 1
    values[np.ix_(list(empty), list(empty))] = np.nan
    return PairMatrix(list(categories), values)


def cell_mean(values: NDArray[np.float64], names: Sequence[int], inside: Callable[[int, int], bool]) -> float:
    """Return the mean over pairs whose two categories fulfill `inside`; NaN if there is none."""
    count = len(names)
    found = [values[i, j] for i in range(count) for j in range(i + 1, count) if inside(names[i], names[j])]
    known = [value for value in found if not np.isnan(value)]
    return float(np.mean(known)) if known else np.nan


def statistics(values: NDArray[np.float64], names: Sequence[int], count: int) -> list[float]:
    """Return the statistics of the whole, each category and each two categories, by loops."""
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


def step_down_by_definition(table: NDArray[np.float64]) -> list[float]:
    """Apply Westfall and Young's correction by its definition: (labelings, k), the observed one first."""
    scores = (table - np.nanmean(table, axis=0)) / np.nanstd(table, axis=0)
    order = sorted(range(table.shape[1]), key=lambda k: -scores[0, k])
    result, before = [0.0] * len(order), 0.0
    for place, k in enumerate(order):
        largest = np.nanmax(scores[:, order[place:]], axis=1)
        before = max(before, float((largest[1:] >= scores[0, k]).sum() + 1) / len(scores))
        result[k] = before
    return result


@settings(deadline=None, max_examples=20)
@given(
    categories=st.lists(st.sampled_from("abc"), min_size=6, max_size=12).filter(
        lambda names: len(set(names)) > 1 and all(names.count(name) > 2 for name in set(names))
    ),
    lift=st.sampled_from([0.0, 0.1, 0.4]),
    empty=st.sets(st.integers(0, 5), max_size=2),
    seed=st.integers(0, 999),
)
def test_everything_equals_loops(categories: list[str], lift: float, empty: set[int], seed: int) -> None:
    """Means, p and adjusted p of every statistic equal loops over the defined pairs of each labeling."""
    pairs = random_pairs(categories, seed, lift, sorted(empty))
    found = label_pvalues(pairs, 19, seed)
    permuted = permuted_labels(pairs.codes.astype(np.int16), 19, seed, 19, None)
    names = [pairs.codes.tolist(), *np.concatenate(list(permuted)).tolist()]
    count = len(pairs.labels)
    table = np.array([statistics(pairs.values, one, count) for one in names])
    p = (1 + (table[1:] >= table[0] - 1e-12).sum(axis=0)) / 20
    assert found["overall_pvalue"] == pytest.approx(p[0])
    assert found["overall_within"] - found["overall_between"] == pytest.approx(table[0, 0], abs=1e-12)
    np.testing.assert_allclose(found["within"] - found["others"], table[0, 1 : 1 + count], atol=1e-12)
    own, above = np.diag_indices(count), np.triu_indices(count, 1)
    np.testing.assert_allclose(found["pvalue"][own], p[1 : 1 + count])
    np.testing.assert_allclose(found["pvalue_adjusted"][own], step_down_by_definition(table[:, 1 : 1 + count]))
    np.testing.assert_allclose(found["pvalue"][above], p[1 + count :])
    if count > 2:  # a single pair of categories needs no correction
        np.testing.assert_allclose(found["pvalue_adjusted"][above], step_down_by_definition(table[:, 1 + count :]))
    np.testing.assert_array_equal(found["pvalue_adjusted"], found["pvalue_adjusted"].T)
    assert found["null_mean"] == pytest.approx(cell_mean(pairs.values, names[0], lambda *_: True), abs=1e-12)
    labels = np.array(names, dtype=np.int16)
    for one, means in zip(names, cell_means(pairs, labels, count), strict=True):
        for x, y in product(range(count), repeat=2):
            expected = cell_mean(pairs.values, one, lambda a, b, x=x, y=y: (a, b) in {(x, y), (y, x)})  # type: ignore[misc]
            assert means[x, y] == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("seed", range(3))
def test_p_of_all_labelings_is_scipys(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Over all permutations of six instructions, p equals that of scipy's exact permutation test."""
    pairs = random_pairs(list("aabacc"), seed, lift=0.05)
    names = pairs.codes
    every = np.array(list(permutations(names.tolist()))[1:], dtype=np.int16)
    monkeypatch.setattr("sparcom_analysis.resampling.permutation.permuted_labels", lambda *_: [every])
    found = label_pvalues(pairs)

    def of(place: int) -> float:
        def statistic(shuffled: NDArray[np.intp]) -> float:
            return statistics(pairs.values, shuffled.tolist(), 3)[place]

        return float(
            permutation_test(
                (names,), statistic, permutation_type="pairings", n_resamples=np.inf, alternative="greater"
            ).pvalue
        )

    assert found["overall_pvalue"] == pytest.approx(of(0))
    assert found["pvalue"][2, 2] == pytest.approx(of(3))
    assert found["pvalue"][0, 2] == pytest.approx(of(5))


@settings(deadline=None, max_examples=25)
@given(count=st.integers(2, 150), labels=st.integers(1, 5), seed=st.integers(0, 999), cores=st.sampled_from([1, 3]))
def test_sums_equal_loops_on_any_number_of_cores(count: int, labels: int, seed: int, cores: int) -> None:
    """Each cell is exactly the fixed-point sum over its pairs, or the number of its undefined pairs."""
    rng = np.random.default_rng(seed)
    pairs = random_pairs(["a"] * count, seed, empty=range(0, count, 3))
    names = rng.integers(0, labels, (4, count)).astype(np.int16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparcom_analysis.resampling.permutation.cores", lambda: cores)
        found = category_sums(pairs.values, names, labels, fixed_bits(count))
        missing = category_sums(pairs.values, names, labels, None)
    unknown = np.isnan(pairs.values)
    whole = np.rint(np.ldexp(np.nan_to_num(pairs.values), fixed_bits(count))).astype(np.int64)
    upper = np.triu(np.ones((count, count), dtype=bool), 1)
    for one, sums, numbers in zip(names, found, missing, strict=True):
        for a, b in product(range(labels), repeat=2):
            cells = (one[:, None] == a) & (one == b) | (one[:, None] == b) & (one == a)
            assert sums[a, b] == whole[cells & upper].sum()
            assert numbers[a, b] == unknown[cells & upper].sum()


def test_permutations_keep_the_sizes_of_categories() -> None:
    """Each permutation reorders the labels and keeps the number of each."""
    pairs = random_pairs(["a"] * 7 + ["b"] * 3 + ["c"], 0)
    names = np.concatenate(list(permuted_labels(pairs.codes.astype(np.int16), 50, 3, 20, None)))
    assert names.shape == (50, 11)
    for one in names:
        assert np.bincount(one).tolist() == [7, 3, 1]
    assert len(np.unique(names, axis=0)) > 30


def test_batches_and_cores_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither batches nor cores change the result; another seed does."""
    pairs = random_pairs([str(k % 4) for k in range(90)], 1, lift=0.01)
    expected = label_pvalues(pairs, permutations=200)
    other = label_pvalues(pairs, permutations=200, seed=1)
    assert (other["pvalue"] != expected["pvalue"]).any()
    for size, most, cores in ((1, 9, 1), (5000, 100, 2), (1 << 30, 7, 7)):
        monkeypatch.setattr("sparcom_analysis.resampling.permutation.BATCH_BYTES", size)
        monkeypatch.setattr("sparcom_analysis.resampling.permutation.BATCH", most)
        monkeypatch.setattr("sparcom_analysis.resampling.permutation.cores", lambda cores=cores: cores)
        monkeypatch.setattr("sparcom_analysis.kernels.compiled.cores", lambda cores=cores: cores)
        for name, values in label_pvalues(pairs, 200).items():
            np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_progress_ends_at_all_permutations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is reported after each batch, with permutations done and in total."""
    monkeypatch.setattr("sparcom_analysis.resampling.permutation.BATCH", 20)
    calls: list[tuple[int, int]] = []
    label_pvalues(random_pairs(["a", "b"] * 3, 0), permutations=50, progress=lambda *call: calls.append(call))
    assert calls == [(20, 50), (40, 50), (50, 50)]


def test_categories_that_differ_are_found_and_others_not() -> None:
    """A homogeneous category has the smallest possible p; three arbitrary ones are not significant."""
    categories = ["same"] * 10 + ["x", "y", "z"] * 10
    pairs = random_pairs(categories, 2)
    values = pairs.values.copy()
    values[:10, :10] = np.maximum(values[:10, :10], 0.45)
    found = label_pvalues(PairMatrix(categories, values), permutations=499)
    plain, adjusted = found["pvalue"].diagonal(), found["pvalue_adjusted"].diagonal()
    assert found["overall_pvalue"] == plain[0] == adjusted[0] == 1 / 500
    assert (adjusted[1:] > 0.05).all()
    assert (adjusted >= plain).all()


def test_p_is_uniform_under_the_null() -> None:
    """Of 200 archives without structure, about 5 % have p ≤ 0.05, and at most that many have any adjusted p ≤ 0.05."""
    whole = any_category = any_pair = 0
    for seed in range(200):
        found = label_pvalues(random_pairs(["a", "b", "c", "d"] * 4, seed), permutations=99, seed=seed)
        whole += found["overall_pvalue"] <= 0.05
        any_category += bool((found["pvalue_adjusted"].diagonal() <= 0.05).any())
        any_pair += bool((found["pvalue_adjusted"][np.triu_indices(4, 1)] <= 0.05).any())
    assert 2 <= whole <= 21
    assert 2 <= any_category <= 21
    assert 2 <= any_pair <= 21


def test_instructions_without_values_take_no_part() -> None:
    """An instruction without any value changes nothing."""
    pairs = random_pairs(["a", "b"] * 6, 3, lift=0.1)
    values = np.full((13, 13), np.nan)
    values[:12, :12] = pairs.values
    found = label_pvalues(PairMatrix([*pairs.categories, "a"], values), permutations=50)
    expected = label_pvalues(pairs, permutations=50)
    for name, held in found.items():
        np.testing.assert_allclose(held, expected[name], rtol=0, atol=1e-12)


def test_a_category_of_one_has_no_test_of_its_own() -> None:
    """It has no pair within. Its pairs with others are tested, and so are the other categories."""
    found = label_pvalues(random_pairs(["a", "b", "b", "c", "c"], 0), permutations=30)
    for name in ("pvalue", "pvalue_adjusted"):
        assert np.isnan(found[name].diagonal()).tolist() == [True, False, False]
    assert np.isfinite(found["pvalue_adjusted"][0, 1:]).all()


def test_nothing_to_compare_gives_nan() -> None:
    """One category has no pairs between, and single instructions have none within: p is NaN, never 1 or 0."""
    for categories in (["a"] * 4, ["a", "b", "c"]):
        found = label_pvalues(random_pairs(categories, 0), permutations=9)
        assert np.isnan([found["overall_pvalue"], *found["pvalue"].diagonal()]).all()
    nothing = PairMatrix(["a", "b"], np.full((2, 2), np.nan))
    found = label_pvalues(nothing, permutations=9)
    assert np.isnan([found["overall_pvalue"], found["null_mean"], found["pvalue"][0, 1]]).all()


def test_equal_values_are_not_significant() -> None:
    """If all pairs are equal, every labeling gives the same statistic: p is 1, adjusted or not."""
    values = np.full((9, 9), 0.3)
    values[np.diag_indices(9)] = 1
    found = label_pvalues(PairMatrix(list("abc") * 3, values), permutations=40)
    assert found["overall_pvalue"] == 1.0
    assert (found["pvalue"] == 1.0).all()
    assert (found["pvalue_adjusted"] == 1.0).all()


def test_the_number_of_categories_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond one limit, pairs of categories have no p. Beyond the other, nothing is tested, and the error gives the
    reason.
    """
    monkeypatch.setattr("sparcom_analysis.resampling.permutation.MAX_PAIRED", 2)
    found = label_pvalues(random_pairs(list("abc") * 3, 0), permutations=9)
    assert np.isnan(found["pvalue"][np.triu_indices(3, 1)]).all()
    assert np.isfinite(found["pvalue_adjusted"].diagonal()).all()
    many = [str(k) for k in range(MAX_GROUPS + 1)]
    with pytest.raises(NotComputableError, match="up to 256 groups; there are 257"):
        label_pvalues(random_pairs(many, 0), permutations=9)


def test_permutations_without_a_value_count_in_p() -> None:
    """Permutations that lack a statistic count in its p, and its adjusted p is never below p."""
    statistics = np.array([[3.0, 1.0], [np.nan, 0.0], [2.0, 2.0], [np.nan, 0.0]])
    np.testing.assert_allclose(pvalues(statistics), [3 / 4, 2 / 4])
    assert (step_down(statistics) >= pvalues(statistics)).all()
    assert np.isnan(pvalues(np.array([[np.nan], [1.0]]))).all()


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=8))
def test_holm_is_its_definition(p: list[float]) -> None:
    """Each p is multiplied by the number of p not below it, is at least the result of a smaller p, and at most 1. NaN
    is no test.
    """
    order = sorted(range(len(p)), key=lambda k: p[k])
    expected, before = [0.0] * len(p), 0.0
    for rank, k in enumerate(order):
        before = max(before, min(1.0, p[k] * (len(p) - rank)))
        expected[k] = before
    np.testing.assert_allclose(holm(np.array(p)), expected)
    np.testing.assert_allclose(holm(np.array([np.nan, *p])), [np.nan, *expected])


def test_permuted_rows_deal_all_instructions() -> None:
    """Every permutation deals each instruction to one group, in the groups' sizes; the stream is PCG64's."""
    codes = np.array([0, 1, 0, 2, 1, 0])
    rng = np.random.Generator(np.random.PCG64(4))
    for rows in permuted_rows(codes, 20, 4):
        assert [len(some) for some in rows] == [3, 2, 1]
        np.testing.assert_array_equal(np.concatenate(rows), rng.permutation(6))
    assert pvalue(3, 99) == 0.04


def test_no_permutations_are_no_tests() -> None:
    """With n_permutations=0 the means are unchanged, and nothing is tested."""
    pairs = random_pairs(["a", "b"] * 4, 0)
    found, tested = label_tests(pairs, Options(n_permutations=0)), label_pvalues(pairs, 9)
    assert set(tested) - set(found) == {"overall_pvalue", "pvalue", "pvalue_adjusted"}
    for name, values in found.items():
        np.testing.assert_array_equal(values, tested[name])
