"""What metrics.json, tables and figures say of general and unique components and of LAPE is what was found."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pytest

from sparcom_analysis import instruction_experts, instruction_specific_neurons
from sparcom_analysis.components.chance import component_chance
from sparcom_analysis.components.experts import expert_components, expert_memberships
from sparcom_analysis.measures.general_unique.groups import ONE_CATEGORY, neuron_components
from sparcom_analysis.components.lape import LapeRates, lape
from sparcom_analysis.measures.general_unique.members import neuron_memberships
from sparcom_analysis.components.pooled import pooled_counts
from sparcom_analysis.components.result import ComponentResult, component_result
from sparcom_analysis.figures.components import component_figure, lape_figure
from sparcom_analysis.figures.neurons import to_png, to_svg
from sparcom_analysis.findings.components import components_sentence, lape_sentence
from sparcom_analysis.schema.components import ComponentGroups, GeneralUnique, LapeNeurons
from sparcom_analysis.summary.components import general_unique_part, lape_part, unique_overlap
from sparcom_analysis.tables.components import component_layer_table, component_share_table, lape_table
from sparcom_data.archive import Archive, open_archive
from sparcom_data.errors import InvalidInputError
from sparcom_data.testing import write_random_archive, write_random_moe_archive

RATES = LapeRates(top=0.4, filter=0.5, bar=0.5)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Three categories of five instructions; the name of one is no markup to tables and figures."""
    path = tmp_path_factory.mktemp("report") / "A.zarr"
    write_random_moe_archive(path, categories=("b", "a|$x$", ""), per_category=5)
    return open_archive(path)


@pytest.fixture(scope="module")
def parts(mixture: Archive) -> tuple[GeneralUnique, LapeNeurons]:
    """Of the routed experts' neurons and of the experts."""
    neurons = instruction_specific_neurons(mixture, epsilon=0.3)
    members = [neuron_memberships(neurons), expert_memberships(instruction_experts(mixture), 2)]
    results = [component_result(one, resamples=10, shuffles=20) for one in members]
    selected = lape(pooled_counts(mixture), RATES)
    return general_unique_part(results, 2), lape_part([selected], {"expert_neuron": results[0].found})


def one_category(tmp_path) -> ComponentGroups:  # type: ignore[no-untyped-def]
    """The group of an archive whose instructions are of one category."""
    write_random_archive(tmp_path / "A.zarr", categories=("a",))
    neurons = instruction_specific_neurons(open_archive(tmp_path / "A.zarr"))
    return general_unique_part([ComponentResult(neuron_components(neurons))], 5).groups[0]


def test_numbers_and_intervals_are_those_that_were_found(mixture: Archive, parts) -> None:  # type: ignore[no-untyped-def]
    """By layer and in all, of each category, with ends around each number; the part reads back equal."""
    part, _ = parts
    assert GeneralUnique.model_validate_json(part.model_dump_json()) == part
    assert (part.share, part.top_experts, part.resamples, part.confidence) == (0.5, 2, 10, 0.95)
    assert (part.shuffles, part.seed) == (20, 0)
    neurons = instruction_specific_neurons(mixture, epsilon=0.3)
    experts = instruction_experts(mixture)
    both = (neuron_components(neurons), expert_components(experts, top=2))
    for group, found in zip(part.groups, both, strict=True):
        assert (group.component, group.per_layer, group.reason) == (found.component, found.per_layer, None)
        assert (group.instructions, group.needed) == ([5, 5, 5], [3, 3, 3])
        for kind in ("shared", "general"):
            assert getattr(group, kind).by_layer == found.counts(kind).tolist()
        members = neuron_memberships(neurons) if found is both[0] else expert_memberships(experts, 2)
        chance = component_chance(members, found, shuffles=20)
        assert chance is not None
        assert (group.general_chance, group.shared_chance) == (chance.general, chance.shared)
        assert (group.unique_chance, group.unique_p) == (chance.unique.tolist(), chance.p.tolist())
        for kind in ("belonging", "unique"):
            for code, numbers in enumerate(getattr(group, kind)):
                counts = found.counts(kind, code)
                assert (numbers.by_layer, numbers.total) == (counts.tolist(), counts.sum())
                assert numbers.total_low <= numbers.total <= numbers.total_high
                assert all(a <= b <= c for a, b, c in zip(numbers.low, counts, numbers.high, strict=True))
        for code, belonging in enumerate(group.belonging):
            for share, count in ((group.general_share, group.general), (group.unique_share, group.unique[code])):
                assert share[code] == (count.total / belonging.total if belonging.total else None)


