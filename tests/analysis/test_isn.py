"""Equation 7, checked with plain Python fractions and sets."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparcom_analysis import find_isns
from sparcom_analysis.isn import minimum_count
from sparcom_analysis.options import Options
from sparcom_data.errors import IncompleteArchiveError, InvalidInputError


def expected_set(mask: np.ndarray, top: str | None, min_frequency: str | None) -> set[tuple[int, int]]:
    """Return the ISNs of a mask (T, layer, neuron), slowly: rank exact frequencies, add levels until the rule is
    met.
    """
    tokens, layers, neurons = mask.shape
    p = {
        (j, i): Fraction(sum(bool(mask[t, j, i]) for t in range(tokens)), tokens)
        for j in range(layers)
        for i in range(neurons)
    }
    active = {where: value for where, value in p.items() if value > 0}
    if min_frequency is not None:
        return {where for where, value in active.items() if value >= Fraction(min_frequency)}
    assert top is not None
    taken: set[tuple[int, int]] = set()
    for level in sorted(set(active.values()), reverse=True):
        if len(taken) >= Fraction(top) * layers * neurons:
            break
        taken |= {where for where, value in active.items() if value == level}
    return taken


def found_set(neurons, k: int) -> set[tuple[int, int]]:  # type: ignore[no-untyped-def]
    return {(int(j), int(i)) for j, i in zip(*np.nonzero(neurons.mask(k)), strict=True)}


@settings(deadline=None, max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 12), min_size=2, max_size=5),
    layers=st.integers(1, 3),
    neurons=st.integers(1, 30),
    value=st.one_of(
        st.sampled_from(["0.01", "0.05", "0.1", "0.29", "0.3", "0.5", "1.0"]),
        st.integers(1, 1000).map(lambda v: str(v / 1000)),
    ),
    rule=st.sampled_from(["top", "min_frequency"]),
    block_bytes=st.integers(1, 500),
    rates=st.sampled_from([(0.4,), (0.02, 0.9), (0.0, 0.2), (1.0, 0.05)]),
    seed=st.integers(0, 99),
)
def test_sets_are_those_of_the_definition(make_case, lengths, layers, neurons, value, rule, block_bytes, rates, seed):  # type: ignore[no-untyped-def]
    """Both rules select exactly the neurons of equation 7, ties included, for any block size."""
    case = make_case(lengths, ["c"] * len(lengths), layers=layers, neurons=neurons, rates=rates, seed=seed)
    result = find_isns(case.archive, **{rule: float(value)}, block_bytes=block_bytes)
    for k, mask in enumerate(case.masks):
        expected = expected_set(mask, **{"top": None, "min_frequency": None, rule: value})
        assert found_set(result, k) == expected
        assert result.sizes[k] == len(expected)
        assert result.layer_counts[k].tolist() == [sum(j == layer for j, _ in expected) for layer in range(layers)]
    assert result.tokens.tolist() == lengths


def counted(counts: list[int], tokens: int) -> np.ndarray:
    """Return how often each count from 0 to T occurs."""
    return np.bincount(counts, minlength=tokens + 1)


def test_ties_with_the_last_neuron_are_included() -> None:
    """Two of ten are requested and three share the second rank, so four are selected."""
    occurrences = counted([9, 5, 5, 5, 1, 1, 0, 0, 0, 0], 9)
    assert minimum_count(Options(top=0.2), occurrences, 10) == 5


def test_neurons_that_are_never_active_are_never_selected() -> None:
    """If `top` reaches past the active neurons, the count needed stays 1."""
    assert minimum_count(Options(top=1.0), counted([3, 1, 0, 0], 3), 4) == 1
    assert minimum_count(Options(top=0.5), counted([0] * 16, 3), 16) == 1


@pytest.mark.parametrize(
    ("top", "neurons", "wanted"),
    [(0.07, 100, 7), (0.29, 100, 29), (0.01, 352_256, 3523), (0.05, 46_080, 2304), (1e-9, 10, 1), (1.0, 10, 10)],
)
def test_epsilon_is_an_exact_decimal(top: float, neurons: int, wanted: int) -> None:
    """⌈ε · N⌉ in decimal: binary rounding of ε adds or drops no neuron."""
    assert Options(top=top).wanted(neurons) == wanted


@pytest.mark.parametrize(
    ("min_frequency", "tokens", "count"), [(0.3, 10, 3), (0.29, 100, 29), (0.301, 10, 4), (1.0, 7, 7)]
)
def test_min_frequency_is_compared_exactly(min_frequency: float, tokens: int, count: int) -> None:
    """p ≥ P is c ≥ P · T in exact arithmetic: 3 of 10 tokens reach 0.3 but not 0.301."""
    assert minimum_count(Options(min_frequency=min_frequency), counted([0] * 8, tokens), 8) == count


@pytest.mark.parametrize("value", [0.0, -0.1, 1.0001, float("nan"), float("inf")])
@pytest.mark.parametrize("rule", ["top", "min_frequency"])
def test_values_outside_the_range_are_refused(rule: str, value: float) -> None:
    """Both rules take a value above 0 and at most 1; the error names rule and value."""
    with pytest.raises(InvalidInputError, match=rf"{rule} must be above 0 and at most 1; it is {value}"):
        Options(**{rule: value})


def test_exactly_one_rule(typical) -> None:  # type: ignore[no-untyped-def]
    """Two rules are refused; none means top = 0.05."""
    with pytest.raises(InvalidInputError, match="top and min_frequency are alternative rules"):
        find_isns(typical.archive, Options(top=0.1, min_frequency=0.5))
    assert find_isns(typical.archive).options.top == 0.05
    assert find_isns(typical.archive, min_frequency=0.5).options.top is None


def test_only_complete_instructions_are_used(make_case) -> None:  # type: ignore[no-untyped-def]
    """Failed and pending instructions are in no set, though their chunks may be missing."""
    case = make_case((20, 5, 20, 6, 7), "abcab", failed=(0,), unfinished=(2,), chunk_tokens=2)
    result = find_isns(case.archive)
    assert list(result.ids) == ["i1", "i3", "i4"]
    assert list(result.categories) == ["b", "a", "b"]


def test_too_few_complete_instructions(make_case) -> None:  # type: ignore[no-untyped-def]
    """With one complete instruction, the error lists the number in each state."""
    case = make_case((4, 5, 6), "aab", failed=(0,), unfinished=(2,))
    with pytest.raises(
        IncompleteArchiveError, match=r"at least 2 .* has 1 \(1 pending, 1 complete, 1 failed, 0 cancelled\)"
    ):
        find_isns(case.archive, least=2)
    assert len(find_isns(case.archive)) == 1


def test_the_minimum_count_belongs_to_a_selected_neuron(make_case) -> None:  # type: ignore[no-untyped-def]
    """This holds for bounds between two counts and beyond the active neurons; for an empty set the minimum is NaN."""
    case = make_case((30, 9, 7), "aab", rates=(0.5, 0.5, 0.0), layers=1, neurons=4)
    rules = ({"min_frequency": 0.1}, {"min_frequency": 0.3}, {"min_frequency": 0.5}, {"top": 1.0}, {"top": 0.1})
    for rule in rules:
        isn = find_isns(case.archive, **rule)
        table = isn.to_dataframe()
        assert table.index.tolist() == ["i0", "i1", "i2"]
        for k, (count, frequency) in enumerate(zip(table.minimum_count, table.minimum_frequency, strict=True)):
            counts = case.masks[k].sum(axis=0)[isn.mask(k)]
            assert table.isn_count.iloc[k] == len(counts)
            if not len(counts):
                assert np.isnan([count, frequency]).all()
                continue
            assert (count, frequency) == (counts.min(), counts.min() / isn.tokens[k])
        assert np.isnan(table.minimum_count.iloc[2])


@pytest.mark.parametrize("granularity", ["token", "count"])
@pytest.mark.parametrize("rule", [{"top": 0.05}, {"min_frequency": 1.0}])
def test_a_layer_without_an_active_neuron_is_dead(make_moe, damage, granularity, rule) -> None:  # type: ignore[no-untyped-def]
    """In every population, whatever the rule; a layer without ISNs alone is not dead."""
    case = make_moe(granularity=granularity, dense_layers=2, failed=(1,))
    what = "count" if granularity == "count" else "active"
    for name, dead in (("shared_expert_neuron", [0, 3, 8]), ("neuron", [5]), ("expert_neuron", [6])):
        archive = case.archive
        for k in dead:
            where = slice(k, k + 1) if granularity == "count" else case.rows(k)
            archive = damage(archive, f"{name}/{what}", (where, 1), 0)
        isn = find_isns(archive, population=name, **rule)
        assert np.argwhere(isn.dead_layers).tolist() == [[case.complete.index(k), 1] for k in dead]


def test_pooled_counts_are_sums_over_categories(make_case) -> None:  # type: ignore[no-untyped-def]
    """Counts and T are summed over the instructions of each category; without `pool` nothing is kept."""
    case = make_case((5, 9, 3, 7), ("b", "a", "b", ""), failed=(2,))
    pooled = find_isns(case.archive, pool=True).pooled
    assert pooled is not None
    assert (pooled.categories, pooled.tokens.tolist()) == (["b", "a", "(none)"], [5, 9, 7])
    for category, k in enumerate((0, 1, 3)):
        assert (pooled.counts[category] == case.masks[k].sum(axis=0).ravel()).all()
    assert find_isns(case.archive).pooled is None


def test_pools_past_the_limit_are_not_kept(make_case, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """The reason gives the limit and the numbers."""
    monkeypatch.setattr("sparcom_analysis.pooled.MAX_BYTES", 100)
    isn = find_isns(make_case((5, 9), "ab").archive, pool=True)
    assert isn.pooled is None
    assert "2 categories of 60 neurons take more" in isn.pooled_reason
