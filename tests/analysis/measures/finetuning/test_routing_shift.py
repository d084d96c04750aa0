"""Total variation of expert frequencies, its centered interval and its null, checked with loops."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparcom_analysis import find_ises
from sparcom_analysis.measures.finetuning.routing_shift import MEASURE, caption, routing_shift, sentences
from sparcom_analysis.resampling.bootstrap import resamples_for


def random_pair(arrays: Any, sizes: list[int], number: int, **options: Any) -> Any:
    """Counts of 6 experts in 2 layers of both models."""
    rng, kinds = np.random.default_rng(number), [f"c{k}" for k, size in enumerate(sizes) for _ in range(size)]
    sides = []
    for name in ("base", "tuned"):
        tokens = rng.integers(1, 9, len(kinds))
        counts = rng.multinomial(tokens[:, None], np.full(6, 1 / 6), size=(len(kinds), 2))
        sides.append(arrays.experts(counts, kinds, name=name, tokens=tokens, **options))
    return arrays.compare(*sides)


def centered(value: NDArray[np.float64], drawn: NDArray[np.float64], level: float) -> list[NDArray[np.float64]]:
    low, high = np.quantile(drawn - drawn.mean(axis=0), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [np.maximum(value + np.minimum(low, 0), 0), value + np.maximum(high, 0)]


@settings(deadline=None, max_examples=10)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_values_and_intervals_equal_loops(arrays: Any, resampled: Any, sizes: list[int], seed: int) -> None:
    """Any number of instructions per category; a category of one has no interval."""
    comparison = random_pair(arrays, sizes, seed, confidence_level=0.8, seed=seed)
    ds, matched = routing_shift(comparison, n_permutations=0), comparison.matched
    draws = resamples_for(matched.categories, comparison.options)
    assert draws is not None
    shift = comparison.tuned.frequencies - comparison.base.frequencies
    for name in (*ds["category"].values, None):
        members = np.array([name in (kind, None) for kind in matched.categories])
        cell, prefix = (ds, "overall_") if name is None else (ds.sel(category=name), "")
        value = np.abs(shift[members].mean(axis=0)).sum(axis=1) / 2
        np.testing.assert_allclose(cell[f"{prefix}value"], value, rtol=0, atol=1e-12)
        np.testing.assert_allclose(cell[f"{prefix}shift"], shift[members].mean(axis=0), rtol=0, atol=1e-12)
        drawn = np.abs(resampled(shift[members], draws.weights[:, members])).sum(axis=2) / 2
        ends = centered(value, drawn, 0.8) if members.sum() > 1 else np.full((2, 2), np.nan)
        np.testing.assert_allclose([cell[f"{prefix}ci_low"], cell[f"{prefix}ci_high"]], ends, rtol=0, atol=1e-12)
    assert "null_mean" not in ds


def test_the_null_exchanges_the_models_per_instruction(arrays: Any) -> None:
    """Its mean and p approximate those of all exchanges; a real shift is found, noise alone is not."""
    comparison = random_pair(arrays, [6], 1)
    ds = routing_shift(comparison, n_permutations=999)
    shift = comparison.tuned.frequencies - comparison.base.frequencies
    every = np.array([np.abs(np.tensordot(s, shift, 1) / 6).sum(axis=1) / 2 for s in product((-1, 1), repeat=6)])
    np.testing.assert_allclose(ds["null_mean"][0], every.mean(axis=0), atol=0.02)
    np.testing.assert_allclose(ds["pvalue"][0], (every >= ds["value"][0].values - 1e-12).mean(axis=0), atol=0.06)
    assert (ds["pvalue_adjusted"] >= ds["pvalue"]).all()
    assert (routing_shift(random_pair(arrays, [8, 8], 3), n_permutations=199)["pvalue_adjusted"] > 0.05).all()
    counts = np.random.default_rng(0).multinomial(20, np.full(4, 0.25), size=(20, 2))
    moved = counts + np.array([15, 0, 0, 0])
    sides = [arrays.experts(one, ["a"] * 20) for one in (counts, moved)]
    found = routing_shift(arrays.compare(*sides), n_permutations=199)
    assert (found["pvalue_adjusted"] == 1 / 200).all()
    assert ds.attrs["n_permutations"] == 999


def test_the_interval_covers_shifts_at_noise_level(arrays: Any) -> None:
    """Without a shift, one sample's value lies in another's interval; with plain percentiles it would not."""
    inside = []
    for seed in range(20):
        one, other = (
            routing_shift(random_pair(arrays, [20], s, n_resamples=100, n_permutations=0)) for s in (seed, seed + 99)
        )
        inside.append(float(one["ci_low"][0, 0]) <= float(other["value"][0, 0]) <= float(one["ci_high"][0, 0]))
    assert np.mean(inside) > 0.7


def test_shift_is_over_the_instructions_of_both(make_moe: Any, arrays: Any) -> None:
    """Means cover matched instructions; order and categories of the tuned archive do not matter."""
    left = find_ises(make_moe(failed=(1,), experts=8).archive)
    right = find_ises(make_moe(failed=(5, 8), experts=8, seed=1).archive)
    ds = routing_shift(arrays.compare(left, right), n_resamples=20, n_permutations=9)
    both = [f"i{k:03d}" for k in range(10) if k not in (1, 5, 8)]
    assert (ds.attrs["instructions"], ds.attrs["only_base"], ds.attrs["only_tuned"]) == (7, 2, 1)
    assert ds.attrs["different_lengths"] > 0
    for side, name in ((left, "base"), (right, "tuned")):
        mean = side.frequencies[[side.ids.index(one) for one in both if one < "i005"]].mean(axis=0)
        np.testing.assert_allclose(ds[name].sel(category="CLS"), mean, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ds["shift"].sum("expert"), 0, atol=1e-12)
    back = np.arange(len(right))[::-1]
    turned = replace(right.take(back), categories=["other"] * len(right))
    again = routing_shift(arrays.compare(left, turned), n_resamples=20, n_permutations=9)
    assert again["category"].values.tolist() == ["CLS", "CODE"]
    np.testing.assert_array_equal(again["shift"], ds["shift"])
    xr.testing.assert_identical(xr.Dataset.from_dict(json.loads(json.dumps(ds.to_dict()))), ds)


def test_sentences_follow_the_numbers(arrays: Any) -> None:
    """Sentences give the layer of largest shift, its interval and null, and cells above the null. Runs without
    permutations and without shift are covered.
    """
    ds = routing_shift(random_pair(arrays, [4, 4], 0))
    ds["overall_value"].values[:], ds["overall_ci_low"].values[:], ds["overall_ci_high"].values[:] = (
        [0.1, 0.3],
        0.2,
        0.4,
    )
    ds["overall_null_mean"].values[:], ds["overall_pvalue_adjusted"].values[:] = 0.15, 0.0002
    ds["pvalue_adjusted"].values[:] = [[0.01, 0.5], [0.04, 0.05]]
    assert sentences(ds) == [
        "Total variation of expert frequencies between base and tuned is largest in layer 2: 0.300 of 1 expert "
        "assignments per token (95 % CI 0.200–0.400); with models exchanged at random per instruction, the "
        "mean is 0.150 (corrected p < 0.001).",
        "It exceeds this null in 2 of 4 combinations of category and layer (corrected p < 0.05).",
    ]
    assert sentences(ds.drop_vars("pvalue_adjusted")) == [
        "Total variation of expert frequencies between base and tuned is largest in layer 2: 0.300 of 1 expert "
        "assignments per token (95 % CI 0.200–0.400)."
    ]
    assert MEASURE.plot is not None
    np.testing.assert_array_equal(MEASURE.plot(ds).lines[1].get_ydata(), ds["value"].sel(category="c1"))
    assert "Dashed" in caption(ds)
    counts = np.ones((2, 1, 3))
    same = arrays.compare(*(arrays.experts(counts, ["a", "a"], name=name) for name in ("base", "tuned")))
    assert sentences(routing_shift(same)) == ["Mean expert frequencies are the same in base and tuned."]
    assert (routing_shift(same)["pvalue"] == 1).all()