def test_lape_is_compared_with_the_unique_neurons(mixture: Archive, parts) -> None:  # type: ignore[no-untyped-def]
    """The overlap of each category is the Jaccard index of both sets; the part reads back equal."""
    _, part = parts
    assert LapeNeurons.model_validate_json(part.model_dump_json()) == part
    (group,) = part.groups
    found = lape(pooled_counts(mixture), RATES)
    neurons = neuron_components(instruction_specific_neurons(mixture, epsilon=0.3))
    assert (group.selected, group.passed, group.wanted) == (len(found.neuron), found.passed, found.wanted)
    assert sum(group.total) > 0
    for code in range(3):
        assert (group.total[code], group.by_layer[code]) == (
            sum(len(ids) for ids in found.ids(code)),
            [len(ids) for ids in found.ids(code)],
        )
        left, right = (
            {(layer, int(x)) for layer, ids in enumerate(lists) for x in ids}
            for lists in (found.ids(code), neurons.ids("unique", code))
        )
        expected = len(left & right) / len(left | right) if left | right else None
        assert group.unique_overlap[code] == pytest.approx(expected, abs=1e-12)
    assert lape_part([found], {}).groups[0].unique_overlap == [None] * 3
    with pytest.raises(InvalidInputError, match=r"expert_neuron of .* the other neuron of"):
        unique_overlap(found, neuron_components(instruction_specific_neurons(mixture, component="neuron")))


def test_tables_hold_the_numbers(parts) -> None:  # type: ignore[no-untyped-def]
    """One row a layer and one for all, one row a category: as in the parts, in three texts that can be read."""
    part, selected = parts
    for group in part.groups:
        table = component_layer_table(group)
        rows = list(csv.DictReader(io.StringIO(table.csv())))
        assert [row["layer"] for row in rows] == ["1", "2", "all"]
        assert [int(row["general"]) for row in rows] == [*group.general.by_layer, group.general.total]
        assert [int(row["unique to a|$x$"]) for row in rows] == [*group.unique[1].by_layer, group.unique[1].total]
        assert int(rows[2]["shared"]) == group.shared.total
    shares = component_share_table(part)
    rows = list(csv.DictReader(io.StringIO(shares.csv())))
    assert [row["category"] for row in rows] == ["b", "a|$x$", "(none)"] * 2
    assert [int(row["number"]) for row in rows[:3]] == [one.total for one in part.groups[0].belonging]
    assert [row["general_share"] for row in rows[:3]] == [str(value) for value in part.groups[0].general_share]
    entropy = lape_table(selected)
    rows = list(csv.DictReader(io.StringIO(entropy.csv())))
    assert [int(row["neurons"]) for row in rows] == selected.groups[0].total
    for one in (shares, entropy):
        assert r"a\|\$x\$" in one.markdown()
        assert r"a\textbar{}\$x\$" in one.latex()


def test_the_median_layer_is_where_half_of_the_neurons_are_reached(parts) -> None:  # type: ignore[no-untyped-def]
    """Of 3 and 1 neurons the first layer, of 1 and 3 the second, of none no layer."""
    group = parts[1].groups[0].model_copy(update={"by_layer": [[3, 1], [1, 3], [0, 0]]})
    rows = lape_table(parts[1].model_copy(update={"groups": [group]})).rows
    assert [row[4] for row in rows] == [1, 2, None]


def test_figures_show_the_numbers(parts) -> None:  # type: ignore[no-untyped-def]
    """Bars on top of each other add up to what belongs to any category; the same figure gives the same bytes."""
    part, selected = parts
    group = part.groups[0]
    upper, lower = component_figure(group, "model").axes
    unique = np.sum([one.by_layer for one in group.unique], axis=0)
    heights = [[bar.get_height() for bar in bars] for bars in upper.containers]
    assert heights == [group.general.by_layer, group.shared.by_layer, unique.tolist()]
    feet = [[bar.get_y() for bar in bars] for bars in upper.containers]
    assert feet == np.cumsum([[0] * len(unique), *heights[:-1]], axis=0).tolist()
    heights = [[bar.get_height() for bar in bars] for bars in lower.containers]
    assert heights == [one.by_layer for one in group.unique]
    assert lower.get_legend_handles_labels()[1] == ["b", r"a|\$x\$", "(none)"]
    (axes,) = lape_figure(selected.groups[0], "model").axes
    assert [[bar.get_height() for bar in bars] for bars in axes.containers] == selected.groups[0].by_layer
    assert to_svg(component_figure(group, "model")) == to_svg(component_figure(group, "model"))
    assert to_png(lape_figure(selected.groups[0], "model")).startswith(b"\x89PNG")


