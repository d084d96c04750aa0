"""Equation 11 and its means over categories, checked with plain sums."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparcom_analysis.ise import ExpertCounts, find_ises
from sparcom_analysis.measures.experts.expert_frequencies import figure, mean_expert_frequencies, plot, sentences


@settings(deadline=None, max_examples=40)
@given(
    categories=st.lists(st.sampled_from(["b", "a", ""]), min_size=1, max_size=12),
    layers=st.integers(1, 3),
    experts=st.integers(1, 9),
    data=st.data(),
)
def test_means_are_those_of_fractions_of_tokens(make_counts, categories, layers, experts, data):  # type: ignore[no-untyped-def]
    """Means of c / T (equation 11) weight instructions equally, for any shape, lengths and categories."""
    top_k, rng = data.draw(st.integers(1, experts)), np.random.default_rng(data.draw(st.integers(0, 999)))
    tokens = rng.integers(1, 30, len(categories)).tolist()
    chosen = [rng.random((t, layers, experts)).argsort(axis=2)[:, :, :top_k] for t in tokens]
    counts = np.array([[np.bincount(one[:, j].ravel(), minlength=experts) for j in range(layers)] for one in chosen])
    ds = mean_expert_frequencies(make_counts(counts, tokens, categories, top_k=top_k))
    expected = [
        [[np.mean([e in row for row in one[:, j]]) for e in range(experts)] for j in range(layers)] for one in chosen
    ]
    assert ds["category"].values.tolist() == [name or "(none)" for name in dict.fromkeys(categories)]
    for place, category in enumerate(dict.fromkeys(categories)):
        members = [f for f, name in zip(expected, categories, strict=True) if name == category]
        np.testing.assert_allclose(ds["value"][place], np.mean(members, axis=0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(ds["overall_value"], np.mean(expected, axis=0), rtol=0, atol=1e-12)
    assert float(ds["null_mean"]) == top_k / experts


def test_intervals_are_quantiles_of_resampled_means(make_moe) -> None:  # type: ignore[no-untyped-def]
    """Both ends are numpy's quantiles of resampled means, by category and over all."""
    experts = find_ises(make_moe().archive)
    ds = mean_expert_frequencies(experts, n_resamples=30, seed=5, confidence_level=0.8)
    draws = _weights(experts, 30, 5)
    f, codes = experts.frequencies, experts.codes
    for c in range(2):
        drawn = np.array([np.average(f[codes == c], axis=0, weights=w[codes == c]) for w in draws])
        for end, share in (("ci_low", 0.1), ("ci_high", 0.9)):
            np.testing.assert_allclose(ds[end][c], np.quantile(drawn, share, axis=0), rtol=0, atol=1e-12)
    whole = np.array([np.average(f, axis=0, weights=w) for w in draws])
    np.testing.assert_allclose(ds["overall_ci_low"], np.quantile(whole, 0.1, axis=0), rtol=0, atol=1e-12)


def _weights(experts: ExpertCounts, n_resamples: int, seed: int) -> NDArray[np.float64]:
    """Return how often each resample contains each instruction; one generator draws category by category."""
    rng, weights = np.random.Generator(np.random.PCG64(seed)), np.zeros((n_resamples, len(experts)))
    for code in range(len(experts.labels)):
        members = np.flatnonzero(experts.codes == code)
        for row, drawn in enumerate(rng.integers(len(members), size=(n_resamples, len(members)))):
            np.add.at(weights[row], members[drawn], 1)
    return weights


def test_sentences_follow_the_numbers(make_counts: Callable[..., ExpertCounts]) -> None:
    """Sentences name the most used expert, its mean, the frequency under uniform routing, and unused experts."""
    counts = np.array([[[6, 4, 0, 0], [5, 2, 2, 1]], [[2, 8, 0, 0], [5, 2, 2, 1]]])
    said = sentences(mean_expert_frequencies(make_counts(counts, [10, 10], ["a", "b"])))
    assert said == [
        "Mean expert frequency is largest for expert 1 of layer 1: 0.600; under uniform routing it would be 0.250.",
        "No token activates 2 of 8 experts.",
    ]
    counts[0, 0], counts[1, 0] = [4, 6, 0, 0], [1, 0, 0, 9]
    assert "expert 0 of layer 2: 0.500;" in sentences(mean_expert_frequencies(make_counts(counts, [10, 10], "ab")))[0]
    said = sentences(mean_expert_frequencies(make_counts(np.full((2, 1, 2), 5), [5, 5], "ab", top_k=2)))
    assert said[0].startswith("Mean expert frequency is largest for each of 2 experts: 1.000;")
    assert len(said) == 1


@pytest.mark.parametrize(("groups", "layers", "experts"), [(1, 1, 1), (2, 24, 60), (12, 1, 8), (13, 4, 16)])
def test_figures_take_any_size(
    make_counts: Callable[..., ExpertCounts], groups: int, layers: int, experts: int
) -> None:
    """Up to twelve categories have a heat map each, on one range about the null; more share one over all."""
    counts = np.random.default_rng(0).integers(0, 9, (2 * groups, layers, experts))
    data = make_counts(counts, [9] * 2 * groups, [f"c{k // 2}" for k in range(2 * groups)])
    ds = mean_expert_frequencies(data, n_resamples=3)
    axes = [ax for ax in figure(ds).axes if ax.get_xlabel() == "expert"]
    assert len(axes) == (groups if groups <= 12 else 1)
    wanted = ds["value"][0] if groups <= 12 else ds["overall_value"]
    np.testing.assert_array_equal(axes[0].collections[0].get_array(), wanted)
    assert len({ax.collections[0].get_clim() for ax in axes}) == 1
    assert plot(ds, axes[0], category="c0", title="mine") is axes[0]
    assert axes[0].get_title() == "mine"
    xr.testing.assert_equal(xr.Dataset.from_dict(json.loads(json.dumps(ds.to_dict()))), ds)
