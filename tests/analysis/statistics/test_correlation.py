"""Equations 13 and 14, against scipy and loops over pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import pearsonr

from sparcom_analysis import InstructionExperts, expert_correlation, instruction_correlations, instruction_experts
from sparcom_analysis.measures.correlation import correlation_pairs
from sparcom_data.errors import UnsupportedArchiveError


def experts_of(counts: NDArray[np.uint32], tokens: list[int], categories: list[str]) -> InstructionExperts:
    """Counts (n, layer, expert) as a result."""
    count = len(counts)
    return InstructionExperts(
        rows="prompt",
        instruction=np.arange(count),
        ids=[f"i{k}" for k in range(count)],
        categories=categories,
        tokens=np.array(tokens),
        counts=counts,
        layer_ids=list(range(counts.shape[1])),
        choices=1,
        without_rows=0,
    )


def random_experts(count: int, layers: int, experts: int, seed: int) -> InstructionExperts:
    """Random choices of instructions of one to forty tokens, of three categories."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 41, size=count).tolist()
    counts = np.stack([rng.multinomial(t, np.full(experts, 1 / experts), size=layers) for t in tokens])
    return experts_of(counts.astype(np.uint32), tokens, [str(k % 3) for k in range(count)])


@settings(deadline=None, max_examples=25)
@given(count=st.integers(2, 20), layers=st.integers(1, 4), experts=st.integers(3, 12), seed=st.integers(0, 999))
@pytest.mark.filterwarnings("ignore:An input array is")
def test_pairs_and_means_equal_scipy(count: int, layers: int, experts: int, seed: int) -> None:
    """Each pair is scipy's pearsonr of the frequencies, each cell the mean over pairs that have a value, those of an
    instruction with itself counted and left out."""
    data = random_experts(count, layers, experts, seed)
    frequencies = [data.frequencies(k).ravel() for k in range(count)]
    flat = [int(data.counts[k].min()) == int(data.counts[k].max()) for k in range(count)]
    expected = np.full((count, count), np.nan)
    for i, j in np.ndindex(count, count):
        if not flat[i] and not flat[j]:
            expected[i, j] = pearsonr(frequencies[i], frequencies[j]).statistic
    np.testing.assert_allclose(instruction_correlations(data), expected, rtol=0, atol=1e-12)
    result = expert_correlation(data)
    assert result.undefined == sum(flat)
    np.testing.assert_allclose(result.matrix, means(expected, data, result.categories), rtol=0, atol=1e-12)
    expected[np.diag_indices(count)] = np.nan
    np.testing.assert_allclose(result.without_self, means(expected, data, result.categories), rtol=0, atol=1e-12)


def means(values: NDArray[np.float64], data: InstructionExperts, labels: Sequence[str]) -> list[list[float]]:
    """Mean over the pairs of every two categories that have a value, NaN where none has, in loops."""
    cells = []
    for first, second in product(labels, repeat=2):
        pairs = np.ndindex(values.shape)
        found = [values[i, j] for i, j in pairs if (data.categories[i], data.categories[j]) == (first, second)]
        known = [value for value in found if not np.isnan(value)]
        cells.append(sum(known) / len(known) if known else np.nan)
    return np.reshape(cells, (len(labels), len(labels))).tolist()  # type: ignore[no-any-return]


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 999), side=st.integers(1, 9), sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_both_versions_equal_corrcoef_for_any_blocks(seed: int, side: int, sizes: list[int]) -> None:
    """With and without self pairs, from `numpy.corrcoef` of all frequencies, for any block size, kept or not."""
    names = [f"c{k}" for k, size in enumerate(sizes) for _ in range(size)]
    data = replace(random_experts(len(names), 3, 7, seed), categories=names)
    flat = seed % 2  # of every other case the first instruction has no variance
    if flat:
        data.counts[0] = 2
    r = np.full((len(names), len(names)), np.nan)
    if varied := [data.frequencies(k).ravel() for k in range(flat, len(names))]:
        r[flat:, flat:] = np.corrcoef(varied)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparcom_analysis.resampling.pair_means.PAIRED", side)
        for result in (expert_correlation(data), expert_correlation(data, correlation_pairs(data))):
            np.testing.assert_allclose(result.matrix, means(r, data, result.categories), rtol=0, atol=1e-12)
            alone = np.where(np.eye(len(names), dtype=bool), np.nan, r)
            np.testing.assert_allclose(result.without_self, means(alone, data, result.categories), rtol=0, atol=1e-12)
            assert result.undefined == flat