def test_many_categories_are_one_bar(parts) -> None:  # type: ignore[no-untyped-def]
    """From eight categories on colours do not tell them apart: their sum is drawn, and says of how many."""
    group = parts[0].groups[0]
    wide = group.model_copy(update={"categories": list("abcdefgh"), "unique": [group.unique[0]] * 8})
    lower = component_figure(wide, "model").axes[1]
    assert lower.get_legend_handles_labels()[1] == ["any of 8 categories"]
    assert [bar.get_height() for bar in lower.containers[0]] == [8 * count for count in group.unique[0].by_layer]


def test_one_category_is_said_to_be_one(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Nothing is called general or unique: null and the reason in part, table and figure; what belongs is shown."""
    group = one_category(tmp_path)
    assert group.reason == ONE_CATEGORY
    assert (group.general, group.shared, group.unique, group.general_share, group.unique_share) == (None,) * 5
    assert group.belonging[0].total > 0
    table = component_layer_table(group)
    assert table.note == ONE_CATEGORY
    assert table.rows[-1] == ["all", None, None, None]
    part = GeneralUnique(
        share=0.5, top_experts=5, resamples=None, confidence=None, shuffles=None, seed=None, groups=[group]
    )
    assert component_share_table(part).rows[0][3:] == [group.belonging[0].total, *[None] * 10]
    assert components_sentence(group, "M") == (
        f"In M, general and unique neurons of dense layers are not told apart: {ONE_CATEGORY}."
    )
    (axes,) = component_figure(group, "model").axes
    assert axes.get_title().replace("\n", " ") == ONE_CATEGORY
    assert [bar.get_height() for bar in axes.containers[0]] == group.belonging[0].by_layer


def test_sentences_say_the_numbers(parts) -> None:  # type: ignore[no-untyped-def]
    """How many are general and unique, and by chance, who has most, who has more than chance."""
    part, selected = parts
    group = part.groups[0].model_copy(update={"unique_p": [0.01, 0.5, 0.05]})
    unique = [one.total for one in group.unique]
    text = components_sentence(group, "M")
    total = group.general.total + group.shared.total + sum(unique)
    assert f"In M, {total} neurons of routed experts belong to a category: {group.general.total} (" in text
    assert f"{sum(unique)} ({sum(unique) / total:.0%}) to one alone; with the categories' names shuffled" in text
    assert f"{group.categories[int(np.argmax(unique))]} has the most of its own, {max(unique)}." in text
    assert text.endswith("b and (none) have more than chance gives (p ≤ 0.05, corrected).")
    every = group.model_copy(update={"unique_p": [0.01] * 3})
    assert components_sentence(every, "M").endswith("Every category has more than chance gives (p ≤ 0.05, corrected).")
    none = group.model_copy(update={"unique_p": [0.5] * 3})
    assert components_sentence(none, "M").endswith("No category has more than chance gives (p ≤ 0.05, corrected).")
    entropy = selected.groups[0]
    known = [value for value in entropy.unique_overlap if value is not None]
    text = lape_sentence(entropy, "M")
    assert f"LAPE selects {entropy.selected} neurons of routed experts; " in text
    assert f"by {np.mean(known):.2f} (Jaccard index, mean of categories)." in text
    assert "none passes the filter" in lape_sentence(entropy.model_copy(update={"selected": 0, "passed": 0}), "M")
    assert "none of the neurons of routed experts: why." in lape_sentence(
        entropy.model_copy(update={"reason": "why"}), "M"
    )


def test_progress_of_draws_and_shuffles_is_one(mixture: Archive) -> None:
    """It counts to their sum without a step back; with one category nothing is shuffled."""
    said: list[tuple[int, int]] = []
    members = neuron_memberships(instruction_specific_neurons(mixture))
    component_result(members, resamples=4, shuffles=3, progress=lambda *both: said.append(both))
    assert said == [(k, 7) for k in range(1, 8)]
    said.clear()
    component_result(replace(members, categories=["a"] * 15), resamples=4, progress=lambda *both: said.append(both))
    assert said == [(k, 4) for k in range(1, 5)]
