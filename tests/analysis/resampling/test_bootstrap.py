"""Bootstrap intervals, checked with loops over draws."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import bootstrap

from sparcom_analysis.options import Options
from sparcom_analysis.resampling.bootstrap import (
    Interval,
    Resamples,
    centered_interval,
    mean_intervals,
    pair_intervals,
    percentiles,
    resampled_rows,
    resamples_for,
    weighted_means,
)
from sparcom_analysis.resampling.means import group_means
from sparcom_analysis.resampling.pairs import PairMatrix

NAMES = st.lists(st.sampled_from(["CLS", "", "GEN"]), min_size=2, max_size=16)


def draw_resamples(
    categories: Sequence[str], resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Resamples:
    """Draw this number of resamples."""
    options = Options(n_resamples=resamples, confidence_level=confidence, seed=seed)
    found = resamples_for(categories, options)
    assert found is not None
    return found


def random_pairs(
    categories: Sequence[str], seed: int, missing: Sequence[int] = (), empty: Sequence[int] = ()
) -> PairMatrix:
    """Return random pair values, 1 or 0 on the diagonal; NaN for instructions in `missing` and pairs within `empty`, as
    for empty sets.
    """
    rng = np.random.default_rng(seed)
    count = len(categories)
    values = rng.uniform(-1, 1, (count, count))
    values = (values + values.T) / 2
    values[np.diag_indices(count)] = rng.integers(0, 2, count)
    for k in missing:
        values[k] = values[:, k] = np.nan
    values[np.ix_(list(empty), list(empty))] = np.nan
    return PairMatrix(categories, values)


def drawn_from(weights: NDArray[np.float64], categories: Sequence[str], name: str) -> list[int]:
    """Return the drawn instructions of a category, one entry per draw."""
    return [k for k, weight in enumerate(weights) for _ in range(int(weight)) if categories[k] == name]


def cell(pairs: PairMatrix, weights: NDArray[np.float64], first: str, second: str) -> tuple[float, float]:
    """Return the cell of one resample by loops over its draws, with self pairs and without."""
    values = pairs.values
    one, other = (
        [k for k in drawn_from(weights, pairs.categories, name) if pairs.defined[k]] for name in (first, second)
    )
    if first != second:
        found = [values[i, j] for i in one for j in other if not np.isnan(values[i, j])]
        mean = float(np.mean(found)) if found else np.nan
        return mean, mean
    different = [values[i, j] for i in one for j in one if i != j and not np.isnan(values[i, j])]
    apart = float(np.mean(different)) if different else np.nan
    alike = sum(one.count(i) - 1 for i in one if not np.isnan(values[i, i]))  # pairs of equal draws
    itself = [values[i, i] for i in one if not np.isnan(values[i, i])]
    number = len(different) + alike + len(itself)
    if not number:
        return np.nan, apart
    others = (len(different) + alike) * apart if len(different) + alike else 0.0
    return (others + sum(itself)) / number, apart


def check(found: Interval, place: tuple[int, ...], results: list[float], enough: bool) -> None:
    """Check that an interval has numpy's quantiles of the defined results, or is NaN."""
    known = np.array(results)[~np.isnan(results)]
    low, high = (np.nan, np.nan) if not enough or not known.size else np.quantile(known, [0.1, 0.9])
    assert found.low[place] == pytest.approx(low, abs=1e-12, nan_ok=True)
    assert found.high[place] == pytest.approx(high, abs=1e-12, nan_ok=True)


