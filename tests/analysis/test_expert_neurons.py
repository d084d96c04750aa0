"""Equations 8 and 9 and the measures of every population, checked with sums over the written data."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparcom_analysis import (
    activation_counts,
    activation_frequencies,
    find_isns,
)
from sparcom_analysis.archive.populations import populations
from sparcom_data.archive import open_archive
from sparcom_data.errors import DamagedArchiveError, InvalidInputError, UnsupportedArchiveError
from sparcom_data.storage import DurableStore

POPULATIONS = ("expert_neuron", "neuron", "shared_expert_neuron")


def true_counts(case, index: int, population: str) -> NDArray[np.int64]:  # type: ignore[no-untyped-def]
    """Return the sum over the instruction's tokens by the equations: (layer, neuron) or (layer, expert, neuron)."""
    rows, truth = case.rows(index), case.truth
    if population == "neuron":
        return truth.masks[rows].sum(axis=0)  # type: ignore[no-any-return]
    if population == "shared_expert_neuron":
        return truth.shared_active[rows].sum(axis=0)  # type: ignore[no-any-return]
    expert, active = truth.expert[rows], truth.expert_active[rows]
    counts = np.zeros((active.shape[1], case.archive.moe.experts, active.shape[3]), dtype=np.int64)
    for t, j, c in np.ndindex(expert.shape):
        counts[j, expert[t, j, c]] += active[t, j, c]
    return counts


@pytest.mark.parametrize("population", POPULATIONS)
def test_frequencies_divide_by_all_tokens(make_moe, population: str) -> None:  # type: ignore[no-untyped-def]
    """p is the sum over tokens divided by the number of all tokens, even if few are routed to the expert."""
    case = make_moe(failed=(3,))
    for index in case.complete:
        expected, tokens = true_counts(case, index, population), case.rows(index).stop - case.rows(index).start
        assert (activation_counts(case.archive, index, population=population) == expected).all()
        found = activation_frequencies(case.archive, index, population=population)
        np.testing.assert_allclose(found, expected / tokens, rtol=0, atol=1e-12)
    assert activation_counts(case.archive, 0).shape == (2, 6, 12)


@settings(deadline=None, max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    experts=st.integers(1, 7),
    expert_neurons=st.integers(1, 20),
    shared=st.sampled_from([0, 5, 16]),
    dense=st.integers(0, 2),
    chunk=st.integers(1, 40),
    block_bytes=st.integers(1, 4000),
    rule=st.sampled_from([{"top": 0.05}, {"top": 0.3}, {"min_frequency": 0.4}, {"min_frequency": 1.0}]),
    granularity=st.sampled_from(["token", "count"]),
    data=st.data(),
)
def test_sets_are_those_of_the_definition(
    make_moe, experts, expert_neurons, shared, dense, chunk, block_bytes, rule, granularity, data
):  # type: ignore[no-untyped-def]
    """Each population's sets match the definition for any shape, chunks, blocks and failures, from masks or counts."""
    case = make_moe(
        experts=experts,
        choices=data.draw(st.integers(1, experts)),
        expert_neurons=expert_neurons,
        shared_neurons=shared,
        dense_layers=dense,
        per_category=3,
        chunk_tokens=chunk,
        failed=data.draw(st.sets(st.integers(0, 5), max_size=3)),
        seed=data.draw(st.integers(0, 9)),
        granularity=granularity,
    )
    assert [item.name for item in populations(case.archive)] == [
        name for name in POPULATIONS if (name != "neuron" or dense) and (name != "shared_expert_neuron" or shared)
    ]
    for item in populations(case.archive):
        result = find_isns(case.archive, population=item.name, block_bytes=block_bytes, **rule)
        assert result.instruction.tolist() == case.complete
        for k, index in enumerate(case.complete):
            expected = selected(true_counts(case, index, item.name), int(result.tokens[k]), **rule)
            assert (result.mask(k) == expected).all()
            assert result.layer_counts[k].tolist() == expected.reshape(len(expected), -1).sum(axis=1).tolist()


@pytest.mark.parametrize("top", [0.1, 0.3])
def test_epsilon_is_a_fraction_of_all_neurons(make_moe, top: float) -> None:  # type: ignore[no-untyped-def]
    """Equation 9 ranks over layers, experts and neurons together: N is their product."""
    case = make_moe()
    result = find_isns(case.archive, top=top)
    assert result.population.total == 2 * 6 * 12
    for k, index in enumerate(case.complete):
        expected = selected(true_counts(case, index, "expert_neuron"), int(result.tokens[k]), top=top)
        assert (result.mask(k) == expected).all()


