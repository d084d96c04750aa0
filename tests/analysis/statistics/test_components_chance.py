"""General and unique components by chance, against shuffles written out with loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparcom_analysis.components.chance import ComponentChance, component_chance, holm
from sparcom_analysis.measures.general_unique.groups import Components, find_components
from sparcom_analysis.measures.general_unique.members import ComponentKind, Memberships
from sparcom_analysis.kernels.bitsets import PackedSets
from sparcom_data.errors import InvalidInputError


def memberships(masks: NDArray[np.bool_], categories: list[str]) -> Memberships:
    """Components of each instruction given as bool (n, layer, id)."""
    n, layers, width = masks.shape
    packed = np.packbits(masks, axis=2, bitorder="little").reshape(n, -1)
    sets = PackedSets(n, -(-packed.shape[1] // 8))
    for k, row in enumerate(packed):
        words = np.zeros(sets.shape[1], dtype=np.uint64)
        words.view(np.uint8)[: len(row)] = row
        sets[k] = words
    component: ComponentKind = "neuron"
    return Memberships(component, categories, list(range(layers)), 1, width, sets)


def assert_direct(masks: NDArray[np.bool_], found: Components, chance: ComponentChance | None) -> None:
    """The same shuffles, components counted one by one."""
    assert chance is not None
    generator = np.random.Generator(np.random.PCG64(chance.seed))
    general, shared, unique = [], [], []
    for _ in range(chance.shuffles):
        order = generator.permutation(len(masks)).tolist()
        times = np.zeros(masks.shape[1:], dtype=int)
        own = []
        for size, needed in zip(found.instructions.tolist(), found.needed.tolist(), strict=True):
            mine, order = order[:size], order[size:]
            own.append(sum(masks[k].astype(int) for k in mine) >= needed)
            times += own[-1]
        general.append((times == len(own)).sum())
        shared.append(((times > 1) & (times < len(own))).sum())
        unique.append([(one & (times == 1)).sum() for one in own])
    assert chance.general == pytest.approx(np.mean(general), abs=1e-12)
    assert chance.shared == pytest.approx(np.mean(shared), abs=1e-12)
    np.testing.assert_allclose(chance.unique, np.mean(unique, axis=0), rtol=0, atol=1e-12)
    reached = [
        sum(one[code] >= found.counts("unique", code).sum() for one in unique) for code in range(len(found.categories))
    ]
    expected = holm((1 + np.array(reached)) / (1 + chance.shuffles))
    np.testing.assert_allclose(chance.p, expected, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=25)
@given(
    categories=st.permutations(["a", "a", "b", "b", "b", "", "", "a", "a"]),
    layers=st.integers(1, 3),
    width=st.integers(1, 19),
    rate=st.sampled_from([0.05, 0.5, 0.9]),
    share=st.sampled_from([0.5, 1.0, 0.2]),
    seed=st.integers(0, 99),
)
def test_chance_equals_loops(categories, layers, width, rate, share, seed):  # type: ignore[no-untyped-def]
    """Whatever components and categories: means and p are those of the same shuffles made plainly."""
    masks = np.random.default_rng(seed).random((9, layers, width)) < rate
    members = memberships(masks, categories)
    found = find_components(members, share)
    assert_direct(masks, found, component_chance(members, found, shuffles=20, seed=seed))


def test_what_cannot_come_to_a_threshold_changes_nothing() -> None:
    """With small and large categories, most components in few instructions: none that a shuffle counts is left out."""
    rng = np.random.default_rng(4)
    masks = rng.random((310, 2, 60)) < rng.choice([0.02, 0.1, 0.4, 0.6], size=(2, 60))
    members = memberships(masks, ["a"] * 150 + ["b"] * 10 + ["c"] * 150)
    found = find_components(members)
    chance = component_chance(members, found, shuffles=60)
    assert_direct(masks, found, chance)
    assert chance is not None
    assert chance.unique[1] > 0


def test_components_of_a_category_are_told_from_chance() -> None:
    """Twenty components that one category alone has are beyond chance; those of the others, at random, are not."""
    rng = np.random.default_rng(0)
    categories = ["a", "b", "c"] * 20
    masks = rng.random((60, 2, 50)) < 0.3
    masks[0::3, 0, :20] |= rng.random((20, 20)) < 0.9
    members = memberships(masks, categories)
    chance = component_chance(members, find_components(members), shuffles=200)
    assert chance is not None
    assert chance.p[0] == pytest.approx(3 / 201)
    assert (chance.p[1:] > 0.05).all()
    again = component_chance(members, find_components(members), shuffles=200)
    assert again is not None
    assert again.unique.tobytes() == chance.unique.tobytes()


def test_holm_by_hand() -> None:
    """The smallest of three times 3, the next times 2, none below a smaller one's, none above 1."""
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, 0.03])), [0.06, 0.03, 0.06], rtol=0, atol=1e-12)
    np.testing.assert_allclose(holm(np.array([0.5, 0.9, 0.6])), [1.0, 1.0, 1.0], rtol=0, atol=1e-12)


def test_one_category_has_no_chance_and_no_shuffle_is_an_error() -> None:
    """Nothing is unique there, so there is nothing to compare; zero shuffles are refused."""
    members = memberships(np.ones((3, 1, 4), dtype=bool), ["a"] * 3)
    assert component_chance(members, find_components(members)) is None
    with pytest.raises(InvalidInputError, match="at least 1 shuffle; shuffles is 0"):
        component_chance(members, find_components(members), shuffles=0)
