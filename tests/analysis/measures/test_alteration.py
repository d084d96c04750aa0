"""Equations 15 and 16 and figure 6, against Python sets, loops and numpy's correlation."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparcom_analysis import instruction_experts, instruction_specific_neurons
from sparcom_analysis.ise import InstructionExperts
from sparcom_analysis.isn import InstructionNeurons, Selection
from sparcom_analysis.kernels.bitsets import PackedSets
from sparcom_analysis.archive.populations import Population
from sparcom_analysis.tuned.alteration import category_means, expert_alteration, neuron_alteration
from sparcom_analysis.tuned.venn import venn_by_layer
from sparcom_data.errors import InvalidInputError, UnsupportedArchiveError


def neurons_of(
    masks: NDArray[np.bool_], ids: list[str], categories: list[str], *, memory_bytes: int | None = None
) -> InstructionNeurons:
    """Sets given as bool (n, layer, expert, neuron), in memory or in a file."""
    count, layers, experts, width = masks.shape
    packed = np.packbits(masks, axis=3, bitorder="little").reshape(count, -1)
    words = np.zeros((count, -(-packed.shape[1] // 8)), dtype=np.uint64)
    words.view(np.uint8)[:, : packed.shape[1]] = packed
    sets = PackedSets(*words.shape, memory_bytes=memory_bytes)
    for k, row in enumerate(words):
        sets[k] = row
    component = "neuron" if experts == 1 else "expert_neuron"
    return InstructionNeurons(
        selection=Selection(threshold=0.5),
        rows="prompt",
        population=Population(component, list(range(layers)), experts, 1, width),
        instruction=np.arange(count),
        ids=ids,
        categories=categories,
        tokens=np.ones(count, dtype=np.int64),
        minimum_count=np.ones(count, dtype=np.int64),
        sets=sets,
        layer_counts=masks.sum(axis=(2, 3)),
        without_rows=0,
    )


def elements(mask: NDArray[np.bool_]) -> set[tuple[int, ...]]:
    return {tuple(place) for place in np.argwhere(mask).tolist()}


def alteration_of(left: set[tuple[int, ...]], right: set[tuple[int, ...]]) -> float:
    return 1 - len(left & right) / len(left | right) if left | right else math.nan


def mean_of(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 12),
    layers=st.integers(1, 3),
    experts=st.sampled_from([1, 3]),
    width=st.integers(1, 40),
    rate=st.sampled_from([0.0, 0.02, 0.4]),
    memory_bytes=st.sampled_from([0, None]),
    seed=st.integers(0, 999),
)
def test_alteration_equals_python_sets(
    count: int, layers: int, experts: int, width: int, rate: float, memory_bytes: int | None, seed: int
) -> None:
    """Of each instruction and layer, and their means by category, whatever the order and wherever the sets lie."""
    rng = np.random.default_rng(seed)
    masks = [rng.random((count + 1, layers, experts, width)) < rate for _ in "ab"]
    names, kinds = [f"i{k}" for k in range(count)], [rng.choice(["a", "", "b"]).item() for _ in range(count)]
    order = rng.permutation(count + 1).tolist()
    base = neurons_of(masks[0], [*names, "here"], [*kinds, "c"], memory_bytes=memory_bytes)
    ids = [[*names, "there"][k] for k in order]
    tuned = neurons_of(masks[1][order], ids, ["z"] * (count + 1), memory_bytes=memory_bytes)
    found = neuron_alteration(base, tuned)
    assert found.twins.ids == names
    assert (found.twins.only_base, found.twins.only_tuned) == (1, 1)
    expected = []
    for k in range(count):
        left, right = elements(masks[0][k]), elements(masks[1][k])
        expected.append(alteration_of(left, right))
        assert found.base_counts[k].sum() == len(left)
        assert found.tuned_counts[k].sum() == len(right)
        layer = [alteration_of(elements(masks[0][k, j]), elements(masks[1][k, j])) for j in range(layers)]
        np.testing.assert_allclose(found.layer_alteration[k], layer, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.alteration, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.overlap, 1 - np.array(expected), rtol=0, atol=1e-12)
    means = found.by_category(found.alteration)
    assert means.categories == [name or "(none)" for name in dict.fromkeys(kinds)]
    for c, name in enumerate(dict.fromkeys(kinds)):
        own = [expected[k] for k in range(count) if kinds[k] == name]
        np.testing.assert_allclose(means.mean[c], mean_of(own), rtol=0, atol=1e-12)
        assert means.undefined[c] == sum(map(math.isnan, own))
        assert means.counted[c] == len(own) - means.undefined[c]
    np.testing.assert_allclose(means.overall, mean_of(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("block_bytes", [1, 50, 1 << 20])
def test_of_two_archives(make_moe, tmp_path: Path, block_bytes: int) -> None:  # type: ignore[no-untyped-def]
    """From masks on disk, of every component, for any block size, to the sets of both models."""
    base, tuned = make_moe(failed=(1,)).archive, make_moe(failed=(5,), seed=1).archive
    for component in ("neuron", "expert_neuron", "shared_expert_neuron"):
        sides = [
            instruction_specific_neurons(
                archive, epsilon=0.2, component=component, block_bytes=block_bytes, scratch=tmp_path
            )
            for archive in (base, tuned)
        ]
        found = neuron_alteration(*sides)
        assert len(found.twins) == 8
        for k, (i, j) in enumerate(zip(found.twins.base, found.twins.tuned, strict=True)):
            expected = alteration_of(elements(sides[0].mask(i)), elements(sides[1].mask(j)))
            assert found.alteration[k] == pytest.approx(expected, abs=1e-12)
        assert 0 < found.alteration.min() <= found.alteration.max() < 1


def test_a_model_against_itself_is_not_altered(make_moe) -> None:  # type: ignore[no-untyped-def]
    """The same archive twice: every overlap and correlation is exactly 1, and two empty sets have neither."""
    archive = make_moe().archive
    neurons, experts = instruction_specific_neurons(archive), instruction_experts(archive)
    assert not neuron_alteration(neurons, neurons).alteration.any()
    assert not expert_alteration(experts, experts).alteration.any()
    nothing = neurons_of(np.zeros((2, 2, 1, 9), dtype=np.bool_), ["a", "b"], ["x", "x"])
    empty = neuron_alteration(nothing, nothing)
    assert np.isnan(empty.alteration).all()
    assert empty.by_category(empty.alteration).undefined.tolist() == [2]


def experts_of(counts: NDArray[np.uint32], categories: list[str]) -> InstructionExperts:
    """Counts (n, layer, expert) as a result."""
    return InstructionExperts(
        rows="prompt",
        instruction=np.arange(len(counts)),
        ids=[f"i{k}" for k in range(len(counts))],
        categories=categories,
        tokens=counts.sum(axis=2).max(axis=1).astype(np.int64),
        counts=counts,
        layer_ids=list(range(counts.shape[1])),
        choices=1,
        without_rows=0,
    )


@settings(deadline=None, max_examples=40)
@given(count=st.integers(1, 10), layers=st.integers(1, 3), experts=st.integers(2, 6), seed=st.integers(0, 999))
def test_experts_equal_numpy(count: int, layers: int, experts: int, seed: int) -> None:
    """1 − r is that of numpy.corrcoef of the frequencies, means are over what has a value, the rest is counted."""
    rng = np.random.default_rng(seed)
    sides = []
    for _ in "ab":
        tokens = rng.integers(1, 7, size=count)
        chosen = [rng.multinomial(t, np.full(experts, 1 / experts), size=layers) for t in tokens]
        sides.append(experts_of(np.array(chosen, dtype=np.uint32), [str(k % 2) for k in range(count)]))
    found = expert_alteration(*sides)
    expected = []
    for k in range(count):
        pair = [side.frequencies(k).ravel() for side in sides]
        flat = any(int(side.counts[k].min()) == int(side.counts[k].max()) for side in sides)
        expected.append(math.nan if flat else 1 - float(np.corrcoef(*pair)[0, 1]))
    np.testing.assert_allclose(found.alteration, expected, rtol=0, atol=1e-12)
    means = found.by_category(found.alteration)
    for c, name in enumerate(means.categories):
        own = [expected[k] for k in range(count) if str(k % 2) == name]
        np.testing.assert_allclose(means.mean[c], mean_of(own), rtol=0, atol=1e-12)
        assert means.undefined[c] == sum(map(math.isnan, own))
    np.testing.assert_allclose(means.overall, mean_of(expected), rtol=0, atol=1e-12)


def test_experts_of_two_archives(make_moe) -> None:  # type: ignore[no-untyped-def]
    """Matched by id: the correlation is that of the same instruction in both archives, from masks or from counts."""
    base, tuned = make_moe(failed=(1,)).archive, make_moe(failed=(5,), seed=1, granularity="count").archive
    left, right = instruction_experts(base), instruction_experts(tuned)
    found = expert_alteration(left, right)
    for k, name in enumerate(found.twins.ids):
        pair = [side.frequencies(list(side.ids).index(name)).ravel() for side in (left, right)]
        assert found.correlation[k] == pytest.approx(float(np.corrcoef(*pair)[0, 1]), abs=1e-12)


def test_long_instructions_are_exact_or_refused() -> None:
    """Ten million tokens are computed exactly; where sums could not be, it is refused and says so."""
    million = np.array([[[10_000_000, 9_999_999, 1]], [[9_999_999, 10_000_000, 3]]], dtype=np.uint32)
    one, two = (million[k].ravel().astype(object) * 3 - int(million[k].sum()) for k in (0, 1))
    expected = float((one * two).sum()) / (float((one * one).sum()) ** 0.5 * float((two * two).sum()) ** 0.5)
    side = experts_of(million[:1], ["a"])
    assert expert_alteration(side, experts_of(million[1:], ["a"])).correlation[0] == pytest.approx(expected, abs=1e-15)
    with pytest.raises(UnsupportedArchiveError, match="an instruction has 4000000000 tokens"):
        expert_alteration(side, replace(side, tokens=np.array([4_000_000_000])))


def test_means_of_nothing_are_no_number() -> None:
    """A category in which no instruction has a value has no mean, beside others that have, along every further axis."""
    values = np.array([[1.0, np.nan], [np.nan, np.nan], [3.0, 5.0]])
    means = category_means(values, ["a", "b", "a"])
    np.testing.assert_array_equal(means.mean, [[2.0, 5.0], [np.nan, np.nan]])
    np.testing.assert_array_equal(means.overall, [2.0, 5.0])
    assert means.counted.tolist() == [[2, 1], [0, 0]]
    assert means.undefined.tolist() == [[0, 1], [1, 1]]


def random_pair(count: int, seed: int, rate: float = 0.3) -> list[InstructionNeurons]:
    """Two models' sets of the same instructions of three categories."""
    rng = np.random.default_rng(seed)
    names, kinds = [f"i{k}" for k in range(count)], [("a", "", "b")[k % 3] for k in range(count)]
    return [neurons_of(rng.random((count, 3, 1, 30)) < rate, names, kinds) for _ in "ab"]


