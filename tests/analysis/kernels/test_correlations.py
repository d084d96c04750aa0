"""Pearson correlations of expert counts (SPARCOM, eq. 13), and their means (eq. 14), against scipy and loops."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import pearsonr

from sparcom_analysis import find_ises
from sparcom_analysis.kernels.correlations import correlation_blocks, pearson
from sparcom_analysis.resampling.pairs import PairMatrix, keep_pairs
from sparcom_data.errors import UnsupportedArchiveError


def correlations(counts: NDArray[np.uint32], names: list[str]) -> PairMatrix:
    """Return the kept correlations of counts (n, layer, expert)."""
    return keep_pairs(names, correlation_blocks(counts, counts.sum(axis=(1, 2)).astype(np.int64)))


def random_counts(count: int, layers: int, experts: int, seed: int) -> NDArray[np.uint32]:
    """Return random top-1 counts of instructions of one to forty tokens."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 41, size=count)
    counts = [rng.multinomial(t, np.full(experts, 1 / experts), size=layers) for t in tokens]
    return np.stack(counts).astype(np.uint32)


def means(values: NDArray[np.float64], names: list[str], own: bool) -> NDArray[np.float64]:
    """Mean over the defined pairs of each pair of categories, in loops."""
    labels = list(dict.fromkeys(names))
    cells = []
    for first, second in product(labels, repeat=2):
        found = [
            values[i, j]
            for i, j in np.ndindex(values.shape)
            if (names[i], names[j]) == (first, second) and (own or i != j) and not np.isnan(values[i, j])
        ]
        cells.append(sum(found) / len(found) if found else np.nan)
    return np.reshape(cells, (len(labels), len(labels)))


@settings(deadline=None, max_examples=12)
@given(
    count=st.integers(2, 16),
    layers=st.integers(1, 4),
    experts=st.integers(3, 12),
    side=st.integers(1, 9),
    seed=st.integers(0, 999),
)
@pytest.mark.filterwarnings("ignore:An input array is")
def test_pairs_and_means_equal_scipy(count: int, layers: int, experts: int, side: int, seed: int) -> None:
    """Each pair is scipy's pearsonr of the frequencies, each cell the mean over pairs with a value, for any blocks."""
    counts = random_counts(count, layers, experts, seed)
    if seed % 2:
        counts[0] = 2  # no variance
    names = [str(k % 3) for k in range(count)]
    flat = counts.reshape(count, -1)
    frequencies = flat / counts[:, 0].sum(axis=1)[:, None]
    varied = flat.min(axis=1) < flat.max(axis=1)
    expected = np.full((count, count), np.nan)
    for i, j in np.ndindex(count, count):
        if varied[i] and varied[j]:
            expected[i, j] = pearsonr(frequencies[i], frequencies[j]).statistic
        assert pearson(flat[i], flat[j]) == pytest.approx(expected[i, j], abs=1e-12, nan_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparcom_analysis.kernels.intersections.PAIRED", side)
        pairs = correlations(counts, names)
        both = pairs.means()
    np.testing.assert_allclose(pairs.values, expected, rtol=0, atol=1e-12)
    assert pairs.defined.tolist() == varied.tolist()
    for found, own in zip(both, (True, False), strict=True):
        np.testing.assert_allclose(found, means(expected, names, own), rtol=0, atol=1e-12)


def test_an_archive_gives_the_same_numbers(make_moe) -> None:  # type: ignore[no-untyped-def]
    """Rows on disk give SciPy's numbers; failed instructions are left out."""
    experts = find_ises(make_moe(per_category=4, failed=(2,)).archive)
    for i, j in np.ndindex(7, 7):
        expected = pearsonr(experts.frequencies[i].ravel(), experts.frequencies[j].ravel()).statistic
        assert experts.pairs.values[i, j] == pytest.approx(expected, abs=1e-12)


def test_means_skip_instructions_with_constant_frequencies() -> None:
    """Such an instruction does not change the mean of the others; length does not matter."""
    counts = np.array([[[3, 0, 0]], [[2, 1, 0]], [[1, 1, 1]], [[0, 0, 9]]], dtype=np.uint32)
    found, others = correlations(counts, ["a"] * 4), correlations(counts[[0, 1, 3]], ["a"] * 3)
    assert found.defined.tolist() == [True, True, False, True]
    for one, other in zip(found.means(), others.means(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_means_with_and_without_self_pairs() -> None:
    """A category of one instruction has mean 1 with self pairs, and NaN without."""
    with_self, without = correlations(random_counts(5, 2, 4, 0), ["a", "a", "b", "a", "a"]).means()
    assert with_self[1, 1] == 1
    assert np.isnan(without[1, 1])
    assert with_self[0, 0] == pytest.approx((12 * without[0, 0] + 4) / 16, abs=1e-12)
    np.testing.assert_array_equal(with_self[[0, 1], [1, 0]], without[[0, 1], [1, 0]])


def test_blocks_change_no_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Correlations come from exact sums, so they are equal for any block size."""
    counts, names = random_counts(50, 3, 8, 1), ["a"] * 50
    expected = correlations(counts, names).values
    for side in (1, 7, 49):
        monkeypatch.setattr("sparcom_analysis.kernels.intersections.PAIRED", side)
        np.testing.assert_array_equal(correlations(counts, names).values, expected)
    assert (np.abs(expected) <= 1).all()
    assert (np.diagonal(expected) == 1).all()


def test_long_instructions_are_exact_or_refused() -> None:
    """A million tokens are computed exactly; sums that would round raise an error."""
    million = np.array([[[1_000_000, 999_999, 1]], [[999_999, 1_000_000, 1]], [[1, 2, 3]]], dtype=np.uint32)
    found = correlations(million, ["a"] * 3).values
    rows = million.reshape(3, -1).astype(object)
    for i, j in np.ndindex(3, 3):
        x, y = rows[i] * 3 - rows[i].sum(), rows[j] * 3 - rows[j].sum()
        expected = float((x * y).sum()) / (float((x * x).sum()) ** 0.5 * float((y * y).sum()) ** 0.5)
        assert found[i, j] == pytest.approx(expected, abs=1e-15)
    longest = np.array([[[100_000_000, 5, 1]], [[1, 2, 3]]], dtype=np.uint32)
    with pytest.raises(UnsupportedArchiveError, match="longest here has 100000006"):
        correlations(longest, ["a", "a"])