def selected(
    counts: NDArray[np.int64], tokens: int, top: float | None = None, min_frequency: float | None = None
) -> NDArray[np.bool_]:
    """Return the ISNs of exact counts: those with p ≥ P, or the most frequent fraction ε, ties included."""
    if min_frequency is not None:
        return (counts > 0) & (counts >= Fraction(str(min_frequency)) * tokens)
    ranked = np.sort(counts, axis=None)[::-1]
    wanted = -(-Fraction(str(top)) * counts.size // 1)
    return (counts > 0) & (counts >= ranked[int(wanted) - 1])


def test_similarity_and_layers_of_experts_equal_those_of_python_sets(make_moe) -> None:  # type: ignore[no-untyped-def]
    """Equation 10 and figure 5 over (expert, neuron, layer) are plain means over sets of triples."""
    case = make_moe(per_category=4)
    neurons = find_isns(case.archive, top=0.2)
    sets = [set(zip(*map(np.ndarray.tolist, np.nonzero(neurons.mask(k))), strict=True)) for k in range(8)]
    matrix = neurons.pairs.means()[0]
    for a, b in np.ndindex(2, 2):
        pairs = [len(x & y) / len(x | y) for x in sets[4 * a : 4 * a + 4] for y in sets[4 * b : 4 * b + 4]]
        assert matrix[a, b] == pytest.approx(np.mean(pairs), abs=1e-12)
    by_layer = neurons.by_layer()
    assert by_layer.layer.values.tolist() == [1, 2]
    assert by_layer.values.tolist() == [[sum(layer == j for layer, _, _ in one) for j in range(2)] for one in sets]


def test_sets_in_a_file_are_those_in_memory(make_moe, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Large sets are in an unnamed file; no number changes, and nothing is left in the folder."""
    case = make_moe(per_category=9)
    (folder := tmp_path / "scratch").mkdir()
    expected = find_isns(case.archive)
    monkeypatch.setattr("sparcom_analysis.kernels.bitsets.MEMORY_BYTES", 0)
    found = find_isns(case.archive, scratch=folder)
    assert list(folder.iterdir()) == []
    assert all((found.mask(k) == expected.mask(k)).all() for k in range(len(expected)))
    np.testing.assert_array_equal(found.pairs.values, expected.pairs.values)


@pytest.mark.parametrize(
    ("value", "said"), [(65_535, r"holds no data \(65535\)"), (6, "is 6"), (None, "a repeated expert")]
)
def test_invalid_experts_are_damage(make_moe, damage, value: int | None, said: str) -> None:  # type: ignore[no-untyped-def]
    """Missing, invalid or repeated experts raise an error that names the instruction."""
    case = make_moe()
    row = case.rows(4).start + 1
    wrong = int(case.truth.expert[row, 1, 0]) if value is None else value
    archive = damage(case.archive, "router/expert", (row, 1, 1), wrong)
    with pytest.raises(DamagedArchiveError, match=rf"entry 1 at row {row}, layer 2, of instruction 'i004' .* {said}"):
        find_isns(archive)
    find_isns(archive, population="neuron")


def test_rows_of_failed_instructions_may_hold_no_data(make_moe, damage) -> None:  # type: ignore[no-untyped-def]
    """Experts are checked only in rows of complete instructions."""
    case = make_moe(failed=(4,))
    expected = find_isns(case.archive)
    found = find_isns(damage(case.archive, "router/expert", case.rows(4), 65_535))
    assert (found.sets.rows(0, 9) == expected.sets.rows(0, 9)).all()


@pytest.mark.parametrize("population", ["expert_neuron", "shared_expert_neuron"])
def test_set_spare_bits_are_damage(make_moe, damage, population: str) -> None:  # type: ignore[no-untyped-def]
    """Bits past the last neuron of an expert would change ranks, so they are refused."""
    case = make_moe()
    place = (0, 1, 1, 1) if population == "expert_neuron" else (0, 1, 2)
    last = 11 if population == "expert_neuron" else 19
    archive = damage(case.archive, f"{population}/active", place, 0b1000_0000)
    with pytest.raises(DamagedArchiveError, match=f"bits past neuron {last} of {population}/active"):
        find_isns(archive, population=population)


def test_counts_past_the_rows_are_damage(make_moe, damage) -> None:  # type: ignore[no-untyped-def]
    """An expert's neuron cannot be active at more tokens than there are."""
    archive = damage(make_moe(granularity="count").archive, "expert_neuron/count", (2, 1, 3, 4), 99)
    with pytest.raises(DamagedArchiveError, match=r"one of 'i002' .* is 99"):
        find_isns(archive)


def test_missing_populations_are_refused(make_moe, typical) -> None:  # type: ignore[no-untyped-def]
    """The error lists the archive's populations; an unknown name is invalid input."""
    with pytest.raises(UnsupportedArchiveError, match=r"population 'expert_neuron' .* Choose 'neuron'"):
        find_isns(typical.archive, population="expert_neuron")
    with pytest.raises(UnsupportedArchiveError, match="Choose 'expert_neuron' or 'neuron'"):
        activation_counts(make_moe(shared_neurons=0).archive, 0, population="shared_expert_neuron")
    with pytest.raises(InvalidInputError, match=r"population must be one of .*; it is 'router'"):
        activation_counts(typical.archive, 0, population="router")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_arrays_that_contradict_the_attributes_are_damage(make_moe) -> None:  # type: ignore[no-untyped-def]
    """Fewer experts per token than in the array are damage, found before counting."""
    case = make_moe()
    root = zarr.open_group(DurableStore(case.archive.path), mode="r+", use_consolidated=False)
    section = dict(root.attrs["sparcom"])  # type: ignore[arg-type]
    section["model"]["moe"]["experts_per_token"] = 1
    root.attrs["sparcom"] = section
    zarr.consolidate_metadata(DurableStore(case.archive.path))
    with pytest.raises(
        DamagedArchiveError, match=r"expert_neuron/active must have shape \(\d+, 2, 1, 2\) .* \(\d+, 2, 2, 2\)"
    ):
        find_isns(open_archive(case.archive.path))
