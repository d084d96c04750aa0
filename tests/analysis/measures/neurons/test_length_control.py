"""Equations 10 and 14 subsampled to equal length, checked with loops over sets and draws; sentences."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.collections import QuadMesh
from numpy.typing import NDArray
from scipy.stats import spearmanr

from sparcom_analysis import find_ises, find_isns
from sparcom_analysis.archive.categories import category_labels
from sparcom_analysis.archive.counted_rows import TokenDraw
from sparcom_analysis.measures.experts.length_control import MEASURE as ROUTING
from sparcom_analysis.measures.experts.length_control import routing_length_control
from sparcom_analysis.measures.neurons.length_control import MEASURE, caption, figure, length_control, plot, sentences
from sparcom_analysis.options import Options
from sparcom_analysis.resampling.bootstrap import resamples_for
from sparcom_analysis.resampling.subsampling import matrix_change


def means(values: NDArray[np.float64], names: list[str], order: list[str], *, own: bool) -> NDArray[np.float64]:
    """Return category means of pair values, float64 (n, n), pair by pair; NaN if there is none."""
    out = np.full((len(order), len(order)), np.nan)
    for a, b in product(range(len(order)), repeat=2):
        found = [
            values[i, j]
            for i, j in product(range(len(names)), repeat=2)
            if (names[i], names[j]) == (order[a], order[b]) and (own or i != j) and not np.isnan(values[i, j])
        ]
        if found:
            out[a, b] = np.mean(found)
    return out


def jaccard(isn: Any, chosen: list[int]) -> NDArray[np.float64]:
    """Return the Jaccard index of every pair of these sets; NaN for two empty sets."""
    sets = [{tuple(where) for where in np.argwhere(isn.mask(k)).tolist()} for k in chosen]
    return np.array([[len(a & b) / len(a | b) if a | b else np.nan for b in sets] for a in sets])


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 14), min_size=6, max_size=9),
    categories=st.lists(st.sampled_from(["a", "", "(none)", "b"]), min_size=9, max_size=9),
    m=st.integers(1, 8),
    seed=st.integers(0, 9),
)
@pytest.mark.filterwarnings("ignore:An input array is")
def test_both_matrices_cover_the_same_instructions(  # type: ignore[no-untyped-def]
    make_case, lengths: list[int], categories: list[str], m: int, seed: int
) -> None:
    """Plain and subsampled means are over pairs of the same long enough instructions, for any category labels."""
    names = categories[: len(lengths)]
    chosen = [k for k, length in enumerate(lengths) if length >= m]
    if len(chosen) < 2:
        return
    archive = make_case(lengths, names, seed=seed).archive
    isn = find_isns(archive, top=0.2)
    equal = find_isns(archive, top=0.2, draw=TokenDraw(m, seed))
    ds = length_control(isn, equal_length_tokens=m, seed=seed, n_resamples=0)
    order, kept = list(dict.fromkeys(names)), [names[k] for k in chosen]
    assert ds["category"].values.tolist() == category_labels(names)
    for own in (True, False):
        left = means(jaccard(isn, chosen), kept, order, own=own)
        right = means(jaccard(equal, list(range(len(chosen)))), kept, order, own=own)
        np.testing.assert_allclose(ds["value"].sel(self_pairs=own), [left, right, right - left], rtol=0, atol=1e-12)
        change = matrix_change(*ds["value"].sel(self_pairs=own).values[:2])
        one = ds.sel(self_pairs=own)
        for name in ("rank_correlation", "mean_change", "largest_change", "compared_rows"):
            assert float(one[name]) == pytest.approx(change[name], nan_ok=True)
        assert one["diagonal_largest"].values[:2].tolist() == list(change["diagonal_largest"])
    sizes = isn.sizes[chosen], equal.sizes
    for k, size in enumerate(sizes):
        assert float(ds["mean_size"][k]) == pytest.approx(size.mean())
        rho = spearmanr(np.array(lengths)[chosen], size).statistic
        assert float(ds["length_correlation"][k]) == pytest.approx(rho, abs=1e-12, nan_ok=True)
    assert ds["used"].values.tolist() == [kept.count(name) for name in order]
    assert (ds["used"] + ds["too_short"]).values.tolist() == [names.count(name) for name in order]
    assert (ds.attrs["drawn_tokens"], ds.attrs["instructions"]) == (m, len(chosen))


def test_experts_are_compared_over_the_same_instructions(make_moe) -> None:  # type: ignore[no-untyped-def]
    """Equation 14 covers the long enough instructions, with all their tokens and with the drawn ones."""
    archive = make_moe(lengths=(4, 14), per_category=6, categories=("a", "b", "c")).archive
    experts, equal = find_ises(archive), find_ises(archive, draw=TokenDraw(9, 3))
    chosen = [k for k, index in enumerate(experts.instruction) if index in equal.instruction]
    assert 3 < len(chosen) < len(experts)
    ds = routing_length_control(experts, equal_length_tokens=9, seed=3, n_resamples=0)
    for version, frequencies in (("plain", experts.frequencies[chosen]), ("equal_length", equal.frequencies)):
        r = np.corrcoef(frequencies.reshape(len(chosen), -1))
        for own in (True, False):
            expected = means(r, list(equal.categories), ["a", "b", "c"], own=own)
            np.testing.assert_allclose(ds["value"].sel(version=version, self_pairs=own), expected, atol=1e-12)


def test_intervals_use_the_same_resamples(make_moe) -> None:  # type: ignore[no-untyped-def]
    """Plain, subsampled and their difference have intervals from the same resamples."""
    archive = make_moe(lengths=(7, 14), per_category=8, categories=("a", "b")).archive
    isn = find_isns(archive)
    equal = find_isns(archive, draw=TokenDraw(8, 0))
    ds = length_control(isn, equal_length_tokens=8, n_resamples=15, confidence_level=0.8)
    resamples = resamples_for(equal.categories, Options(n_resamples=15))
    assert resamples is not None
    kept = [k for k, index in enumerate(isn.instruction) if index in equal.instruction]
    pairs = isn.pairs.values[np.ix_(kept, kept)], equal.pairs.values
    groups = np.array(equal.categories)
    for (a, x), (b, y) in [((0, "a"), (0, "a")), ((0, "a"), (1, "b"))]:
        results = []
        for row in resamples.weights:
            one, other = ([k for k in np.flatnonzero(groups == name) for _ in range(int(row[k]))] for name in (x, y))
            cells = [(i, j) for i in one for j in other if i != j]
            results.append([np.mean([values[cell] for cell in cells]) if cells else np.nan for values in pairs])
        drawn = np.array(results)
        drawn = np.column_stack([drawn, drawn[:, 1] - drawn[:, 0]])
        low, high = np.nanquantile(drawn, [0.1, 0.9], axis=0)
        cell = ds.sel(self_pairs=False).isel(category=a, category_2=b)
        np.testing.assert_allclose(cell["ci_low"], low, rtol=0, atol=1e-12)
        np.testing.assert_allclose(cell["ci_high"], high, rtol=0, atol=1e-12)


def test_equal_lengths_change_nothing(make_moe) -> None:  # type: ignore[no-untyped-def]
    """If all have m tokens, both versions equal the plain measure, the differences are 0 and the order is kept."""
    archive = make_moe(lengths=(10, 10), categories=("a", "b", "c")).archive
    isn, experts = find_isns(archive), find_ises(archive)
    for subject, compute in ((isn, length_control), (experts, routing_length_control)):
        ds = compute(subject, n_resamples=0)  # type: ignore[operator]
        for version in ("plain", "equal_length"):
            np.testing.assert_array_equal(ds["value"].sel(version=version), np.stack(subject.pairs.means()))
        assert (ds["value"].sel(version="difference") == 0).all()
        assert (ds["rank_correlation"] == 1.0).all()
    said = sentences(length_control(isn, n_resamples=0))
    assert "is preserved (rank correlation 1.00)." in said[0]
    assert said[1] == "No mean Jaccard index of ISN sets (neurons of routed experts) changes."
    assert said[-1].endswith("set size does not depend on length.")


def test_special_tokens_stay_left_out(make_moe) -> None:  # type: ignore[no-untyped-def]
    """The archive is read again with the options and the population of the plain sets."""
    archive = make_moe(lengths=(12, 20)).archive
    options: Any = {"special_tokens": "leave_out", "special_token_ids": list(range(0, 1000, 4)), "min_frequency": 0.5}
    isn = find_isns(archive, population="neuron", **options)
    expected = find_isns(archive, population="neuron", draw=TokenDraw(5), **options)
    ds = length_control(isn, equal_length_tokens=5, n_resamples=0)
    assert float(ds["mean_size"].sel(version="equal_length")) == expected.sizes.mean()
    np.testing.assert_array_equal(ds["value"].sel(version="equal_length"), np.stack(expected.pairs.means()))
    assert (ds.attrs["population"], ds.attrs["rule"]) == ("neuron", "p ≥ 0.5")


@pytest.fixture
def found(make_moe) -> xr.Dataset:  # type: ignore[no-untyped-def]
    """Return a control in which some instructions are too short."""
    archive = make_moe(lengths=(6, 20), per_category=8, categories=("a$b", "b", "c")).archive
    return length_control(find_isns(archive), equal_length_tokens=10, n_resamples=20)


def test_the_dataset_survives_json(found: xr.Dataset) -> None:
    """Strings, whole numbers and NaN come back from JSON."""
    again = xr.Dataset.from_dict(json.loads(json.dumps(found.to_dict())))
    for name in found:
        np.testing.assert_array_equal(again[name].values, found[name].values)
    assert again.attrs == found.attrs


def test_sentences_follow_their_numbers(found: xr.Dataset) -> None:
    """Sentences give rank order, changes, left-out instructions, and the correlation of size and length."""
    ds = found.copy(deep=True)
    ds.attrs["self_pairs_shown"] = True
    for name, value in (("rank_correlation", 0.42), ("mean_change", 0.0123), ("largest_change", -0.25)):
        ds[name].loc[True] = value
    ds["largest_change_category"] = ("self_pairs", ["b", "c"])
    ds["largest_change_category_2"] = ("self_pairs", ["c", "c"])
    ds["ci_low"].loc["difference", True, "b", "c"], ds["ci_high"].loc["difference", True, "b", "c"] = -0.3, -0.2
    ds["too_short"][:] = [1, 0, 1]
    ds["length_correlation"][:] = [0.5, -0.125, np.nan]
    said = sentences(ds)
    index = "mean Jaccard index of ISN sets (neurons of routed experts)"
    assert said == [
        "Subsampled to equal length (10 tokens per instruction), the order of category pairs by "
        f"{index} is not preserved (rank correlation 0.42).",
        f"The {index} changes by +0.012 on average, most between b and c (−0.250; 95 % CI −0.300 to −0.200).",
        "2 instructions are too short and left out.",
        "The rank correlation of set size and number of tokens is +0.50; subsampled to equal length, it is −0.12.",
    ]
    for rho, words in ((0.95, "is preserved"), (0.7, "is partly preserved"), (np.nan, "too few category pairs differ")):
        ds["rank_correlation"].loc[True] = rho
        assert words in sentences(ds)[0]
    ds["largest_change"].loc[True] = np.nan
    assert sentences(ds)[0].endswith("to compare.")
    assert len(sentences(ds)) == 2
    assert "expert frequencies" in ROUTING.sentences(ds)[0]


def test_figures_show_all_three_versions(found: xr.Dataset) -> None:
    """Both measures share one color scale; the difference is marked where its interval excludes 0."""
    axes = figure(found).axes[:3]
    meshes = [next(item for item in ax.collections if isinstance(item, QuadMesh)) for ax in axes]
    assert meshes[0].get_clim() == meshes[1].get_clim()
    for mesh, version in zip(meshes, found["version"].values, strict=True):
        shown = found["value"].sel(self_pairs=True, version=version)
        np.testing.assert_allclose(np.asarray(mesh.get_array()), shown)
    assert plot(found, axes[2], version="difference") is axes[2]
    assert caption(found).startswith("Mean Jaccard index for each pair of categories")
    assert "10 sampled tokens per instruction" in caption(found)
    assert (MEASURE.needs, ROUTING.needs) == ("isn", "experts")
