"""Bootstrap intervals, against loops over draws."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import bootstrap

from sparcom_analysis.resampling.bootstrap import Interval, draw_resamples, mean_intervals, pair_intervals, percentiles
from sparcom_analysis.resampling.pairs import PairMatrix
from sparcom_data.errors import InvalidInputError

NAMES = st.lists(st.sampled_from(["CLS", "", "GEN"]), min_size=2, max_size=16)


def random_pairs(categories: Sequence[str], seed: int, missing: Sequence[int] = ()) -> PairMatrix:
    """Random values of every pair, 1 or 0 with itself; NaN for the instructions named."""
    rng = np.random.default_rng(seed)
    count = len(categories)
    values = rng.uniform(-1, 1, (count, count))
    values = (values + values.T) / 2
    values[np.diag_indices(count)] = rng.integers(0, 2, count)
    for k in missing:
        values[k] = values[:, k] = np.nan
    return PairMatrix(categories, values)


def drawn_from(weights: NDArray[np.float64], categories: Sequence[str], name: str) -> list[int]:
    """The draws of a category as instructions, one a draw."""
    return [k for k, weight in enumerate(weights) for _ in range(int(weight)) if categories[k] == name]


def cell(pairs: PairMatrix, weights: NDArray[np.float64], first: str, second: str) -> tuple[float, float]:
    """The cell of one resample by loops over its draws: self pairs counted, and left out."""
    values = pairs.values
    one, other = (
        [k for k in drawn_from(weights, pairs.categories, name) if pairs.defined[k]] for name in (first, second)
    )
    if first != second:
        found = [values[i, j] for i in one for j in other]
        mean = float(np.mean(found)) if found else np.nan
        return mean, mean
    different = [values[i, j] for i in one for j in one if i != j]
    apart = float(np.mean(different)) if different else np.nan
    if not one:
        return np.nan, apart
    itself = sum(values[i, i] for i in one)
    others = apart * len(one) * (len(one) - 1) if len(one) > 1 else 0.0
    return (others + itself) / len(one) ** 2, apart


def check(found: Interval, place: tuple[int, ...], results: list[float], enough: bool) -> None:
    """An interval holds numpy's quantiles of the results that exist, or nothing."""
    known = np.array(results)[~np.isnan(results)]
    low, high = (np.nan, np.nan) if not enough or not known.size else np.quantile(known, [0.1, 0.9])
    assert found.low[place] == pytest.approx(low, abs=1e-12, nan_ok=True)
    assert found.high[place] == pytest.approx(high, abs=1e-12, nan_ok=True)


@settings(deadline=None, max_examples=40)
@given(categories=NAMES, seed=st.integers(0, 999), missing=st.sets(st.integers(0, 15), max_size=3))
def test_cells_equal_loops_over_draws(categories: list[str], seed: int, missing: set[int]) -> None:
    """Both versions of every cell are the quantiles of means over pairs of draws, no draw paired with its like."""
    pairs = random_pairs(categories, seed, [k for k in missing if k < len(categories)])
    draws = draw_resamples(categories, resamples=23, confidence=0.8, seed=seed)
    found = pair_intervals(pairs, draws)
    order = list(dict.fromkeys(categories))
    members = {name: sum(bool(pairs.defined[k]) for k, own in enumerate(categories) if own == name) for name in order}
    for (a, first), (b, second) in product(enumerate(order), repeat=2):
        results = [cell(pairs, weights, first, second) for weights in draws.weights]
        enough = min(members[first], members[second]) >= (3 if a == b else 2)
        check(found.with_self, (a, b), [both for both, _ in results], enough)
        check(found.without_self, (a, b), [apart for _, apart in results], enough)


@settings(deadline=None, max_examples=40)
@given(
    categories=NAMES, columns=st.integers(1, 4), seed=st.integers(0, 999), scale=st.sampled_from([1e-9, 1.0, 11008.0])
)
def test_means_equal_loops_over_draws(categories: list[str], columns: int, seed: int, scale: float) -> None:
    """By category and over all, each column's interval is the quantiles of plain means over draws with a value."""
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
        interval = found.overall if a is None else found.by_category
        scaled = Interval(interval.low / scale, interval.high / scale)
        check(scaled, (k,) if a is None else (a, k), results, enough)


