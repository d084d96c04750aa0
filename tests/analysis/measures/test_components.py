"""General and unique components, against Python sets, fractions and loops."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparcom_analysis import instruction_experts, instruction_specific_neurons
from sparcom_analysis.components.experts import expert_components, specific_experts
from sparcom_analysis.measures.general_unique.groups import (
    ONE_CATEGORY,
    Components,
    find_components,
    needed_instructions,
    neuron_components,
)
from sparcom_analysis.measures.general_unique.members import neuron_memberships
from sparcom_analysis.ise import InstructionExperts
from sparcom_analysis.isn import InstructionNeurons, Selection
from sparcom_analysis.kernels.bitsets import PackedSets
from sparcom_analysis.archive.populations import Population
from sparcom_data.errors import InvalidInputError

SHARES = st.sampled_from([0.5, 1.0, 0.01, 0.3, 0.35, 2 / 3, 0.7])


def neurons_from(masks: NDArray[np.bool_], categories: list[str], *, memory_bytes: int | None = None):  # type: ignore[no-untyped-def]
    """ISN sets given as bool (n, layer, expert, neuron); a routed component where there are several experts."""
    n, layers, experts, width = masks.shape
    packed = np.packbits(masks, axis=3, bitorder="little").reshape(n, -1)
    sets = PackedSets(n, -(-packed.shape[1] // 8), memory_bytes=memory_bytes)
    for k, row in enumerate(packed):
        words = np.zeros(sets.shape[1], dtype=np.uint64)
        words.view(np.uint8)[: len(row)] = row
        sets[k] = words
    return InstructionNeurons(
        selection=Selection(threshold=0.5),
        rows="prompt",
        population=Population("expert_neuron" if experts > 1 else "neuron", [*range(3, 3 + layers)], experts, 1, width),
        instruction=np.arange(n),
        ids=[f"i{k}" for k in range(n)],
        categories=categories,
        tokens=np.ones(n, dtype=np.int64),
        minimum_count=np.ones(n, dtype=np.int64),
        sets=sets,
        layer_counts=masks.sum(axis=(2, 3)),
        without_rows=0,
    )


def experts_from(counts: NDArray[np.uint32], categories: list[str]) -> InstructionExperts:
    """Choices given as uint32 (n, layer, expert)."""
    n = len(counts)
    return InstructionExperts(
        rows="prompt",
        instruction=np.arange(n),
        ids=[f"i{k}" for k in range(n)],
        categories=categories,
        tokens=np.full(n, 9),
        counts=counts,
        layer_ids=[*range(3, 3 + counts.shape[1])],
        choices=2,
        without_rows=0,
    )


Flat = set[tuple[int, int]]


def check(found: Components, members: list[Flat], categories: list[str], share: float) -> None:
    """Everything that `found` says is what Python sets of (layer, flat id) of each instruction say."""
    order = list(dict.fromkeys(categories))
    assert list(found.categories) == [name or "(none)" for name in order]
    own: list[Flat] = []
    for code, name in enumerate(order):
        mine = [members[k] for k, category in enumerate(categories) if category == name]
        every = set().union(*mine)
        own.append({x for x in every if Fraction(sum(x in m for m in mine), len(mine)) >= Fraction(repr(share))})
        assert found.instructions[code] == len(mine)
    times = {x: sum(x in one for one in own) for x in set().union(*own)}
    several = len(order) > 1
    general = {x for x, count in times.items() if several and count == len(order)}
    shared = {x for x, count in times.items() if several and 2 <= count < len(order)}
    unique = [{x for x in one if several and times[x] == 1} for one in own]
    assert found.reason == ("" if several else ONE_CATEGORY)
    assert flat(found, "general") == general
    assert flat(found, "shared") == shared
    for code in range(len(order)):
        assert flat(found, "belonging", code) == own[code]
        assert flat(found, "unique", code) == unique[code]


def flat(found: Components, kind, category: int = 0) -> Flat:  # type: ignore[no-untyped-def]
    """The ids as (layer, flat id), which mask and counts agree with."""
    ids = found.ids(kind, category)
    assert [len(layer) for layer in ids] == found.counts(kind, category).tolist()
    assert found.by_category(kind)[category].tolist() == found.counts(kind, category).tolist()
    mask = found.mask(kind, category)
    flattened = mask.reshape(len(mask), -1)
    for layer, some in enumerate(ids):
        assert some.dtype == np.int64
        assert some.tolist() == np.flatnonzero(flattened[layer]).tolist()
    return {(layer, int(x)) for layer, some in enumerate(ids) for x in some}


@settings(deadline=None, max_examples=60)
@given(
    categories=st.lists(st.sampled_from(["CLS", "", "GEN", "QA"]), min_size=1, max_size=40),
    layers=st.integers(1, 3),
    experts=st.integers(1, 3),
    width=st.integers(1, 19),
    rate=st.sampled_from([0.02, 0.4, 0.7, 0.97]),
    share=SHARES,
    seed=st.integers(0, 999),
    in_file=st.booleans(),
)
def test_neurons_equal_python_sets(categories, layers, experts, width, rate, share, seed, in_file):  # type: ignore[no-untyped-def]
    """Whatever sets, categories, share and place: belonging, general, unique and shared are what loops find."""
    masks = np.random.default_rng(seed).random((len(categories), layers, experts, width)) < rate
    neurons = neurons_from(masks, categories, memory_bytes=0 if in_file else None)
    found = neuron_components(neurons, share)
    members = [{(j, e * width + i) for j, e, i in zip(*map(list, np.nonzero(mask)), strict=True)} for mask in masks]
    check(found, members, categories, share)


@settings(deadline=None, max_examples=60)
@given(
    categories=st.lists(st.sampled_from(["CLS", "", "GEN"]), min_size=1, max_size=20),
    layers=st.integers(1, 3),
    experts=st.integers(1, 19),
    largest=st.integers(0, 6),
    share=SHARES,
    top=st.integers(1, 7),
    seed=st.integers(0, 999),
)
def test_experts_equal_python_sets(categories, layers, experts, largest, share, top, seed):  # type: ignore[no-untyped-def]
    """An ISE is chosen at least once and by fewer than k experts of its layer beaten; the rest is as for neurons."""
    shape = (len(categories), layers, experts)
    counts = np.random.default_rng(seed).integers(0, largest + 1, size=shape, dtype=np.uint32)
    members = [
        {
            (j, e)
            for j in range(layers)
            for e in range(experts)
            if one[j, e] and sum(other > one[j, e] for other in one[j].tolist()) < top
        }
        for one in counts
    ]
    check(expert_components(experts_from(counts, categories), share, top), members, categories, share)


@settings(deadline=None, max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(granularity=st.sampled_from(["token", "count"]), block_bytes=st.integers(1, 400), seed=st.integers(0, 99))
def test_archives_of_experts_from_end_to_end(make_moe, granularity, block_bytes, seed):  # type: ignore[no-untyped-def]
    """From an archive, masks or counts, whatever the block: of each component and of the experts."""
    case = make_moe(categories=("b", "a", ""), granularity=granularity, seed=seed, failed=(2,))
    for component in ("expert_neuron", "neuron", "shared_expert_neuron"):
        neurons = instruction_specific_neurons(case.archive, epsilon=0.2, component=component, block_bytes=block_bytes)
        masks = [neurons.mask(k).reshape(neurons.population.layers, -1) for k in range(len(neurons))]
        members = [{(j, i) for j, i in zip(*map(list, np.nonzero(mask)), strict=True)} for mask in masks]
        check(neuron_components(neurons), members, list(neurons.categories), 0.5)
    experts = instruction_experts(case.archive, block_bytes=block_bytes)
    chosen = [specific_experts(one) for one in experts.counts]
    members = [{(j, i) for j, i in zip(*map(list, np.nonzero(one)), strict=True)} for one in chosen]
    check(expert_components(experts), members, list(experts.categories), 0.5)


def test_the_share_is_the_decimal_that_was_written() -> None:
    """Of ten instructions 0.7 needs 7 and 0.3 needs 3, of 100 0.07 needs 7, where floats would round up to one more."""
    assert math.ceil(0.07 * 100) == 8
    assert needed_instructions(0.07, np.array([100, 1, 15])).tolist() == [7, 1, 2]
    assert needed_instructions(0.5, np.array([1, 2, 3, 4, 5])).tolist() == [1, 1, 2, 2, 3]
    assert needed_instructions(1, np.array([3, 7])).tolist() == [3, 7]


@pytest.mark.parametrize("share", [0, -0.1, 1.01, math.nan])
def test_other_shares_are_refused(share: float) -> None:
    """A share of nothing, or of more than all, is an error that says the rule and the value."""
    with pytest.raises(InvalidInputError, match=r"above 0 and at most 1; it is .*Choose 0\.5"):
        neuron_components(neurons_from(np.ones((2, 1, 1, 3), dtype=bool), ["a", "b"]), share)
    with pytest.raises(InvalidInputError, match="top is 0"):
        specific_experts(np.ones((1, 3), dtype=np.uint32), 0)


def test_blocks_and_cores_change_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Sets counted one at a time or all at once, on one core or many, in memory or in a file: the same bits."""
    masks = np.random.default_rng(5).random((300, 2, 1, 500)) < 0.5
    categories = [str(k % 3) for k in range(300)]
    expected = neuron_components(neurons_from(masks, categories))
    for block in (1, 10_000):
        for cores in (1, 2, 16):
            monkeypatch.setattr("sparcom_analysis.measures.general_unique.members.BLOCK_BYTES", block)
            monkeypatch.setattr("sparcom_analysis.kernels.compiled.cores", lambda cores=cores: cores)
            found = neuron_components(neurons_from(masks, categories, memory_bytes=0), scratch=tmp_path)
            np.testing.assert_array_equal(found.everywhere, expected.everywhere)
            np.testing.assert_array_equal(found.sets.rows(0, 3), expected.sets.rows(0, 3))
    assert expected.counts("general").sum() > 0


def test_ties_at_the_last_rank_all_belong() -> None:
    """With two ranks, counts 5 3 3 1 0 select three experts; where two were ever chosen, five ranks select two."""
    counts = np.array([[5, 3, 3, 1, 0], [0, 0, 4, 0, 1]], dtype=np.uint32)
    assert specific_experts(counts, 2).tolist() == [[1, 1, 1, 0, 0], [0, 0, 1, 0, 1]]
    assert specific_experts(counts, 5).tolist() == [[1, 1, 1, 1, 0], [0, 0, 1, 0, 1]]


def test_an_expert_axis_is_for_routed_experts_alone() -> None:
    """Components of a layer that came with several experts are refused: their ids would name too few of them."""
    members = replace(
        neuron_memberships(neurons_from(np.ones((2, 1, 2, 3), dtype=bool), ["a", "b"])), component="neuron"
    )
    with pytest.raises(ValueError, match="two numbers; neuron has 2"):
        find_components(members)