@settings(deadline=None, max_examples=25)
@given(count=st.integers(1, 14), seed=st.integers(0, 999), rate=st.sampled_from([0.01, 0.3]))
def test_venn_equals_python_sets(count: int, seed: int, rate: float) -> None:
    """By layer only base, both, only tuned; by default of each category one that none is nearer its median than."""
    base, tuned = random_pair(count, seed, rate)
    altered = neuron_alteration(base, tuned)
    for k, shown in enumerate(venn_by_layer(altered, base.ids)):
        assert (shown.id, shown.category) == (f"i{k}", ("a", "(none)", "b")[k % 3])
        for layer in range(3):
            left, right = (elements(side.mask(k)[layer]) for side in (base, tuned))
            found = (shown.only_base[layer], shown.both[layer], shown.only_tuned[layer])
            assert found == (len(left - right), len(left & right), len(right - left))
    values = altered.alteration.tolist()
    expected = []
    for name in dict.fromkeys(base.categories):
        own = [k for k in range(count) if base.categories[k] == name and not math.isnan(values[k])]
        if own:
            middle = float(np.median([values[k] for k in own]))
            expected.append(min(own, key=lambda k: (abs(values[k] - middle), k)))
    assert [shown.id for shown in venn_by_layer(altered)] == [f"i{k}" for k in expected]


def test_instructions_to_show_must_be_in_both() -> None:
    """Every id that is not is said, none is left out in silence."""
    altered = neuron_alteration(*random_pair(3, 0))
    with pytest.raises(InvalidInputError) as caught:
        venn_by_layer(altered, ["i1", "nowhere", "i7"])
    assert len(caught.value.problems) == 2
    assert "'nowhere' is none of the 3" in str(caught.value)
