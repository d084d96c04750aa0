"""Equations 13 and 14, checked with SciPy and loops over pairs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import pearsonr

from sparcom_analysis.ise import ExpertCounts, find_ises
from sparcom_analysis.measures.experts.routing_correlation import MEASURE, caption, routing_correlation, sentences
from sparcom_analysis.measures.measure import NotComputableError
from sparcom_analysis.measures.pair_means import plot_pair_means
from sparcom_data.errors import UnsupportedArchiveError

MakeCounts = Callable[..., ExpertCounts]


def random_experts(make_counts: MakeCounts, count: int, layers: int, experts: int, seed: int) -> ExpertCounts:
    """Random top-1 experts of instructions of one to forty tokens, of three categories."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 41, size=count).tolist()
    counts = np.stack([rng.multinomial(t, np.full(experts, 1 / experts), size=layers) for t in tokens])
    return make_counts(counts, tokens, [str(k % 3) for k in range(count)])


def means(values: NDArray[np.float64], data: ExpertCounts, labels: Sequence[str]) -> NDArray[np.float64]:
    """Mean over the defined pairs of each pair of categories, NaN if there is none, in loops."""
    cells = []
    for first, second in product(labels, repeat=2):
        pairs = np.ndindex(values.shape)
        found = [values[i, j] for i, j in pairs if (data.categories[i], data.categories[j]) == (first, second)]
        known = [value for value in found if not np.isnan(value)]
        cells.append(sum(known) / len(known) if known else np.nan)
    return np.reshape(cells, (len(labels), len(labels)))


@settings(deadline=None, max_examples=15)
@given(
    side=st.integers(1, 9),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    layers=st.integers(1, 3),
    experts=st.integers(3, 12),
    seed=st.integers(0, 999),
)
def test_pairs_and_means_equal_scipy(make_counts, side, sizes, layers, experts, seed) -> None:  # type: ignore[no-untyped-def]
    """Each pair is scipy's pearsonr of the frequencies; each cell is the mean over pairs that have a value, with self
    pairs and without, for any block size. Instructions without variance are counted."""
    names = [f"c{k}" for k, size in enumerate(sizes) for _ in range(size)]
    data = replace(random_experts(make_counts, len(names), layers, experts, seed), categories=names)
    if seed % 2:  # in every other case the first instruction has no variance
        data.counts[0] = 2
    flat = [int(counts.min()) == int(counts.max()) for counts in data.counts]
    r = np.full((len(names), len(names)), np.nan)
    for i, j in np.ndindex(r.shape):
        if not flat[i] and not flat[j]:
            r[i, j] = 1 if i == j else pearsonr(data.frequencies[i].ravel(), data.frequencies[j].ravel()).statistic
    alone = np.where(np.eye(len(names), dtype=bool), np.nan, r)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparcom_analysis.kernels.intersections.PAIRED", side)
        np.testing.assert_allclose(data.pairs.values, r, rtol=0, atol=1e-12)
        if all(flat):
            with pytest.raises(NotComputableError, match=f"All {len(names)} instructions"):
                routing_correlation(data)
            return
        ds = routing_correlation(data)
    for self_pairs, values in ((True, r), (False, alone)):
        wanted = means(values, data, ds["category"].values.tolist())
        np.testing.assert_allclose(ds["value"].sel(self_pairs=self_pairs), wanted, rtol=0, atol=1e-12)
    assert ds.attrs["undefined"] == sum(flat)


def test_an_archive_gives_the_same_numbers(make_moe) -> None:  # type: ignore[no-untyped-def]
    """Rows on disk give SciPy's numbers; a failed instruction is left out."""
    data = find_ises(make_moe(per_category=4, failed=(2,)).archive, n_resamples=20, n_permutations=19)
    f = data.frequencies.reshape(7, -1)
    for i, j in np.ndindex(7, 7):
        assert data.pairs.values[i, j] == pytest.approx(pearsonr(f[i], f[j]).statistic, abs=1e-12)
    ds = routing_correlation(data)
    between = [data.pairs.values[i, j] for i in range(3) for j in range(3, 7)]
    assert float(ds["value"].sel(self_pairs=True, category="CLS", category_2="CODE")) == pytest.approx(np.mean(between))
    assert {"ci_low", "ci_high", "pvalue", "pvalue_adjusted", "null_mean", "overall_pvalue"} <= set(ds)
    assert "ci_low" not in routing_correlation(data, n_resamples=0, n_permutations=0)
    assert (MEASURE.needs, MEASURE.also_tuned) == ("experts", True)