def test_shapes_follow_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of any shape give intervals of that shape, a category each, and blocks of columns change no digit."""
    values = np.random.default_rng(0).random((9, 3, 5))
    draws = draw_resamples(["a", "b", "a"] * 3, resamples=50)
    expected = mean_intervals(values, draws)
    assert expected.by_category.low.shape == (2, 3, 5)
    assert expected.overall.high.shape == (3, 5)
    assert mean_intervals(values[:, 0, 0], draws).overall.low == expected.overall.low[0, 0]
    monkeypatch.setattr("sparcom_analysis.resampling.bootstrap.BLOCK_VALUES", 1)
    found = mean_intervals(values, draws)
    np.testing.assert_array_equal(found.by_category.low, expected.by_category.low)
    np.testing.assert_array_equal(found.overall.high, expected.overall.high)


def test_sums_do_not_depend_on_their_order() -> None:
    """Instructions in another order give the same digits where they are drawn alike: sums are exact."""
    categories = ["a"] * 60 + ["b"] * 40
    pairs, draws = random_pairs(categories, 3), draw_resamples(categories, resamples=40)
    order = np.random.default_rng(1).permutation(60).tolist() + list(range(60, 100))
    moved = type(draws)(categories, draws.weights[:, order], draws.confidence, draws.seed)
    other = PairMatrix(categories, pairs.values[np.ix_(order, order)].copy())
    for name in ("with_self", "without_self"):
        one, two = getattr(pair_intervals(pairs, draws), name), getattr(pair_intervals(other, moved), name)
        np.testing.assert_array_equal(one.low, two.low)
        np.testing.assert_array_equal(one.high, two.high)


def test_draws_of_the_same_instruction_do_not_raise_the_mean() -> None:
    """The middle of the resampled means within a category lies at the mean, where pairs of a draw with its like would
    lift it by (1 - mean) / n."""
    values = np.full((8, 8), 0.2) + np.random.default_rng(0).uniform(-1e-3, 1e-3, (8, 8))
    values = (values + values.T) / 2
    values[np.diag_indices(8)] = 1
    pairs = PairMatrix(["a"] * 8, values)
    found = pair_intervals(pairs, draw_resamples(["a"] * 8, resamples=400))
    assert 0.199 < found.without_self.low[0, 0] <= found.without_self.high[0, 0] < 0.201
    assert 0.299 < found.with_self.low[0, 0] <= found.with_self.high[0, 0] < 0.301


def test_too_few_instructions_have_no_interval() -> None:
    """One instruction gives no interval at all, two none within their category; between them there is one."""
    pairs = random_pairs(["a", "b", "b", "c", "c", "c"], 0)
    low = pair_intervals(pairs, draw_resamples(pairs.categories, resamples=200)).without_self.low
    np.testing.assert_array_equal(np.isnan(low), [[True, True, True], [True, True, False], [True, False, False]])


def test_draws_stay_in_their_category_and_repeat() -> None:
    """Every resample draws as many of a category as it has; the same seed draws the same, another one others."""
    categories = ["a", "b", "a", "a", ""] * 5
    draws = draw_resamples(categories, resamples=30)
    for name in ("a", "b", ""):
        own = [category == name for category in categories]
        assert (draws.weights[:, own].sum(axis=1) == sum(own)).all()
    np.testing.assert_array_equal(draw_resamples(categories, resamples=30).weights, draws.weights)
    assert (draw_resamples(categories, resamples=30, seed=1).weights != draws.weights).any()


def test_every_instruction_is_drawn_as_often_as_another() -> None:
    """Each is drawn once a resample on average, within five deviations, and as unevenly as chance makes it."""
    draws = draw_resamples(["a", "b", "a", "a", ""] * 4, resamples=4000).weights
    members = np.array([12, 4, 12, 12, 4] * 4)
    variance = 1 - 1 / members
    assert (np.abs(draws.mean(axis=0) - 1) < 5 * np.sqrt(variance / 4000)).all()
    np.testing.assert_allclose(draws.var(axis=0), variance, rtol=0.15)


def test_intervals_of_means_are_like_scipys() -> None:
    """Of one category, low and high agree with scipy's percentile bootstrap to a fraction of the interval's width."""
    values = np.random.default_rng(5).gamma(2.0, size=120)
    found = mean_intervals(values, draw_resamples(["a"] * 120, resamples=4000))
    other = bootstrap((values,), np.mean, n_resamples=4000, method="percentile", random_state=1).confidence_interval
    width = other.high - other.low
    assert abs(found.by_category.low[0] - other.low) < 0.1 * width
    assert abs(found.by_category.high[0] - other.high) < 0.1 * width


def test_intervals_cover_the_truth() -> None:
    """Of 200 samples of 40 instructions, the interval without self pairs holds the true mean in about 95 of 100.

    Similarity is a product of two random numbers around 0.6, so the true mean over pairs is 0.36.
    """
    rng = np.random.default_rng(7)
    held = 0
    for _ in range(200):
        strength = rng.uniform(0.2, 1.0, 40)
        values = np.outer(strength, strength)
        found = pair_intervals(PairMatrix(["a"] * 40, values), draw_resamples(["a"] * 40, resamples=200)).without_self
        held += bool(found.low[0, 0] <= 0.36 <= found.high[0, 0])
    assert 174 <= held <= 200


@settings(deadline=None, max_examples=30)
@given(
    count=st.integers(1, 30),
    missing=st.floats(0, 1),
    confidence=st.sampled_from([0.5, 0.9, 0.95]),
    seed=st.integers(0, 99),
)
def test_percentiles_equal_numpys(count: int, missing: float, confidence: float, seed: int) -> None:
    """Quantiles of what is not NaN, as numpy interpolates them; NaN where nothing is left."""
    rng = np.random.default_rng(seed)
    results = rng.normal(size=(count, 4))
    results[rng.random(results.shape) < missing] = np.nan
    for place, share in enumerate([(1 - confidence) / 2, (1 + confidence) / 2]):
        expected = [np.quantile(one[~np.isnan(one)], share) if (~np.isnan(one)).any() else np.nan for one in results.T]
        np.testing.assert_allclose(percentiles(results, confidence)[place], expected, rtol=0, atol=1e-12)


def test_wrong_settings_are_refused_together() -> None:
    """Number, confidence and seed are checked, and every problem is named at once; so are other instructions."""
    with pytest.raises(InvalidInputError) as raised:
        draw_resamples(["a", "b"], resamples=0, confidence=1.0, seed=-1)
    assert len(raised.value.problems) == 3
    draws = draw_resamples(["a", "b"], resamples=2)
    with pytest.raises(ValueError, match="same instructions"):
        pair_intervals(random_pairs(["b", "a"], 0), draws)
    with pytest.raises(ValueError, match="values of 2 instructions; there are 3"):
        mean_intervals(np.zeros((3, 1)), draws)
