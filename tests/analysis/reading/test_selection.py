"""Equation 7, against a plain Python reading of it with fractions and sets."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparcom_analysis import instruction_specific_neurons
from sparcom_analysis.isn import Selection
from sparcom_analysis.tables.neurons import instruction_table
from sparcom_data.errors import IncompleteArchiveError, InvalidInputError


def expected_set(mask: np.ndarray, epsilon: str | None, threshold: str | None) -> set[tuple[int, int]]:
    """The ISNs of a mask (T, layer, neuron), slowly: rank exact frequencies, take levels while the rule wants more."""
    tokens, layers, neurons = mask.shape
    p = {
        (j, i): Fraction(sum(bool(mask[t, j, i]) for t in range(tokens)), tokens)
        for j in range(layers)
        for i in range(neurons)
    }
    active = {where: value for where, value in p.items() if value > 0}
    if threshold is not None:
        return {where for where, value in active.items() if value >= Fraction(threshold)}
    assert epsilon is not None
    taken: set[tuple[int, int]] = set()
    for level in sorted(set(active.values()), reverse=True):
        if len(taken) >= Fraction(epsilon) * layers * neurons:
            break
        taken |= {where for where, value in active.items() if value == level}
    return taken


def found_set(neurons, k: int) -> set[tuple[int, int]]:  # type: ignore[no-untyped-def]
    return {(int(j), int(i)) for j, i in zip(*np.nonzero(neurons.mask(k)), strict=True)}


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 12), min_size=2, max_size=5),
    layers=st.integers(1, 3),
    neurons=st.integers(1, 30),
    value=st.one_of(
        st.sampled_from(["0.01", "0.05", "0.1", "0.29", "0.3", "0.5", "1.0"]),
        st.integers(1, 1000).map(lambda v: str(v / 1000)),
    ),
    rule=st.sampled_from(["epsilon", "threshold"]),
    block_bytes=st.integers(1, 500),
    rates=st.sampled_from([(0.4,), (0.02, 0.9), (0.0, 0.2), (1.0, 0.05)]),
    seed=st.integers(0, 99),
)
def test_sets_are_those_of_the_definition(make_case, lengths, layers, neurons, value, rule, block_bytes, rates, seed):  # type: ignore[no-untyped-def]
    """Both rules select exactly the neurons of equation 7, ties included, for any block size."""
    case = make_case(lengths, ["c"] * len(lengths), layers=layers, neurons=neurons, rates=rates, seed=seed)
    result = instruction_specific_neurons(case.archive, **{rule: float(value)}, block_bytes=block_bytes)
    for k, mask in enumerate(case.masks):
        expected = expected_set(mask, **{"epsilon": None, "threshold": None, rule: value})
        assert found_set(result, k) == expected
        assert result.sizes[k] == len(expected)
        assert result.layer_counts[k].tolist() == [sum(j == layer for j, _ in expected) for layer in range(layers)]
    assert result.tokens.tolist() == lengths


def test_ties_at_the_threshold_are_included() -> None:
    """Two are wanted of ten, three share the second rank: four belong."""
    counts = np.array([[9, 5, 5, 5, 1, 1, 0, 0, 0, 0]], dtype=np.uint32)
    assert Selection(epsilon=0.2).minimum_count(counts, 10, 9) == 5


def test_neurons_that_are_never_active_are_never_selected() -> None:
    """Where ε reaches past the active neurons, the count needed stays 1."""
    counts = np.array([[3, 1, 0, 0]], dtype=np.uint32)
    assert Selection(epsilon=1.0).minimum_count(counts, 4, 3) == 1
    assert Selection(epsilon=0.5).minimum_count(np.zeros((2, 8), np.uint32), 16, 3) == 1


@pytest.mark.parametrize(
    ("epsilon", "neurons", "wanted"),
    [(0.07, 100, 7), (0.29, 100, 29), (0.01, 352_256, 3523), (0.05, 46_080, 2304), (1e-9, 10, 1), (1.0, 10, 10)],
)
def test_epsilon_is_taken_as_written(epsilon: float, neurons: int, wanted: int) -> None:
    """⌈ε · N⌉ in decimal: binary rounding of ε adds or drops no neuron."""
    assert Selection(epsilon=epsilon).wanted(neurons) == wanted


@pytest.mark.parametrize(("threshold", "tokens", "count"), [(0.3, 10, 3), (0.29, 100, 29), (0.301, 10, 4), (1.0, 7, 7)])
def test_threshold_is_compared_exactly(threshold: float, tokens: int, count: int) -> None:
    """p ≥ P means c ≥ P · T in whole numbers: 3 of 10 tokens reach 0.3, 3 of 10 do not reach 0.301."""
    assert Selection(threshold=threshold).minimum_count(np.zeros((1, 8), np.uint32), 8, tokens) == count


@pytest.mark.parametrize("value", [0.0, -0.1, 1.0001, float("nan"), float("inf")])
@pytest.mark.parametrize("rule", ["epsilon", "threshold"])
def test_values_outside_the_range_are_refused(rule: str, value: float) -> None:
    """Both rules take a value above 0 and at most 1; the error names rule and value."""
    with pytest.raises(InvalidInputError, match=rf"{rule} must be above 0 and at most 1; it is {value}"):
        Selection(**{rule: value})


def test_exactly_one_rule(typical) -> None:  # type: ignore[no-untyped-def]
    """Two rules are refused; none means ε = 0.05."""
    with pytest.raises(InvalidInputError, match="found epsilon and threshold"):
        instruction_specific_neurons(typical.archive, epsilon=0.1, threshold=0.5)
    with pytest.raises(InvalidInputError, match="found none"):
        Selection()
    assert instruction_specific_neurons(typical.archive).selection == Selection(epsilon=0.05)


def test_only_complete_instructions_are_used(make_case) -> None:  # type: ignore[no-untyped-def]
    """Failed and pending instructions are in no set, though their chunks may be missing."""
    case = make_case((20, 5, 20, 6, 7), "abcab", failed=(0,), unfinished=(2,), chunk_tokens=2)
    result = instruction_specific_neurons(case.archive)
    assert list(result.ids) == ["i1", "i3", "i4"]
    assert list(result.categories) == ["b", "a", "b"]


def test_too_few_complete_instructions(make_case) -> None:  # type: ignore[no-untyped-def]
    """One complete instruction is no analysis: the error says how many there are in each state."""
    case = make_case((4, 5, 6), "aab", failed=(0,), unfinished=(2,))
    with pytest.raises(
        IncompleteArchiveError, match=r"at least 2 .* has 1 \(1 pending, 1 complete, 1 failed, 0 cancelled\)"
    ):
        instruction_specific_neurons(case.archive)


def test_the_least_count_is_one_of_the_set(make_case) -> None:  # type: ignore[no-untyped-def]
    """With a threshold between two counts, past the active neurons, of an empty set: no bound that none has."""
    case = make_case((30, 9, 7), "aab", rates=(0.5, 0.5, 0.0), layers=1, neurons=4)
    for options in ({"threshold": 0.1}, {"threshold": 0.3}, {"threshold": 0.5}, {"epsilon": 1.0}, {"epsilon": 0.1}):
        neurons = instruction_specific_neurons(case.archive, **options)
        rows = instruction_table(neurons, "t").rows
        for k, row in enumerate(rows):
            counts = case.masks[k].sum(axis=0)[neurons.mask(k)]
            expected = [None, None] if not len(counts) else [counts.min(), counts.min() / neurons.tokens[k]]
            assert row[4:] == expected
        assert rows[2][4:] == [None, None]
