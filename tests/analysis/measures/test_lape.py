"""LAPE against its steps written out with fractions and loops, on random counts and random archives, and by hand."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparcom_analysis import activation_counts
from sparcom_analysis.components.lape import ONE_CATEGORY, Lape, LapeRates, lape
from sparcom_analysis.components.pooled import PooledCounts, pooled_counts
from sparcom_analysis.archive.populations import Population
from sparcom_data.errors import IncompleteArchiveError, InvalidInputError, UnsupportedArchiveError

RATES = st.builds(
    LapeRates,
    top=st.sampled_from([0.01, 0.1, 0.25, 0.5, 1.0]),
    filter=st.sampled_from([0.95, 0.5, 0.2, 0.001, 1.0]),
    bar=st.sampled_from([0.95, 0.5, 0.75, 1.0]),
)


def pooled_from(counts: NDArray[np.int64], tokens: list[int], shape: tuple[int, int, int]) -> PooledCounts:
    """Counts (c, layer × expert × neuron) of categories "0", "1" …, added as two instructions each."""
    layers, experts, neurons = shape
    part = Population("expert_neuron" if experts > 1 else "neuron", list(range(layers)), experts, 1, neurons)
    names = [str(code) for code in range(len(tokens))]
    half = [total // 2 for total in tokens]
    rest = [total - first for total, first in zip(tokens, half, strict=True)]
    pooled = PooledCounts(part, names * 2, np.array(half + rest))
    for k, one in enumerate(np.concatenate([counts // 3, counts - counts // 3])):
        padded = np.zeros((layers, experts, part.neuron_bytes * 8), dtype=np.uint32)
        padded[:, :, :neurons] = one.reshape(shape)
        pooled.add(k, padded.reshape(layers, -1))
    return pooled


def check(found: Lape, counts: list[list[int]], tokens: list[int], rates: LapeRates) -> None:
    """What `found` says is what the five steps give, neuron by neuron."""
    p = [[Fraction(count, total) for count in row] for row, total in zip(counts, tokens, strict=True)]
    every = sorted(value for row in p for value in row)
    least, bar = (every[max(1, round(Fraction(str(rate)) * len(every))) - 1] for rate in (rates.filter, rates.bar))
    ranked = []
    for i in range(len(p[0])):
        own = sorted(float(row[i]) for row in p)
        if not any(row[i] > least for row in p):
            continue
        q = [value / sum(own) for value in own]
        ranked.append((round(-sum(part * math.log(part) for part in q if part), 12), i))
    wanted = round(Fraction(str(rates.top)) * len(p[0]))
    chosen = sorted(ranked)[:wanted]
    assert (found.passed, found.wanted) == (len(ranked), wanted)
    assert (found.filter, found.bar) == (float(least), float(bar))
    assert found.neuron.tolist() == [i for _, i in chosen]
    np.testing.assert_allclose(found.entropy, [value for value, _ in chosen], rtol=0, atol=1e-12)
    width = found.population.width
    for code, row in enumerate(p):
        assert found.frequency[code].tolist() == [float(row[i]) for _, i in chosen]
        mine = sorted(i for _, i in chosen if row[i] > bar)
        assert [j * width + i for j, some in enumerate(found.ids(code)) for i in some.tolist()] == mine
        assert np.flatnonzero(found.mask(code)).tolist() == mine
        assert found.by_category()[code].tolist() == [len(some) for some in found.ids(code)]
        assert all(some.dtype == np.int64 for some in found.ids(code))


@settings(deadline=None, max_examples=80)
@given(
    categories=st.integers(2, 4),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 12)),
    rate=st.sampled_from([0.05, 0.4, 0.9]),
    rates=RATES,
    seed=st.integers(0, 9999),
)
def test_counts_equal_the_steps(categories, shape, rate, rates, seed):  # type: ignore[no-untyped-def]
    """Whatever counts, many of them tied: selected, specific, entropy and both percentiles are the steps'."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, 12, size=categories).tolist()
    counts = np.array([rng.binomial(total, rate, size=math.prod(shape)) for total in tokens])
    check(lape(pooled_from(counts, tokens, shape), rates), counts.tolist(), tokens, rates)


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    categories=st.lists(st.sampled_from(["a", "b", ""]), min_size=4, max_size=7).filter(
        lambda names: len(set(names)) > 1
    ),
    granularity=st.sampled_from(["token", "count"]),
    block_bytes=st.integers(1, 400),
    seed=st.integers(0, 99),
)
def test_archives_equal_loops_over_tokens(make_case, categories, granularity, block_bytes, seed):  # type: ignore[no-untyped-def]
    """From masks or counts, whatever the block: tokens are pooled over the category's instructions."""
    lengths = np.random.default_rng(seed).integers(1, 12, size=len(categories)).tolist()
    case = make_case(lengths, categories, granularity=granularity, seed=seed, rates=(0.1, 0.6))
    rates = LapeRates(top=0.2, filter=0.6, bar=0.7)
    found = lape(pooled_counts(case.archive, block_bytes=block_bytes), rates)
    order = list(dict.fromkeys(categories))
    assert list(found.categories) == [name or "(none)" for name in order]
    members = [[k for k, category in enumerate(categories) if category == name] for name in order]
    counts = [sum(case.masks[k].sum(axis=0) for k in mine).reshape(-1).tolist() for mine in members]
    tokens = [sum(lengths[k] for k in mine) for mine in members]
    assert found.tokens.tolist() == tokens
    check(found, counts, tokens, rates)


