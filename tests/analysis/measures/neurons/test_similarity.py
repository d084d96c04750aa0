"""Equation 10, checked with SciPy, Python sets and loops; its sentences; the limit of instructions."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import QuadMesh
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from sparcom_analysis import find_isns
from sparcom_analysis.archive.categories import category_codes, category_labels
from sparcom_analysis.kernels.bitsets import Bitsets
from sparcom_analysis.kernels.intersections import jaccard_blocks
from sparcom_analysis.measures.neurons.similarity import MEASURE, caption, sentences, similarity
from sparcom_analysis.measures.pair_means import closest, plot_pair_means, shown
from sparcom_analysis.resampling.pairs import PairMatrix, keep_pairs


def jaccard_pairs(masks: NDArray[np.bool_], categories: list[str]) -> PairMatrix:
    """Return the pairs of sets given as bool (n, layer, neuron)."""
    packed = np.packbits(masks, axis=2, bitorder="little").reshape(len(masks), -1)
    words = np.zeros((len(masks), -(-packed.shape[1] // 8)), dtype=np.uint64)
    words.view(np.uint8)[:, : packed.shape[1]] = packed
    sets = Bitsets(*words.shape)
    for k, row in enumerate(words):
        sets[k] = row
    return keep_pairs(categories, jaccard_blocks(sets, masks.sum(axis=(1, 2))))


@settings(deadline=None, max_examples=30)
@given(
    count=st.integers(2, 90),
    layers=st.integers(1, 3),
    width=st.integers(1, 70),
    rate=st.sampled_from([0.02, 0.3, 0.9]),
    seed=st.integers(0, 999),
)
def test_pairs_equal_scipy(count: int, layers: int, width: int, rate: float, seed: int) -> None:
    """Every Jaccard index is 1 minus scipy's Jaccard distance; two empty sets have none."""
    masks = np.random.default_rng(seed).random((count, layers, width)) < rate
    flat = masks.reshape(count, -1)
    expected = 1 - cdist(flat, flat, "jaccard")
    empty = ~flat.any(axis=1)
    expected[np.ix_(empty, empty)] = np.nan
    np.testing.assert_allclose(jaccard_pairs(masks, ["c"] * count).values, expected, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(
    categories=st.lists(st.sampled_from(["CLS", "", "GEN", "Übersetzen"]), min_size=2, max_size=60),
    rate=st.sampled_from([0.01, 0.3, 0.9]),
    seed=st.integers(0, 999),
)
def test_categories_equal_loops_over_sets(categories: list[str], rate: float, seed: int) -> None:
    """Both matrices are means over pairs of Python sets, with and without self pairs; pairs of empty sets are
    skipped.
    """
    masks = np.random.default_rng(seed).random((len(categories), 2, 23)) < rate
    sets = [{(int(j), int(i)) for j, i in zip(*np.nonzero(mask), strict=True)} for mask in masks]
    pairs = jaccard_pairs(masks, categories)
    with_self, without = pairs.means()
    order = list(dict.fromkeys(categories))
    assert pairs.labels == [name or "(none)" for name in order]
    for a, first in enumerate(order):
        for b, second in enumerate(order):
            found = [
                (x, y, len(sets[x] & sets[y]) / len(sets[x] | sets[y]))
                for x in range(len(sets))
                for y in range(len(sets))
                if categories[x] == first and categories[y] == second and sets[x] | sets[y]
            ]
            for matrix, values in (
                (with_self, [value for *_, value in found]),
                (without, [value for x, y, value in found if x != y]),
            ):
                expected = np.mean(values) if values else np.nan
                assert matrix[a, b] == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_block_size_of_pairs_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of cores changes no digit of the means; the block size changes only rounding."""
    masks = np.random.default_rng(3).random((140, 2, 40)) < 0.2
    names = [str(k % 3) for k in range(140)]
    expected = jaccard_pairs(masks, names).means()
    for cores in (1, 2, 16):
        monkeypatch.setattr("sparcom_analysis.kernels.compiled.cores", lambda cores=cores: cores)
        np.testing.assert_array_equal(jaccard_pairs(masks, names).means(), expected)
    for paired in (5, 33, 139):
        monkeypatch.setattr("sparcom_analysis.kernels.intersections.PAIRED", paired)
        np.testing.assert_allclose(jaccard_pairs(masks, names).means(), expected, rtol=0, atol=1e-12)


def test_a_category_labeled_none_stays_separate() -> None:
    """A category that is really labeled "(none)" is distinct from instructions without a category."""
    names = ["", "(none)", "a", "", "(no category)"]
    labels = category_labels(names)
    assert labels[1:] == ["(none)", "a", "(no category)"]
    assert len(set(labels)) == 4
    assert category_codes(names).tolist() == [0, 1, 2, 0, 3]


@pytest.fixture
def found(make_case: Any) -> xr.Dataset:
    """Equation 10 of twelve instructions with intervals and tests."""
    case = make_case([6, 9, 7] * 4, ["QA", "CODE", ""] * 4, rates=(0.3, 0.5, 0.2))
    return similarity(find_isns(case.archive, top=0.2), n_resamples=20, n_permutations=19)


def test_the_dataset_is_whole_and_survives_json(found: xr.Dataset) -> None:
    """Values, intervals and p-values are in one Dataset, which survives JSON."""
    assert found["value"].dims == ("self_pairs", "category", "category_2")
    assert set(found) == {
        *("value", "ci_low", "ci_high", "pvalue", "pvalue_adjusted", "null_mean", "within", "others"),
        *("overall_within", "overall_between", "overall_pvalue"),
    }
    assert found["category"].values.tolist() == ["QA", "CODE", "(none)"]
    inside = found.sel(self_pairs=False)
    assert ((inside["ci_low"] <= inside["value"]) & (inside["value"] <= inside["ci_high"])).all()
    again = xr.Dataset.from_dict(json.loads(json.dumps(found.to_dict())))
    for name in found:
        np.testing.assert_array_equal(again[name].values.astype(float), found[name].values)
    assert again.attrs["undefined"] == 0


def test_empty_sets_are_counted(make_case: Any) -> None:
    """Instructions with an empty set count as undefined; means skip their pairs."""
    isn = find_isns(make_case([6, 9, 7, 8], ["a", "b"] * 2, rates=(0.5, 0.0, 0.4, 0.0)).archive, top=0.2)
    found = similarity(isn, n_resamples=20, n_permutations=19)
    assert found.attrs["undefined"] == 2
    assert np.isnan(found["value"].sel(category="b", category_2="b")).all()
    assert (found["value"].sel(category="a", category_2="b") == 0).all()


def test_too_many_instructions_have_only_means(make_case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit of pairs, means are the same, without intervals and tests, and the reason is given."""
    isn = find_isns(make_case([6, 9, 7] * 2, ["QA", "CODE", ""] * 2).archive, top=0.2)
    expected = similarity(isn, n_resamples=20, n_permutations=19)
    monkeypatch.setattr("sparcom_analysis.resampling.pairs.MAX_INSTRUCTIONS", 5)
    found = similarity(isn.take(np.arange(6)), n_resamples=20, n_permutations=19)
    np.testing.assert_array_equal(found["value"], expected["value"])
    assert list(found) == ["value"]
    assert "up to 5 instructions; there are 6" in found.attrs["reason"]
    assert not {"n_resamples", "n_permutations", "confidence_level"} & set(found.attrs)
    assert "Pairs of an instruction with itself" in caption(found)
    monkeypatch.undo()
    monkeypatch.setattr("sparcom_analysis.resampling.permutation.MAX_GROUPS", 2)
    assert "ci_low" in (untested := similarity(isn, n_resamples=20))
    assert untested.attrs["reason"].startswith("Permutation tests support up to 2 groups")


def test_sentences_without_permutations_have_no_p(make_case: Any) -> None:
    """Without permutations, the means within and between are the same, and the sentence omits p."""
    isn = find_isns(make_case([6, 9, 7] * 2, ["QA", "CODE", ""] * 2).archive, top=0.2)
    ds, tested = (similarity(isn, n_resamples=0, n_permutations=number) for number in (0, 9))
    for name in ("overall_within", "overall_between"):
        assert float(ds[name]) == float(tested[name])
    assert "n_permutations" not in ds.attrs
    first = sentences(ds)[0]
    assert f"is {float(ds['overall_within']):.3f} within categories" in first
    assert first.endswith("between them (pairs of different instructions).")


def test_sentences_follow_their_numbers(found: xr.Dataset) -> None:
    """Sentences give within and between means, significant categories and the closest two."""
    ds = found.copy(deep=True)
    ds["overall_within"], ds["overall_between"], ds["overall_pvalue"] = 0.4321, 0.1234, 0.0004
    ds["pvalue_adjusted"][:] = 0.5
    ds["pvalue_adjusted"].loc["QA", "QA"] = 0.01
    for cell in (("QA", "(none)"), ("(none)", "QA")):
        for name, value in (("value", 0.777), ("ci_low", 0.7), ("ci_high", 0.8)):
            ds[name].loc[False, cell[0], cell[1]] = value
    assert closest(ds) == ("QA", "(none)")
    first, second, third = sentences(ds)
    assert first.startswith("Mean Jaccard similarity of ISN sets is 0.432 within categories and 0.123 between")
    assert "p < 0.001" in first
    assert second.startswith("1 of 3 categories is significantly more similar within than to other categories")
    assert second.endswith("(corrected p < 0.05): QA.")
    assert third == "The two most similar categories are QA and (none): 0.777 (95 % CI 0.700–0.800)."
    untested = sentences(ds.drop_vars(["overall_pvalue", "pvalue", "pvalue_adjusted"]))
    assert untested == [first.replace("; permutation test, p < 0.001", ""), third]
    assert sentences(ds[["value"]]) == [third.removesuffix(" (95 % CI 0.700–0.800).") + "."]


def test_the_figure_shows_the_chosen_version(found: xr.Dataset) -> None:
    """The heat map shows the version with or without self pairs, in the given axes."""
    ax = plot_pair_means(found, self_pairs=False)
    mesh = next(item for item in ax.collections if isinstance(item, QuadMesh))
    np.testing.assert_allclose(np.asarray(mesh.get_array()), shown(found, self_pairs=False)["value"])
    assert plot_pair_means(found, ax, title="mine", vmin=0.1, vmax=0.7) is ax
    assert ax.get_title() == "mine"
    assert "eq. 10" in caption(found)
    assert "Bold with an asterisk" in caption(found)
    assert MEASURE.compute is similarity
