"""ISNs by layer of both models and their difference, checked with numpy."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import xarray as xr

from sparcom_analysis.measures.finetuning.layers import MEASURE, caption, finetuning_layers, plot, sentences
from sparcom_analysis.resampling.bootstrap import resamples_for


@pytest.fixture(scope="module")
def comparison(arrays: Any) -> Any:
    """Nine instructions of two categories; the tuned model has more ISNs in its last layer."""
    rng = np.random.default_rng(0)
    sides = [rng.random((9, 3, 1, 30)) < np.array(rates)[:, None, None] for rates in ((0.3, 0.3, 0.3), (0.3, 0.2, 0.8))]
    return arrays.compare(
        *(arrays.isns(m, list("aaaabbbbb"), name=n) for m, n in zip(sides, ("base", "tuned"), strict=True))
    )


def test_means_and_paired_intervals(comparison: Any, resampled: Any) -> None:
    """Means and intervals are of each model and of the paired difference, by category and over all."""
    ds = finetuning_layers(comparison, confidence_level=0.9)
    draws, names = resamples_for(comparison.matched.categories, comparison.options), np.array(list("aaaabbbbb"))
    assert draws is not None
    counts = {"base": comparison.base_counts, "tuned": comparison.tuned_counts}
    for name in ("a", "b", None):
        members = names == name if name else np.ones(9, dtype=np.bool_)
        cell, prefix = (ds.sel(category=name), "") if name else (ds, "overall_")
        weights = draws.weights[:, members]
        for model, values in counts.items():
            one, ends = cell.sel(model=model), np.quantile(resampled(values[members], weights), [0.05, 0.95], axis=0)
            np.testing.assert_allclose(one[f"{prefix}value"], values[members].mean(axis=0), rtol=0, atol=1e-12)
            np.testing.assert_allclose([one[f"{prefix}ci_low"], one[f"{prefix}ci_high"]], ends, rtol=0, atol=1e-12)
        difference = counts["tuned"][members] - counts["base"][members]
        ends = np.quantile(resampled(difference, weights), [0.05, 0.95], axis=0)
        np.testing.assert_allclose(cell[f"{prefix}difference"], difference.mean(axis=0), rtol=0, atol=1e-12)
        found = [cell[f"{prefix}difference_ci_{end}"] for end in ("low", "high")]
        np.testing.assert_allclose(found, ends, rtol=0, atol=1e-12)
    assert ds["layer"].values.tolist() == [0, 2, 4]
    assert "ci_low" not in finetuning_layers(comparison, n_resamples=0)
    xr.testing.assert_identical(xr.Dataset.from_dict(json.loads(json.dumps(ds.to_dict()))), ds)


def test_sentences_follow_the_numbers(comparison: Any) -> None:
    """Sentences give the layer of largest change, its interval, and the layers whose interval excludes 0. Ties and no
    change are covered.
    """
    ds = finetuning_layers(comparison)
    ds["overall_difference"].values[:] = [1.0, -2.5, 2.0]
    ds["overall_value"].values[:, 1] = [1234.5, 1232.0]
    ds["overall_difference_ci_low"].values[:], ds["overall_difference_ci_high"].values[:] = [-1, -4, 1], [3, -1, 3]
    assert sentences(ds) == [
        "The number of ISNs per instruction changes most in layer 2: from 1,234.5 to 1,232.0, by −2.5 "
        "(95 % CI −4.0 to −1.0).",
        "The interval of the change excludes 0 in 2 of 3 layers (more ISNs in 1, fewer in 1).",
    ]
    ds["overall_difference"].values[:] = [2.5, -2.5, 2.0]
    assert "changes most in layers 0 and 2 after fine-tuning, each by 2.5" in sentences(ds)[0]
    ds["overall_difference"].values[:] = 0
    assert sentences(ds) == ["The number of ISNs per instruction is the same in every layer of base and tuned."]


def test_figure_has_the_tuned_model_above_the_base(comparison: Any) -> None:
    """Both models share one scale, with the difference below. Curves have the values; tables keep every number."""
    ds = finetuning_layers(comparison)
    assert MEASURE.figure is not None
    axes = MEASURE.figure(ds).axes
    assert axes[0].get_title().startswith("tuned")
    assert axes[0].get_ylim() == axes[1].get_ylim()
    assert [ax.get_legend() is not None for ax in axes] == [False, False, True]
    for ax, values in zip(axes, (ds["value"][1], ds["value"][0], ds["difference"]), strict=True):
        for line, expected in zip(ax.lines, values.values, strict=False):
            np.testing.assert_array_equal(line.get_ydata(), expected)
    np.testing.assert_array_equal(
        plot(ds, model="base").lines[0].get_ydata(), ds["value"].sel(model="base", category="a")
    )
    assert "tuned (top), base (middle)" in caption(ds)
    assert MEASURE.tables is not None
    both = MEASURE.tables(ds)
    assert len(both[""]) == 2 * 2 * 3
    np.testing.assert_array_equal(both["difference"]["difference"], ds["difference"].values.ravel())