def test_every_component_of_a_mixture(make_moe) -> None:  # type: ignore[no-untyped-def]
    """Counts of routed, shared and dense neurons are those of `activation_counts`, summed by category."""
    case = make_moe(failed=(3,))
    for component in ("expert_neuron", "shared_expert_neuron", "neuron"):
        pooled = pooled_counts(case.archive, component=component)
        for code, some in enumerate(([0, 1, 2, 4], [5, 6, 7, 8, 9])):
            total = sum(activation_counts(case.archive, k, component=component).astype(int) for k in some)
            np.testing.assert_array_equal(pooled.counts[code], total.reshape(-1))  # type: ignore[union-attr]
        check(lape(pooled), pooled.counts.tolist(), pooled.tokens.tolist(), LapeRates())


def test_twelve_neurons_by_hand() -> None:
    """Ten tokens of the one category and twenty of the other; worked out on paper.

    The twelfth smallest of the 24 p is 0.4, so neurons 1 to 4 are dropped, 1 although it is active in one category
    alone and 4 although it is just at 0.4. Neurons 0 and 7 have entropy 0, then comes 5 with q = 10/11 and 1/11, before
    9 with 0.9 and 0.1. The 17th smallest is 0.6: 0 is specific to the second category, 7 to the first, 5 to none.
    """
    counts = np.array([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 5], [20, 0, 2, 6, 8, 1, 12, 0, 16, 2, 20, 10]])
    found = lape(pooled_from(counts, [10, 20], (3, 1, 4)), LapeRates(top=0.25, filter=0.5, bar=0.7))
    assert (found.filter, found.bar, found.passed, found.wanted) == (0.4, 0.6, 8, 3)
    assert found.neuron.tolist() == [0, 7, 5]
    expected = -(10 / 11 * math.log(10 / 11) + 1 / 11 * math.log(1 / 11))
    np.testing.assert_allclose(found.entropy, [0, 0, expected], rtol=0, atol=1e-12)
    assert found.specific.tolist() == [[False, True, False], [True, False, False]]
    assert [some.tolist() for some in found.ids(0)] == [[], [3], []]
    assert [some.tolist() for some in found.ids(1)] == [[0], [], []]


@pytest.mark.parametrize("digits", [12, 17])
def test_equal_entropies_go_to_the_lower_index(digits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same p in other categories is the same entropy to the last digit, also where nothing is rounded."""
    monkeypatch.setattr("sparcom_analysis.components.lape.TIE_DIGITS", digits)
    rng = np.random.default_rng(1)
    base = rng.integers(1, 1000, size=9)
    counts = np.array([rng.permutation(base) for _ in range(200)]).T
    found = lape(pooled_from(counts, [1000] * 9, (1, 1, 200)), LapeRates(top=0.5, filter=0.01))
    assert found.neuron.tolist() == list(range(100))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neurons taken one, seven or all at a time: the same bytes."""
    counts = np.random.default_rng(2).integers(0, 40, size=(12, 300))
    pooled = pooled_from(counts, [40] * 12, (2, 1, 150))
    expected = lape(pooled, LapeRates(top=0.5, filter=0.8))
    for block in (1, 7, 299):
        monkeypatch.setattr("sparcom_analysis.components.lape.BLOCK_NEURONS", block)
        found = lape(pooled, LapeRates(top=0.5, filter=0.8))
        assert found.neuron.tobytes() == expected.neuron.tobytes()
        assert found.entropy.tobytes() == expected.entropy.tobytes()
        assert found.frequency.tobytes() == expected.frequency.tobytes()


def test_one_category_selects_nothing() -> None:
    """Entropy over one category tells nothing: an empty result that says why, in the shapes of any other."""
    found = lape(pooled_from(np.arange(20)[None], [20], (2, 1, 10)))
    assert found.reason == ONE_CATEGORY
    assert (found.neuron.shape, found.specific.shape, found.passed) == ((0,), (1, 0), 0)
    assert math.isnan(found.filter)
    assert [some.tolist() for some in found.ids(0)] == [[], []]
    assert found.by_category().tolist() == [[0, 0]]
    assert not found.mask(0).any()


def test_many_tokens_do_not_wrap() -> None:
    """Past 2^32 tokens of a category sums take eight bytes."""
    pooled = PooledCounts(Population("neuron", [0], 1, 1, 8), ["a", "a", "b"], np.array([2**32 - 1, 2**32 - 1, 5]))
    for k in range(2):
        pooled.add(k, np.full((1, 8), 2**32 - 1, dtype=np.uint32))
    assert pooled.counts.dtype == np.uint64
    assert pooled.counts[0].tolist() == [2**33 - 2] * 8


def test_rates_and_archives_that_cannot_be_used(make_case, make_moe) -> None:  # type: ignore[no-untyped-def]
    """Rates outside (0, 1] are all named at once; too few instructions and missing components are refused."""
    with pytest.raises(InvalidInputError) as error:
        LapeRates(top=0, filter=1.2)
    assert len(error.value.problems) == 2
    assert "top rate must be above 0 and at most 1; it is 0." in str(error.value)
    with pytest.raises(IncompleteArchiveError, match="at least 2 complete"):
        pooled_counts(make_case((3, 4), ("a", "b"), failed=(1,)).archive)
    with pytest.raises(UnsupportedArchiveError, match="component 'expert_neuron' needs"):
        pooled_counts(make_case((3, 4), ("a", "b")).archive, component="expert_neuron")