def test_of_an_archive(make_moe) -> None:  # type: ignore[no-untyped-def]
    """From rows on disk to scipy's numbers, failed instructions left out."""
    data = instruction_experts(make_moe(per_category=4, failed=(2,)).archive)
    found = instruction_correlations(data)
    for i, j in np.ndindex(7, 7):
        expected = pearsonr(data.frequencies(i).ravel(), data.frequencies(j).ravel()).statistic
        assert found[i, j] == pytest.approx(expected, abs=1e-12)


def test_no_variance_is_no_number(make_moe) -> None:  # type: ignore[no-untyped-def]
    """Where a token chooses every expert, correlations are not defined: NaN and counted, never 0."""
    result = expert_correlation(instruction_experts(make_moe(experts=2, choices=2).archive))
    assert np.isnan(result.matrix).all()
    assert np.isnan(result.without_self).all()
    assert result.undefined == 10


def test_instructions_without_variance_are_in_no_mean() -> None:
    """One such instruction changes the mean of the others by nothing, and length plays no part."""
    counts = np.array([[[3, 0, 0]], [[2, 1, 0]], [[1, 1, 1]], [[0, 0, 9]]], dtype=np.uint32)
    result = expert_correlation(experts_of(counts, [3, 3, 3, 9], ["a"] * 4))
    others = expert_correlation(experts_of(counts[[0, 1, 3]], [3, 3, 9], ["a"] * 3))
    assert (result.undefined, others.undefined) == (1, 0)
    np.testing.assert_array_equal(result.matrix, others.matrix)
    np.testing.assert_array_equal(result.without_self, others.without_self)


def test_self_pairs_are_counted_and_left_out() -> None:
    """A category with one instruction is 1 with itself, and without that pair no number."""
    data = replace(random_experts(5, 2, 4, 0), categories=["a", "a", "b", "a", "a"])
    found = expert_correlation(data)
    assert found.matrix[1, 1] == 1
    assert np.isnan(found.without_self[1, 1])
    assert np.isfinite(found.without_self[[0, 0, 1], [0, 1, 0]]).all()
    assert found.matrix[0, 0] == pytest.approx((12 * found.without_self[0, 0] + 4) / 16, abs=1e-12)
    np.testing.assert_array_equal(found.matrix[[0, 1], [1, 0]], found.without_self[[0, 1], [1, 0]])


def test_blocks_change_no_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Correlations come from exact sums, so the block size cannot be seen in them."""
    data = random_experts(50, 3, 8, 1)
    expected = instruction_correlations(data)
    for rows in (1, 7, 49):
        monkeypatch.setattr("sparcom_analysis.resampling.pair_means.PAIRED", rows)
        np.testing.assert_array_equal(instruction_correlations(data), expected)
    assert (np.abs(expected) <= 1).all()
    assert (np.diagonal(expected) == 1).all()


def test_long_instructions_are_exact_or_refused() -> None:
    """A million tokens are computed exactly; where sums would round, it is refused and says so."""
    million = np.array([[[1_000_000, 999_999, 1]], [[999_999, 1_000_000, 1]], [[1, 2, 3]]], dtype=np.uint32)
    found = instruction_correlations(experts_of(million, [1_000_000, 1_000_000, 6], ["a"] * 3))
    rows = million.reshape(3, -1).astype(object)
    for i, j in np.ndindex(3, 3):
        x, y = rows[i] * 3 - rows[i].sum(), rows[j] * 3 - rows[j].sum()
        expected = float((x * y).sum()) / (float((x * x).sum()) ** 0.5 * float((y * y).sum()) ** 0.5)
        assert found[i, j] == pytest.approx(expected, abs=1e-15)
    longest = np.array([[[100_000_000, 5, 1]], [[1, 2, 3]]], dtype=np.uint32)
    with pytest.raises(UnsupportedArchiveError, match="longest here has 100000000"):
        expert_correlation(experts_of(longest, [100_000_000, 6], ["a", "a"]))
