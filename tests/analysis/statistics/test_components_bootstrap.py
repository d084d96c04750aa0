"""Intervals of general and unique components, against draws written out with Python sets and loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom, hypergeom

from sparcom_analysis.components.bootstrap import ComponentIntervals, component_intervals
from sparcom_analysis.measures.general_unique.draws import FIELDS, component_numbers, least_that_counts
from sparcom_analysis.measures.general_unique.groups import Components, find_components
from sparcom_analysis.measures.general_unique.members import Memberships
from sparcom_analysis.kernels.bitsets import PackedSets
from sparcom_data.errors import InvalidInputError


def memberships(masks: NDArray[np.bool_], categories: list[str], memory_bytes: int | None = None) -> Memberships:
    """Components of each instruction given as bool (n, layer, expert, id)."""
    n, layers, experts, width = masks.shape
    packed = np.packbits(masks, axis=3, bitorder="little").reshape(n, -1)
    sets = PackedSets(n, -(-packed.shape[1] // 8), memory_bytes=memory_bytes)
    for k, row in enumerate(packed):
        words = np.zeros(sets.shape[1], dtype=np.uint64)
        words.view(np.uint8)[: len(row)] = row
        sets[k] = words
    component = "expert_neuron" if experts > 1 else "neuron"
    return Memberships(component, categories, list(range(layers)), experts, width, sets)


def direct(
    masks: NDArray[np.bool_], categories: list[str], found: Components, resamples: int, confidence: float, seed: int
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    """Lower and upper ends, every draw made and counted component by component."""
    generator = np.random.Generator(np.random.PCG64(seed))
    order = list(dict.fromkeys(categories))
    drawn = []
    for _ in range(resamples):
        own = []
        for code, name in enumerate(order):
            members = [k for k, category in enumerate(categories) if category == name]
            chosen = [members[i] for i in generator.integers(0, len(members), len(members))]
            own.append(sum(masks[k].astype(int) for k in chosen) >= found.needed[code])
        drawn.append(count(own))
    estimate = count([found.mask("belonging", code).reshape(masks.shape[1:]) for code in range(len(order))])
    low, high = {}, {}
    for name in FIELDS:
        values = np.array([one[name] for one in drawn])
        away = values - values.mean(axis=0)
        tail = (1 - confidence) / 2
        low[name] = np.maximum(estimate[name] + np.minimum(np.quantile(away, tail, axis=0), 0), 0)
        high[name] = estimate[name] + np.maximum(np.quantile(away, 1 - tail, axis=0), 0)
        if name.endswith("share"):
            high[name] = np.minimum(high[name], 1)
    return low, high


def count(own: list[NDArray[np.bool_]]) -> dict[str, NDArray[np.float64]]:
    """Numbers by layer and in all, of bool (layer, expert, id) of each category."""
    times = sum(one.astype(int) for one in own)
    last = len(own) if len(own) > 1 else 2

    def by_layer(which: NDArray[np.bool_]) -> list[float]:
        layers = [float(layer.sum()) for layer in which]
        return [*layers, sum(layers)]

    belonging = np.array([by_layer(one) for one in own])
    unique = np.array([by_layer(one & (times == 1) & (len(own) > 1)) for one in own])
    general = np.array(by_layer(times == last))
    shared = np.array(by_layer((times > 1) & (times < last)))
    total = np.where(belonging[:, -1] > 0, belonging[:, -1], np.nan)
    return {
        "belonging": belonging,
        "unique": unique,
        "shared": shared,
        "general": general,
        "general_share": general[-1] / total,
        "unique_share": unique[:, -1] / total,
    }


def assert_ends(found: ComponentIntervals, expected: tuple[dict[str, NDArray[np.float64]], ...]) -> None:
    """Both ends of every number, to 1e-12."""
    for end, plain in zip((found.low, found.high), expected, strict=True):
        for name in FIELDS:
            np.testing.assert_allclose(getattr(end, name), plain[name], rtol=0, atol=1e-12, err_msg=name)


@settings(deadline=None, max_examples=25)
@given(
    categories=st.permutations(["a", "a", "b", "b", "b", "", "", "a"]),
    layers=st.integers(1, 3),
    experts=st.integers(1, 2),
    width=st.integers(1, 19),
    rate=st.sampled_from([0.05, 0.5, 0.9]),
    share=st.sampled_from([0.5, 1.0, 0.2]),
    seed=st.integers(0, 99),
    in_file=st.booleans(),
)
def test_intervals_equal_loops(categories, layers, experts, width, rate, share, seed, in_file):  # type: ignore[no-untyped-def]
    """Whatever components and categories: the ends are those of the same draws made plainly."""
    masks = np.random.default_rng(seed).random((8, layers, experts, width)) < rate
    members = memberships(masks, categories, 0 if in_file else None)
    found = find_components(members, share)
    intervals = component_intervals(members, found, resamples=20, confidence=0.8, seed=seed)
    assert_ends(intervals, direct(masks, categories, found, 20, 0.8, seed))


def test_components_that_cannot_come_to_the_threshold_change_nothing() -> None:
    """Of 150 instructions a category, most components are in so few that they are left out: no draw counts one less."""
    rng = np.random.default_rng(4)
    rates = rng.choice([0.05, 0.1, 0.4, 0.5, 0.6], size=(2, 3, 1, 40))
    categories = ["a", "b"] * 150
    masks = rng.random((300, 3, 1, 40)) < rates[np.arange(300) % 2]
    members = memberships(masks, categories)
    found = find_components(members)
    intervals = component_intervals(members, found, resamples=50)
    assert_ends(intervals, direct(masks, categories, found, 50, 0.95, 0))
    assert intervals.high.general[-1] > component_numbers(found).general[-1] > intervals.low.general[-1]


@settings(deadline=None, max_examples=100)
@given(drawn=st.integers(1, 300), others=st.integers(0, 300), data=st.data())
def test_what_is_left_out_has_a_negligible_chance(drawn: int, others: int, data: st.DataObject) -> None:
    """A component one instruction short of the least is drawn often enough with a chance below 1e-12, by scipy, with
    replacement and without; one that enough instructions have is always kept."""
    total, needed = drawn + others, data.draw(st.integers(1, drawn))
    least = least_that_counts(total, drawn, needed)
    assert 1 <= least <= max(1, -(-needed * total // drawn))
    assert binom.sf(needed - 1, drawn, (least - 1) / total) < 1e-12
    assert hypergeom.sf(needed - 1, total, least - 1, drawn) < 1e-12


def test_cores_and_runs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same seed gives the same bytes on any number of cores; another seed gives others."""
    masks = np.random.default_rng(0).random((30, 2, 1, 60)) < 0.5
    members = memberships(masks, ["a", "b", "c"] * 10)
    found = find_components(members)
    said: list[tuple[int, int]] = []
    expected = component_intervals(members, found, resamples=9, progress=lambda *both: said.append(both))
    assert said == [(k, 9) for k in range(1, 10)]
    for cores in (1, 2, 16):
        monkeypatch.setattr("sparcom_analysis.kernels.compiled.cores", lambda cores=cores: cores)
        again = component_intervals(members, found, resamples=9)
        assert all(getattr(again.low, name).tobytes() == getattr(expected.low, name).tobytes() for name in FIELDS)
    other = component_intervals(members, found, resamples=9, seed=1)
    assert other.low.shared.tolist() != expected.low.shared.tolist()


def test_a_category_of_one_instruction_has_no_interval() -> None:
    """Nor have general, shared and unique components, in which it has a part; what belongs to the others has."""
    masks = np.random.default_rng(0).random((7, 2, 1, 30)) < 0.5
    members = memberships(masks, ["a", "a", "a", "b", "c", "c", "c"])
    intervals = component_intervals(members, find_components(members), resamples=20)
    for end in (intervals.low, intervals.high):
        assert np.isnan(end.belonging).any(axis=1).tolist() == [False, True, False]
        for name in set(FIELDS) - {"belonging"}:
            assert np.isnan(getattr(end, name)).all()


def test_parameters_out_of_range_are_all_named() -> None:
    """Fewer than two draws and a confidence of all are refused together."""
    members = memberships(np.ones((2, 1, 1, 3), dtype=bool), ["a", "b"])
    with pytest.raises(InvalidInputError) as error:
        component_intervals(members, find_components(members), resamples=1, confidence=1.0)
    assert len(error.value.problems) == 2
