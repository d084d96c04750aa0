"""Table 6 in the paper's form and the most used experts per layer, checked with sorts and loops."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import xarray as xr

from sparcom_analysis.ise import ExpertCounts, find_ises
from sparcom_analysis.measures.experts.top_experts import most_frequent, plot, sentences, tables, top_experts

MakeCounts = Callable[..., ExpertCounts]


def test_the_paper_counts_activations_in_the_whole_model(make_moe) -> None:  # type: ignore[no-untyped-def]
    """Each category has the five (layer, expert) with most activations; ties go to the lower layer and id."""
    case = make_moe(experts=9, choices=3, failed=(3,))
    ds = top_experts(find_ises(case.archive), n_resamples=0)
    for c, name in enumerate(ds["category"].values):
        rows = [case.truth.expert[case.rows(index)] for index in case.complete if index // 5 == c]
        counts = {(j, e): sum(int((row[:, j] == e).sum()) for row in rows) for j in range(2) for e in range(9)}
        wanted = sorted(counts, key=lambda at: (-counts[at], at))[:5]
        one = ds.sel(category=name)
        ranked = zip(one["paper_layer"].values - 1, one["paper_expert"].values, one["paper_count"].values, strict=True)
        assert [(j, e, n) for j, e, n in ranked] == [(*at, counts[at]) for at in wanted]
        pooled = [sum(counts[j, e] for j in range(2)) for e in range(9)]
        ids = sorted(range(9), key=lambda e: (-pooled[e], e))[:5]
        assert one["id_expert"].values.tolist() == ids
        assert one["id_count"].values.tolist() == [pooled[e] for e in ids]


def test_most_used_experts_of_a_layer_are_the_most_frequent(make_moe) -> None:  # type: ignore[no-untyped-def]
    """Each layer has its five experts of highest mean frequency, or all if fewer, by category and over all. Ties go to
    the lower id.
    """
    data = find_ises(make_moe(experts=9, choices=3).archive)
    ds = top_experts(data, n_resamples=0)
    for c, j in np.ndindex(2, 2):
        mean = data.frequencies[data.codes == c, j].mean(axis=0)
        ranked = sorted(range(9), key=lambda e: (-round(mean[e], 12), e))[:5]
        assert ds["expert"][c, j].values.tolist() == ranked
        np.testing.assert_allclose(ds["value"][c, j], mean[ranked], rtol=0, atol=1e-12)
    for j in range(2):
        mean = data.frequencies[:, j].mean(axis=0)
        assert ds["overall_expert"][j].values.tolist() == sorted(range(9), key=lambda e: (-round(mean[e], 12), e))[:5]
    few = top_experts(find_ises(make_moe(experts=3).archive), n_resamples=0)
    assert (few.sizes["rank"], few.sizes["paper_rank"]) == (3, 5)
    assert top_experts(data, n_resamples=0, top_experts=2).sizes["rank"] == 2


def test_ties_ignore_the_order_of_float_sums() -> None:
    """Equal means that differ in their last digit are ties: 1/3 + 2/3 + 1/7 in another order."""
    parts = [1 / 3, 2 / 3, 1 / 7, 1 / 49]
    high, low = parts[0] + parts[2] + parts[1] + parts[3], sum(parts)
    assert sum(map(Fraction, (Fraction(1, 3), Fraction(2, 3), Fraction(1, 7), Fraction(1, 49)))) == Fraction(57, 49)
    mean = np.array([[0.1, min(high, low), max(high, low), np.nextafter(max(high, low), 2), 0.1]])
    assert most_frequent(mean, 5).tolist() == [[1, 2, 3, 0, 4]]


def test_fractions_and_intervals_are_of_the_same_experts(make_moe) -> None:  # type: ignore[no-untyped-def]
    """The fraction is the sum of mean frequencies over ranks, divided by top_k; resamples keep the ranking."""
    data = find_ises(make_moe(experts=7, choices=2, lengths=(6, 14)).archive)
    ds = top_experts(data, n_resamples=40, confidence_level=0.8, seed=4)
    np.testing.assert_allclose(ds["fraction"], ds["value"].sum("rank") / 2, rtol=0, atol=1e-12)
    rng = np.random.Generator(np.random.PCG64(4))
    members = [np.flatnonzero(data.codes == c) for c in range(2)]
    draws = [places[rng.integers(5, size=(40, 5))] for places in members]
    f = data.frequencies
    for c, j in np.ndindex(2, 2):
        means = f[draws[c]][:, :, j, ds["expert"].values[c, j]].mean(axis=1)
        for end, share in (("ci_low", 0.1), ("ci_high", 0.9)):
            np.testing.assert_allclose(ds[end][c, j], np.quantile(means, share, axis=0), rtol=0, atol=1e-12)
            wanted = np.quantile(means.sum(axis=1) / 2, share)
            np.testing.assert_allclose(ds[f"fraction_{end}"][c, j], wanted, rtol=0, atol=1e-12)
    whole = f[np.concatenate(draws, axis=1)]
    for j in range(2):
        means = whole[:, :, j, ds["overall_expert"].values[j]].mean(axis=1)
        np.testing.assert_allclose(ds["overall_ci_low"][j], np.quantile(means, 0.1, axis=0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(ds["mean_fraction"], ds["overall_fraction"].mean(), rtol=0, atol=1e-12)
    assert float(ds["mean_fraction_ci_low"]) < float(ds["mean_fraction"]) < float(ds["mean_fraction_ci_high"])
    assert float(ds["fraction_null_mean"]) == 5 / 7


def test_sentences_follow_the_numbers(make_counts: MakeCounts) -> None:
    """Sentences compare the fraction with uniform routing and name the expert that leads in most categories."""
    counts = np.array([[[6, 3, 1, 0]], [[6, 1, 1, 2]], [[0, 1, 0, 9]]])
    ds = top_experts(make_counts(counts, [10, 10, 10], "abc", top_experts=2))
    assert sentences(ds) == [
        "The 2 most used experts per layer and category receive a fraction of 0.900 of expert assignments; under "
        "uniform routing it would be 0.500.",
        "By activations in the whole model, expert 0 of layer 1 ranks first for 2 of the 3 categories (SPARCOM, "
        "table 6).",
    ]
    changed = ds.assign(mean_fraction=0.5, mean_fraction_ci_low=0.4, mean_fraction_ci_high=0.6)
    assert "a fraction of 0.500 (95 % CI 0.400–0.600) of" in sentences(changed)[0]
    other = top_experts(make_counts(counts[1:], [10, 10], "ab"))
    assert "a different expert ranks first for each of the 2 categories" in sentences(other)[1]


def test_tables_and_figure_hold_the_numbers(make_moe) -> None:  # type: ignore[no-untyped-def]
    """Table 6 has a row per category and a column per rank; the figure draws the fractions and uniform routing."""
    ds = top_experts(find_ises(make_moe(experts=9, choices=3).archive), n_resamples=20)
    made = tables(ds)
    wide = made["top_experts_table_6"]
    assert wide.index.tolist() == ["CLS", "CODE"]
    assert wide.columns.tolist() == [1, 2, 3, 4, 5]
    first = ds.isel(category=1, paper_rank=0)
    layer, expert, count = (int(first[name]) for name in ("paper_layer", "paper_expert", "paper_count"))
    assert wide.loc["CODE", 1] == f"layer {layer}, expert {expert}: {count}"
    assert made["top_experts"].loc[("CODE", 1), "paper_count"] == count
    tidy = made["top_experts_by_layer"]
    assert tidy.columns.tolist() == ["expert", "value", "ci_low", "ci_high"]
    np.testing.assert_array_equal(tidy["value"], ds["value"].values.ravel())
    ax = plot(ds)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), ds["fraction"].sel(category="CLS"))
    xr.testing.assert_equal(xr.Dataset.from_dict(json.loads(json.dumps(ds.to_dict()))), ds)
