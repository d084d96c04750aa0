"""Equation 15, checked with Python sets in memory and in a file, in any order; intervals checked with loops."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparcom_analysis import find_isns
from sparcom_analysis.measures.finetuning.jaccard import MEASURE, finetuning_jaccard, sentences
from sparcom_analysis.resampling.bootstrap import resamples_for


def elements(mask: NDArray[np.bool_]) -> set[tuple[int, ...]]:
    return {tuple(place) for place in np.argwhere(mask).tolist()}


def jaccard_of(left: set[tuple[int, ...]], right: set[tuple[int, ...]]) -> float:
    return len(left & right) / len(left | right) if left | right else math.nan


def mean_of(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


@settings(deadline=None, max_examples=15)
@given(
    count=st.integers(1, 10),
    layers=st.integers(1, 3),
    experts=st.sampled_from([1, 3]),
    width=st.integers(1, 40),
    rate=st.sampled_from([0.0, 0.02, 0.4]),
    memory_bytes=st.sampled_from([0, None]),
    seed=st.integers(0, 999),
)
def test_equals_python_sets(
    arrays: Any, count: int, layers: int, experts: int, width: int, rate: float, memory_bytes: int | None, seed: int
) -> None:
    """Values per instruction, layer and category are right for any order of the tuned archive, in memory or in a
    file.
    """
    rng = np.random.default_rng(seed)
    masks = [rng.random((count + 1, layers, experts, width)) < rate for _ in "ab"]
    names, kinds = [f"i{k}" for k in range(count)], [rng.choice(["a", "", "b"]).item() for _ in range(count)]
    order = rng.permutation(count + 1).tolist()
    base = arrays.isns(masks[0], [*kinds, "c"], [*names, "here"], memory_bytes=memory_bytes)
    ids = [[*names, "there"][k] for k in order]
    tuned = arrays.isns(masks[1][order], ["z"] * (count + 1), ids, memory_bytes=memory_bytes)
    ds = finetuning_jaccard(arrays.compare(base, tuned), n_resamples=0)
    assert ds["instruction"].values.tolist() == names
    assert (ds.attrs["only_base"], ds.attrs["only_tuned"], ds.attrs["instructions"]) == (1, 1, count)
    sets = [[elements(side[k]) for k in range(count)] for side in masks]
    expected = [jaccard_of(left, right) for left, right in zip(*sets, strict=True)]
    by_layer = [
        [jaccard_of(elements(masks[0][k, j]), elements(masks[1][k, j])) for j in range(layers)] for k in range(count)
    ]
    np.testing.assert_allclose(ds["instruction_value"], expected, rtol=0, atol=1e-12)
    assert ds["category"].values.tolist() == [name or "(none)" for name in dict.fromkeys(kinds)]
    for kind, name in zip(dict.fromkeys(kinds), ds["category"].values, strict=True):
        members, cell = [k for k in range(count) if kinds[k] == kind], ds.sel(category=name)
        np.testing.assert_allclose(cell["value"], mean_of([expected[k] for k in members]), rtol=0, atol=1e-12)
        layer_means = [mean_of([by_layer[k][j] for k in members]) for j in range(layers)]
        np.testing.assert_allclose(cell["layer_value"], layer_means, rtol=0, atol=1e-12)
        assert cell["undefined"] == sum(math.isnan(expected[k]) for k in members)
        assert cell["counted"] + cell["undefined"] == len(members)
        for side, variable in zip(sets, ("base_isn", "tuned_isn"), strict=True):
            assert float(cell[variable]) == pytest.approx(np.mean([len(side[k]) for k in members]), abs=1e-12)
    np.testing.assert_allclose(ds["overall_value"], mean_of(expected), rtol=0, atol=1e-12)
    np.testing.assert_allclose(ds["overall_change"], 1 - mean_of(expected), rtol=0, atol=1e-12)
    layer_isn = (masks[0][:count].sum(axis=(0, 2, 3)) + masks[1][:count].sum(axis=(0, 2, 3))) / (2 * count)
    np.testing.assert_allclose(ds["layer_isn"], layer_isn, rtol=0, atol=1e-12)


@pytest.mark.parametrize("block_bytes", [50, 1 << 20])
def test_archives_equal_python_sets(make_moe: Any, arrays: Any, tmp_path: Path, block_bytes: int) -> None:
    """Masks on disk give the same values for every population and block size."""
    archives = make_moe(failed=(1,)).archive, make_moe(failed=(5,), seed=1).archive
    for population in ("neuron", "expert_neuron"):
        sides = [
            find_isns(one, top=0.2, population=population, block_bytes=block_bytes, scratch=tmp_path)
            for one in archives
        ]
        comparison = arrays.compare(*sides)
        assert len(comparison) == 8
        places = zip(comparison.matched.base, comparison.matched.tuned, strict=True)
        expected = [jaccard_of(elements(sides[0].mask(i)), elements(sides[1].mask(j))) for i, j in places]
        ds = finetuning_jaccard(comparison, n_resamples=0)
        np.testing.assert_allclose(ds["instruction_value"], expected, rtol=0, atol=1e-12)
        assert 0 < min(expected) <= max(expected) < 1


def pair(arrays: Any, count: int = 12, rate: float = 0.3, seed: int = 0, **options: Any) -> Any:
    """Return random sets of two models: instructions of three categories, three layers of 30 neurons."""
    rng = np.random.default_rng(seed)
    kinds = [("a", "b", "c")[k % 3] for k in range(count)]
    sides = (rng.random((count, 3, 1, 30)) < rate for _ in "ab")
    return arrays.compare(
        *(arrays.isns(m, kinds, name=n, **options) for m, n in zip(sides, ("base", "tuned"), strict=True))
    )


def test_intervals_equal_loops_over_draws(arrays: Any, resampled: Any) -> None:
    """Intervals are of categories, layers and all instructions. Those of the change are one minus these, ends
    swapped.
    """
    comparison = pair(arrays, confidence_level=0.8, seed=5)
    ds = finetuning_jaccard(comparison)
    draws = resamples_for(comparison.matched.categories, comparison.options)
    assert draws is not None
    names = np.array(comparison.matched.categories)
    for prefix, values in (("", comparison.jaccard), ("layer_", comparison.layer_jaccard)):
        for name in (*"abc", None):
            members = np.ones(12, dtype=np.bool_) if name is None else names == name
            ends = np.quantile(resampled(values[members], draws.weights[:, members]), [0.1, 0.9], axis=0)
            cell = ds if name is None else ds.sel(category=name)
            key = f"overall_{prefix}" if name is None else prefix
            np.testing.assert_allclose([cell[f"{key}ci_low"], cell[f"{key}ci_high"]], ends, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(ds["change_ci_low"], 1 - ds["ci_high"])
    np.testing.assert_array_equal(ds["overall_change_ci_high"], 1 - ds["overall_ci_low"])


def test_the_null_is_that_of_random_sets_of_the_same_sizes(arrays: Any) -> None:
    """On average, random sets with as many ISNs per layer have the null's Jaccard index, overall and by layer."""
    rng = np.random.default_rng(3)
    ranks = [rng.random((400, 3, 1, 300)).argsort(axis=3) for _ in "ab"]
    sizes = np.array([30, 90, 5])[None, :, None, None]
    ds = finetuning_jaccard(arrays.compare(*(arrays.isns(r < sizes, ["a"] * 400) for r in ranks)), n_resamples=0)
    assert float(ds["overall_null_mean"]) == pytest.approx(float(ds["overall_value"]), abs=0.003)
    np.testing.assert_allclose(ds["overall_layer_null_mean"], ds["overall_layer_value"], atol=0.006)
    assert float(ds["overall_null_mean"]) == pytest.approx(30.0833 / (250 - 30.0833), abs=1e-4)