def test_constant_frequencies_have_no_correlation(make_moe) -> None:  # type: ignore[no-untyped-def]
    """If every token activates every expert, no correlation is defined, and the error is a sentence for the report."""
    with pytest.raises(NotComputableError, match="All 10 instructions activate every expert equally often"):
        routing_correlation(find_ises(make_moe(experts=2, choices=2).archive))


def test_means_skip_instructions_with_constant_frequencies(make_counts: MakeCounts) -> None:
    """Such an instruction is reported and does not change the mean of the others; length does not matter."""
    counts = np.array([[[3, 0, 0]], [[2, 1, 0]], [[1, 1, 1]], [[0, 0, 9]]])
    ds = routing_correlation(make_counts(counts, [3, 3, 3, 9], ["a"] * 4))
    others = routing_correlation(make_counts(counts[[0, 1, 3]], [3, 3, 9], ["a"] * 3))
    xr.testing.assert_equal(ds, others)
    assert (ds.attrs["undefined"], others.attrs["undefined"]) == (1, 0)
    assert sentences(ds)[-1].startswith("1 of 4 instructions activate every expert equally often")
    assert sentences(others) == []


def test_means_with_and_without_self_pairs(make_counts: MakeCounts) -> None:
    """A category of one instruction has mean 1 with self pairs, and NaN without."""
    data = replace(random_experts(make_counts, 5, 2, 4, 0), categories=["a", "a", "b", "a", "a"])
    value = routing_correlation(data)["value"]
    both, alone = value.sel(self_pairs=True).values, value.sel(self_pairs=False).values
    assert both[1, 1] == 1
    assert np.isnan(alone[1, 1])
    assert both[0, 0] == pytest.approx((12 * alone[0, 0] + 4) / 16, abs=1e-12)
    np.testing.assert_array_equal(both[[0, 1], [1, 0]], alone[[0, 1], [1, 0]])


def test_blocks_change_no_digit(make_counts: MakeCounts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Correlations come from exact sums, so they are bit-identical for any block size."""
    expected = random_experts(make_counts, 50, 3, 8, 1).pairs.values
    for rows in (1, 7, 49):
        monkeypatch.setattr("sparcom_analysis.kernels.intersections.PAIRED", rows)
        np.testing.assert_array_equal(random_experts(make_counts, 50, 3, 8, 1).pairs.values, expected)
    assert (np.abs(expected) <= 1).all()
    assert (np.diagonal(expected) == 1).all()


def test_long_instructions_are_exact_or_refused(make_counts: MakeCounts) -> None:
    """A million tokens are computed exactly; where sums would round, the error names the longest instruction."""
    million = np.array([[[1_000_000, 999_999, 1]], [[999_999, 1_000_000, 1]], [[1, 2, 3]]])
    found = make_counts(million, [1_000_000, 1_000_000, 6], ["a"] * 3).pairs.values
    rows = million.reshape(3, -1).astype(object)
    for i, j in np.ndindex(3, 3):
        x, y = rows[i] * 3 - rows[i].sum(), rows[j] * 3 - rows[j].sum()
        expected = float((x * y).sum()) / (float((x * x).sum()) ** 0.5 * float((y * y).sum()) ** 0.5)
        assert found[i, j] == pytest.approx(expected, abs=1e-15)
    longest = np.array([[[100_000_000, 5, 1]], [[1, 2, 3]]])
    with pytest.raises(UnsupportedArchiveError, match="longest here has 100000000"):
        routing_correlation(make_counts(longest, [100_000_000, 6], ["a", "a"]))


def test_sentences_caption_and_figure_follow_the_numbers(make_moe) -> None:  # type: ignore[no-untyped-def]
    """The first sentence names the measure and both means; the caption says which pairs are drawn."""
    ds = routing_correlation(find_ises(make_moe().archive, n_resamples=20, n_permutations=19))
    changed = ds.assign(overall_within=0.1234, overall_between=-0.5)
    assert sentences(changed)[0].startswith(
        "Mean Pearson correlation of expert frequencies is 0.123 within categories and −0.500 between them"
    )
    assert "with itself are included" in caption(ds)
    ds.attrs["self_pairs_shown"] = False
    assert "with itself are omitted" in caption(ds)
    drawn = plot_pair_means(ds).collections[0].get_array()
    np.testing.assert_array_equal(drawn, ds["value"].sel(self_pairs=False))
    xr.testing.assert_equal(xr.Dataset.from_dict(json.loads(json.dumps(ds.to_dict()))), ds)