@settings(deadline=None, max_examples=40)
@given(
    categories=NAMES,
    seed=st.integers(0, 999),
    missing=st.sets(st.integers(0, 15), max_size=3),
    empty=st.sets(st.integers(0, 15), max_size=5),
    strip=st.sampled_from([1, 3, 256]),
)
def test_cells_equal_loops_over_draws(
    categories: list[str], seed: int, missing: set[int], empty: set[int], strip: int
) -> None:
    """Both versions of every cell are quantiles of means over defined pairs of draws, without pairs of equal draws."""
    inside = [[k for k in some if k < len(categories)] for some in (missing, empty)]
    pairs = random_pairs(categories, seed, *inside)
    draws = draw_resamples(categories, resamples=23, confidence=0.8, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparcom_analysis.resampling.bootstrap.STRIP_ROWS", strip)
        found = pair_intervals(draws, pairs)[0]
    order = list(dict.fromkeys(categories))
    members = {name: sum(bool(pairs.defined[k]) for k, own in enumerate(categories) if own == name) for name in order}
    for (a, first), (b, second) in product(enumerate(order), repeat=2):
        results = [cell(pairs, weights, first, second) for weights in draws.weights]
        enough = min(members[first], members[second]) >= (3 if a == b else 2)
        check(found, (0, a, b), [both for both, _ in results], enough)
        check(found, (1, a, b), [apart for _, apart in results], enough)


@settings(deadline=None, max_examples=40)
@given(
    categories=NAMES, columns=st.integers(1, 4), seed=st.integers(0, 999), scale=st.sampled_from([1e-9, 1.0, 11008.0])
)
def test_means_equal_loops_over_draws(categories: list[str], columns: int, seed: int, scale: float) -> None:
    """By category and over all, each column's interval has the quantiles of plain means over draws with a value."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(len(categories), columns))
    values[rng.random(values.shape) < 0.2] = np.nan
    draws = draw_resamples(categories, resamples=17, confidence=0.8, seed=seed)
    found = mean_intervals(values * scale, draws)
    order = list(dict.fromkeys(categories))
    for k, (a, name) in product(range(columns), [*enumerate(order), (None, "")]):
        own = [i for i, category in enumerate(categories) if a is None or category == name]
        results = []
        for weights in draws.weights:
            drawn = [values[i, k] for i in own for _ in range(int(weights[i])) if not np.isnan(values[i, k])]
            results.append(float(np.mean(drawn)) if drawn else np.nan)
        enough = int((~np.isnan(values[own, k])).sum()) >= 2
        interval = found[1] if a is None else found[0]
        scaled = Interval(interval.low / scale, interval.high / scale)
        check(scaled, (k,) if a is None else (a, k), results, enough)


def test_shapes_follow_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of any shape give intervals of that shape per category; blocks of columns change no digit."""
    values = np.random.default_rng(0).random((9, 3, 5))
    draws = draw_resamples(["a", "b", "a"] * 3, resamples=50)
    expected = mean_intervals(values, draws)
    assert expected[0].low.shape == (2, 3, 5)
    assert expected[1].high.shape == (3, 5)
    assert mean_intervals(values[:, 0, 0], draws)[1].low == expected[1].low[0, 0]
    monkeypatch.setattr("sparcom_analysis.resampling.bootstrap.BLOCK_VALUES", 1)
    found = mean_intervals(values, draws)
    np.testing.assert_array_equal(found[0].low, expected[0].low)
    np.testing.assert_array_equal(found[1].high, expected[1].high)


def test_sums_do_not_depend_on_their_order() -> None:
    """Sums are exact: reordered instructions with equal draws give the same digits."""
    categories = ["a"] * 60 + ["b"] * 40
    pairs, draws = random_pairs(categories, 3), draw_resamples(categories, resamples=40)
    order = np.random.default_rng(1).permutation(60).tolist() + list(range(60, 100))
    moved = Resamples(categories, draws.weights[:, order], draws.confidence_level)
    other = PairMatrix(categories, pairs.values[np.ix_(order, order)].copy())
    one, two = pair_intervals(draws, pairs)[0], pair_intervals(moved, other)[0]
    np.testing.assert_array_equal(one.low, two.low)
    np.testing.assert_array_equal(one.high, two.high)


def test_draws_of_the_same_instruction_do_not_raise_the_mean() -> None:
    """Resampled means within a category center on the mean. Pairs of equal draws would raise them by (1 - mean) / n."""
    values = np.full((8, 8), 0.2) + np.random.default_rng(0).uniform(-1e-3, 1e-3, (8, 8))
    values = (values + values.T) / 2
    values[np.diag_indices(8)] = 1
    pairs = PairMatrix(["a"] * 8, values)
    found = pair_intervals(draw_resamples(["a"] * 8, resamples=400), pairs)[0]
    assert 0.199 < found.low[1, 0, 0] <= found.high[1, 0, 0] < 0.201
    assert 0.299 < found.low[0, 0, 0] <= found.high[0, 0, 0] < 0.301


def test_too_few_instructions_have_no_interval() -> None:
    """One instruction gives no interval, and two give none within their category; between categories there is one."""
    pairs = random_pairs(["a", "b", "b", "c", "c", "c"], 0)
    low = pair_intervals(draw_resamples(pairs.categories, resamples=200), pairs)[0].low[1]
    np.testing.assert_array_equal(np.isnan(low), [[True, True, True], [True, True, False], [True, False, False]])


def test_draws_stay_in_their_category_and_repeat() -> None:
    """Every resample draws as many instructions per category as it has. Equal seeds repeat; other seeds differ."""
    categories = ["a", "b", "a", "a", ""] * 5
    draws = draw_resamples(categories, resamples=30)
    for name in ("a", "b", ""):
        own = [category == name for category in categories]
        assert (draws.weights[:, own].sum(axis=1) == sum(own)).all()
    np.testing.assert_array_equal(draw_resamples(categories, resamples=30).weights, draws.weights)
    assert (draw_resamples(categories, resamples=30, seed=1).weights != draws.weights).any()


def test_instructions_are_drawn_equally_often() -> None:
    """Each is drawn once per resample on average, within five standard deviations, with the expected variance."""
    draws = draw_resamples(["a", "b", "a", "a", ""] * 4, resamples=4000).weights
    members = np.array([12, 4, 12, 12, 4] * 4)
    variance = 1 - 1 / members
    assert (np.abs(draws.mean(axis=0) - 1) < 5 * np.sqrt(variance / 4000)).all()
    np.testing.assert_allclose(draws.var(axis=0), variance, rtol=0.15)


def test_intervals_of_means_are_like_scipys() -> None:
    """For one category, both ends agree with scipy's percentile bootstrap within a fraction of the interval's width."""
    values = np.random.default_rng(5).gamma(2.0, size=120)
    found = mean_intervals(values, draw_resamples(["a"] * 120, resamples=4000))
    other = bootstrap((values,), np.mean, n_resamples=4000, method="percentile", random_state=1).confidence_interval
    width = other.high - other.low
    assert abs(found[0].low[0] - other.low) < 0.1 * width
    assert abs(found[0].high[0] - other.high) < 0.1 * width


def test_intervals_cover_the_truth() -> None:
    """In 200 samples of 40 instructions, the interval without self pairs contains the true mean about 95 % of the time.

    Similarity is a product of two random numbers around 0.6, so the true mean over pairs is 0.36.
    """
    rng = np.random.default_rng(7)
    held = 0
    for _ in range(200):
        strength = rng.uniform(0.2, 1.0, 40)
        values = np.outer(strength, strength)
        found = pair_intervals(draw_resamples(["a"] * 40, resamples=200), PairMatrix(["a"] * 40, values))[0]
        held += bool(found.low[1, 0, 0] <= 0.36 <= found.high[1, 0, 0])
    assert 174 <= held <= 200


@settings(deadline=None, max_examples=30)
@given(
    count=st.integers(1, 30),
    missing=st.floats(0, 1),
    confidence=st.sampled_from([0.5, 0.9, 0.95]),
    seed=st.integers(0, 99),
)
def test_percentiles_equal_numpys(count: int, missing: float, confidence: float, seed: int) -> None:
    """Quantiles skip NaN and are interpolated like numpy's; without values they are NaN."""
    rng = np.random.default_rng(seed)
    results = rng.normal(size=(count, 4))
    results[rng.random(results.shape) < missing] = np.nan
    for place, share in enumerate([(1 - confidence) / 2, (1 + confidence) / 2]):
        expected = [np.quantile(one[~np.isnan(one)], share) if (~np.isnan(one)).any() else np.nan for one in results.T]
        np.testing.assert_allclose(percentiles(results, confidence)[place], expected, rtol=0, atol=1e-12)


def test_differences_are_of_the_same_draws() -> None:
    """Each measure has its own interval; the difference has one of differences within each draw."""
    categories = ["a", "a", "b", "a", "b", "a"]
    first, second = random_pairs(categories, 0), random_pairs(categories, 1, missing=[3])
    draws = draw_resamples(categories, 25, 0.8)
    one, other, difference = pair_intervals(draws, first, second)
    np.testing.assert_array_equal(one.low, pair_intervals(draws, first)[0].low)
    np.testing.assert_array_equal(other.high, pair_intervals(draws, second)[0].high)
    for (a, x), (b, y) in product(enumerate("ab"), repeat=2):
        cells = [np.subtract(cell(second, w, x, y), cell(first, w, x, y)) for w in draws.weights]
        for k in range(2):
            check(difference, (k, a, b), [float(both[k]) for both in cells], enough=(a, b) != (1, 1))


def test_group_means_are_numpys_with_their_intervals() -> None:
    """Means by group and over all leave NaN out and count it; intervals are those of `mean_intervals`."""
    categories = ["a", "", "a", "", "a"]
    values = np.array([[1.0, 2], [3, np.nan], [5, 7], [np.nan, np.nan], [0, 1]])
    draws = draw_resamples(categories, 20)
    found = group_means(values, categories, draws)
    assert found.labels == ["a", "(none)"]
    np.testing.assert_allclose(found.mean, [[2, 10 / 3], [3, np.nan]])
    np.testing.assert_allclose(found.overall, [9 / 4, 10 / 3])
    assert found.counted.tolist() == [[3, 3], [1, 0]]
    assert found.undefined.tolist() == [[0, 0], [1, 2]]
    assert found.interval is not None
    np.testing.assert_array_equal(found.interval.low, mean_intervals(values, draws)[0].low)
    assert group_means(values, categories).interval is None


@settings(deadline=None, max_examples=25)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_centered_intervals_of_absolute_means(sizes: list[int], seed: int) -> None:
    """The interval is the estimate plus numpy's quantiles of deviations from the draws' mean, within its limits."""
    categories = [f"c{k}" for k, size in enumerate(sizes) for _ in range(size)]
    codes = np.repeat(np.arange(len(sizes)), sizes)
    values = np.random.default_rng(seed).normal(size=(len(categories), 4))
    draws = draw_resamples(categories, 11, 0.8, seed)
    drawn = np.abs(weighted_means(values, draws.weights, codes, len(sizes))[:, :-1]).sum(axis=2)
    estimate = np.array([np.abs(values[codes == c].mean(axis=0)).sum() for c in range(len(sizes))])
    found = centered_interval(estimate, drawn, 0.8, upper=2.0)
    for c, size in enumerate(sizes):
        by_loop = [
            np.abs(np.mean([values[k] for k in np.flatnonzero(codes == c) for _ in range(int(row[k]))], axis=0)).sum()
            for row in draws.weights
        ]
        below, above = np.quantile(np.array(by_loop) - np.mean(by_loop), [0.1, 0.9]) if size > 1 else (np.nan, np.nan)
        assert found.low[c] == pytest.approx(max(estimate[c] + min(below, 0), 0), abs=1e-12, nan_ok=True)
        assert found.high[c] == pytest.approx(np.minimum(estimate[c] + max(above, 0), 2.0), abs=1e-12, nan_ok=True)


def test_resampled_rows_stay_in_their_group_and_repeat() -> None:
    """Each group draws as many of its own instructions as it has; the stream is PCG64's of the seed."""
    codes = np.array([0, 1, 0, 0, 1])
    found = list(resampled_rows(codes, 30, 3))
    rng = np.random.Generator(np.random.PCG64(3))
    assert len(found) == 30
    for rows in found:
        for code, some in enumerate(rows):
            members = np.flatnonzero(codes == code)
            np.testing.assert_array_equal(some, members[rng.integers(0, len(members), len(members))])


def test_other_instructions_are_refused() -> None:
    """Values of instructions other than the drawn ones are refused; 0 resamples give no draws."""
    draws = draw_resamples(["a", "b"], 2)
    with pytest.raises(ValueError, match="same instructions"):
        pair_intervals(draws, random_pairs(["b", "a"], 0))
    with pytest.raises(ValueError, match="2 entries, one per instruction; got 3"):
        mean_intervals(np.zeros((3, 1)), draws)
    assert resamples_for(["a", "b"], Options(n_resamples=0)) is None