def test_a_model_against_itself(arrays: Any) -> None:
    """Every similarity is exactly 1, and two empty sets have none."""
    masks = np.random.default_rng(0).random((4, 2, 1, 9)) < 0.5
    same = arrays.isns(masks, ["x", "x", "y", "y"])
    ds = finetuning_jaccard(arrays.compare(same, same))
    assert (ds["instruction_value"] == 1).all()
    assert not ds["change"].any()
    assert any("the same for x and y (1.000)" in one for one in sentences(ds))
    nothing = arrays.isns(np.zeros((2, 2, 1, 9), dtype=np.bool_), ["x", "x"])
    empty = finetuning_jaccard(arrays.compare(nothing, nothing))
    assert np.isnan(empty["value"]).all()
    assert (empty["undefined"].values.tolist(), empty["overall_counted"]) == ([2], 0)
    (said,) = sentences(empty)
    assert "is undefined: all 2 instructions have no ISN in either model" in said


def test_sentences_follow_the_numbers(arrays: Any) -> None:
    """Each number comes from its variable: mean, interval, change, null, extremes, layers, left-out instructions."""
    ds = finetuning_jaccard(pair(arrays))
    ds["overall_value"], ds["overall_change"], ds["overall_ci_low"], ds["overall_ci_high"] = 0.4, 0.6, 0.35, 0.451
    ds["value"].values[:] = [0.2, 0.4, 0.2]
    ds["overall_null_mean"], ds["overall_undefined"] = 0.123, 1
    ds["overall_layer_value"].values[:] = [0.9, np.nan, 0.5]
    assert sentences(ds) == [
        "The mean Jaccard similarity of each instruction's ISN sets in base and tuned is 0.400 "
        "(95 % CI 0.350–0.451); the change, 1 − similarity, is 0.600.",
        "For random sets with the same number of ISNs per layer, the mean is about 0.123.",
        "By category, the mean is lowest for a and c (0.200) and highest for b (0.400).",
        "Means skip 1 of 12 instructions, which have no ISN in either model.",
        "By layer, the mean similarity is lowest in layer 4 (0.500) and highest in layer 0 (0.900).",
    ]


def test_figures_and_tables_show_the_numbers(arrays: Any) -> None:
    """Bars and curves have the values; tables keep every number; JSON loses none."""
    ds = finetuning_jaccard(pair(arrays))
    assert MEASURE.figure is not None
    left, right = MEASURE.figure(ds).axes[:2]
    assert sorted(bar.get_width() for bar in left.patches) == pytest.approx(sorted(ds["value"].values))
    for line, expected in zip(right.lines, ds["layer_value"].values, strict=False):
        np.testing.assert_array_equal(line.get_ydata(), expected)
    np.testing.assert_array_equal(right.lines[-1].get_ydata(), ds["overall_layer_null_mean"])
    assert MEASURE.tables is not None
    both = MEASURE.tables(ds)
    np.testing.assert_array_equal(both[""]["value"], ds["value"])
    np.testing.assert_array_equal(both["by_layer"]["layer_value"], ds["layer_value"].values.ravel())
    xr.testing.assert_identical(xr.Dataset.from_dict(json.loads(json.dumps(ds.to_dict()))), ds)
