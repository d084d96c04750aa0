"""The parts of metrics.json, tables and figures about a tuned twin: what was computed, null where there is nothing."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sparcom_analysis import instruction_experts, instruction_specific_neurons
from sparcom_analysis.figures.alteration import layer_alteration_figure, layer_pair_figure, venn_figure
from sparcom_analysis.figures.neurons import to_png, to_svg
from sparcom_analysis.findings.alteration import (
    ise_alteration_sentence,
    isn_alteration_sentence,
    layer_alteration_sentence,
    layer_pair_sentence,
    tokens_sentence,
    venn_sentence,
)
from sparcom_analysis.schema.alteration import IsnAlteration, IsnVenn
from sparcom_analysis.schema.experts import ExpertShifts
from sparcom_analysis.summary.alteration import ise_alteration_part, isn_alteration_part, isn_venn_part
from sparcom_analysis.tables.alteration import (
    ise_alteration_table,
    isn_alteration_table,
    kept_experts_table,
    layer_alteration_table,
    venn_table,
)
from sparcom_analysis.tuned.alteration import NeuronAlteration, expert_alteration, neuron_alteration
from sparcom_analysis.matching import match_twins
from sparcom_data.archive import Archive


@dataclass(frozen=True)
class Ends:
    """An interval that says of what it is: a tenth below and above."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True)
class MeanEnds:
    """Intervals by category and over all."""

    by_category: Ends
    overall: Ends


@dataclass(frozen=True)
class Case:
    """Two archives of neurons and what tuning altered."""

    altered: NeuronAlteration
    archives: tuple[Archive, Archive]

    def intervals(self, values: NDArray[np.float64]) -> MeanEnds:
        """A tenth around each mean."""
        means = self.altered.by_category(values)
        return MeanEnds(
            Ends(means.mean - 0.1, means.mean + 0.1), Ends(means.overall - 0.1, np.asarray(means.overall + 0.1))
        )


@pytest.fixture
def twins(make_case) -> Case:  # type: ignore[no-untyped-def]
    """Seven instructions of three categories; of one category no model has an ISN, since the threshold is too high."""
    kinds = ("QA", "CODE", "QA", "", "CODE", "QA", "")
    lengths, rates = (5, 9, 3, 30, 7, 4, 30), (0.5, 0.5, 0.5, 0.1, 0.5, 0.5, 0.1)
    base, tuned = (make_case(lengths, kinds, rates=rates, seed=seed, failed=(seed,)).archive for seed in (1, 2))
    sides = [instruction_specific_neurons(archive, threshold=0.8) for archive in (base, tuned)]
    return Case(neuron_alteration(*sides, match_twins(*sides, (base, tuned))), (base, tuned))


def test_part_says_what_was_computed(twins: Case) -> None:
    """Means by category and layer, both models' ISNs, and the instructions without a value; null, never NaN."""
    part = isn_alteration_part(twins.altered, twins.archives)
    values, kinds = twins.altered.alteration, twins.altered.twins.categories
    assert part.categories == ["QA", "(none)", "CODE"]
    for c, name in enumerate(("QA", "", "CODE")):
        own = np.array([kind == name for kind in kinds])
        assert part.instructions[c] + part.undefined[c] == own.sum()
        if name:
            assert part.alteration[c] == pytest.approx(values[own].mean(), abs=1e-12)
            assert part.overlap[c] == pytest.approx(1 - values[own].mean(), abs=1e-12)
        assert part.base_isn[c] == pytest.approx(twins.altered.base_counts[own].sum(axis=1).mean(), abs=1e-12)
        np.testing.assert_allclose(part.tuned_by_layer[c], twins.altered.tuned_counts[own].mean(axis=0), atol=1e-12)
    assert (part.alteration[1], part.undefined[1], part.instructions[1]) == (None, 2, 0)
    assert part.layer_alteration[1] == [None] * 3
    assert part.overall.undefined == 2
    assert part.overall.alteration == pytest.approx(np.nanmean(values), abs=1e-12)
    assert (part.twin.matched, part.twin.only_base, part.twin.only_tuned) == (5, 1, 1)
    assert (part.twin.different_rows, part.twin.different_tokens) == (0, 0)
    assert (part.twin.archive, part.twin.model_name) == (twins.archives[1].path.rsplit("/", 1)[-1], "random")
    assert part.low == part.high == [None] * 3
    text = part.model_dump_json()
    assert "NaN" not in text
    assert IsnAlteration.model_validate_json(text) == part


def test_intervals_lie_at_their_means(twins: Case) -> None:
    """Each interval is about its own mean: by category, by layer, and over all."""
    part = isn_alteration_part(twins.altered, twins.archives, twins.intervals)

    def around(mean: Any, low: Any, high: Any) -> None:
        mean, low, high = (np.array(one, dtype=np.float64) for one in (mean, low, high))
        np.testing.assert_allclose([mean - 0.1, mean + 0.1], [low, high], rtol=0, atol=1e-12)

    around(part.alteration, part.low, part.high)
    around(part.layer_alteration, part.layer_low, part.layer_high)
    around(part.overall.alteration, part.overall.low, part.overall.high)
    around(part.overall.layer_alteration, part.overall.layer_low, part.overall.layer_high)


def test_experts_part_and_table(make_moe) -> None:  # type: ignore[no-untyped-def]
    """Table 2 has the part's numbers to the last digit, and says how many have no value."""
    base, tuned = make_moe().archive, make_moe(seed=1, granularity="count").archive
    left, right = instruction_experts(base), instruction_experts(tuned)
    right.counts[3] = 1  # no variance
    altered = expert_alteration(left, right, match_twins(left, right, (base, tuned)))
    part = ise_alteration_part(altered, (base, tuned))
    assert (part.undefined, part.instructions, part.twin.different_tokens) == ([1, 0], [4, 5], None)
    assert part.overall.alteration == pytest.approx(np.nanmean(altered.alteration), abs=1e-12)
    table = ise_alteration_table(part, "before")
    rows = list(csv.reader(io.StringIO(table.csv())))
    assert rows[0] == ["category", "instructions", "correlation", "alteration"]
    assert [float(row[3]) for row in rows[1:]] == [*part.alteration, part.overall.alteration]
    assert [row[0] for row in rows[1:]] == ["CLS", "CODE", "(all)"]
    assert "1 of them has no value" in table.note
    assert "have another number of tokens in the tuned archive" in table.note


def test_tables_of_neurons(twins: Case) -> None:
    """Table 1 and the layers hold the part's numbers; intervals have columns only where there are any."""
    plain, part = (isn_alteration_part(twins.altered, twins.archives, how) for how in (None, twins.intervals))
    assert "low" not in isn_alteration_table(plain, "before").columns
    table = isn_alteration_table(part, "before")
    rows = list(csv.DictReader(io.StringIO(table.csv())))
    assert [row["category"] for row in rows] == ["QA", "(none)", "CODE", "(all)"]
    assert rows[1]["alteration"] == rows[1]["low"] == ""
    assert [float(rows[c]["alteration"]) for c in (0, 2)] == [part.alteration[0], part.alteration[2]]
    assert [float(rows[c]["high"]) for c in (0, 2)] == [part.high[0], part.high[2]]
    assert float(rows[3]["ISNs tuned"]) == part.overall.tuned_isn
    layers = list(csv.DictReader(io.StringIO(layer_alteration_table(part, "before").csv())))
    assert len(layers) == 4 * 3
    assert float(layers[7]["ISNs base"]) == part.base_by_layer[2][1]
    assert float(layers[11]["alteration"]) == part.overall.layer_alteration[2]
    venn = isn_venn_part(twins.altered, twins.archives)
    assert [shown.category for shown in venn.instructions] == ["QA", "CODE"]
    assert IsnVenn.model_validate(json.loads(venn.model_dump_json())) == venn
    found = list(csv.DictReader(io.StringIO(venn_table(venn, "before").csv())))
    sums = [sum(int(row[name]) for row in found) for name in ("only base", "both", "only tuned")]
    expected = [sum(map(sum, (getattr(one, name) for one in venn.instructions))) for name in PARTS]
    assert sums == expected


PARTS = ("only_base", "both", "only_tuned")


def test_experts_that_stay_are_marked() -> None:
    """Table 6 marks each expert that is among the most chosen after tuning too, and no other."""
    part = ExpertShifts.model_construct(
        matched=7,
        categories=["a", "b"],
        layer_ids=[1, 4],
        top_base=[[[3, 0], [1, 2]], [[5, 1], [0, 1]]],
        top_kept=[[[True, False], [False, False]], [[True, True], [False, True]]],
        overall_top_base=[[3, 1], [0, 2]],
        overall_top_kept=[[False, True], [True, True]],
    )
    table = kept_experts_table(part, "before")
    assert table.columns == ["category", "layer", "rank 1", "rank 2"]
    assert [list(row) for row in table.rows] == [
        ["a", 1, "3*", "0"],
        ["a", 4, "1", "2"],
        ["b", 1, "5*", "1*"],
        ["b", 4, "0", "1*"],
        ["(all)", 1, "3", "1*"],
        ["(all)", 4, "0*", "2*"],
    ]
    assert r"| a | 1 | 3\* | 0 |" in table.markdown()
    assert "7 instructions" in table.note


def test_figures_draw_what_the_parts_say(twins: Case) -> None:
    """Bars add up to the counts, the tuned model is above the base on the same axes, and a layer without a value is a
    gap."""
    part = isn_alteration_part(twins.altered, twins.archives)
    pair = layer_pair_figure(part, "before")
    above, below = pair.axes
    assert above.get_title(loc="left").startswith("tuned")
    assert above.get_position().y0 > below.get_position().y0
    assert above.get_ylim() == below.get_ylim()
    for axes, values in ((above, part.tuned_by_layer), (below, part.base_by_layer)):
        for line, expected in zip(axes.lines, values, strict=True):
            np.testing.assert_array_equal(line.get_ydata(), expected)
    (axes,) = layer_alteration_figure(part, "before").axes
    assert np.isnan(np.asarray(axes.lines[1].get_ydata(), dtype=np.float64)).all()
    venn = isn_venn_part(twins.altered, twins.archives)
    figure = venn_figure(venn, "before")
    for panel, shown in zip(figure.axes, venn.instructions, strict=False):
        heights = np.array([bar.get_height() for bar in panel.patches]).reshape(3, 3)
        np.testing.assert_array_equal(heights, [shown.only_base, shown.both, shown.only_tuned])
        below = np.array([bar.get_y() for bar in panel.patches]).reshape(3, 3)
        np.testing.assert_array_equal(below, np.cumsum([[0, 0, 0], shown.only_base, shown.both], axis=0))


def test_figures_of_odd_results(twins: Case) -> None:
    """Many categories become maps, no instruction to show and no value at all are drawn too; names are plain text, and
    the same figure gives the same bytes."""
    part = isn_alteration_part(twins.altered, twins.archives)
    many = part.model_copy(
        update={
            "categories": [f"$a_{k}" for k in range(9)],
            "base_by_layer": part.base_by_layer * 3,
            "tuned_by_layer": part.tuned_by_layer * 3,
            "layer_alteration": [[None] * 3] * 9,
        }
    )
    venn = isn_venn_part(twins.altered, twins.archives)
    crowd = venn.model_copy(update={"instructions": venn.instructions * 9})
    drawn = [
        layer_pair_figure(many, "$x"),
        layer_alteration_figure(many, "$x"),
        venn_figure(venn.model_copy(update={"instructions": []}), "$x"),
        venn_figure(crowd, "$x"),
    ]
    for figure in drawn:
        assert to_png(figure).startswith(b"\x89PNG")
    assert to_svg(venn_figure(venn, "a")) == to_svg(venn_figure(venn, "a"))


def test_twins_given_are_used(make_moe) -> None:  # type: ignore[no-untyped-def]
    """What `match_twins` found is not looked for again: instructions it left out stay out."""
    neurons = instruction_specific_neurons(make_moe().archive)
    few = match_twins(neurons, replace(neurons, ids=[*neurons.ids[:-1], "other"]))
    assert len(neuron_alteration(neurons, neurons, few).alteration) == 9


def test_sentences_say_the_numbers(twins: Case) -> None:
    """Means, most and least altered category and layer, and what has no value; with intervals where there are any."""
    part = isn_alteration_part(twins.altered, twins.archives, twins.intervals)
    text = isn_alteration_sentence(part, "before")
    kinds = sorted((value, name) for value, name in zip(part.alteration, part.categories, strict=True) if value)
    assert f"overlap by {part.overall.overlap:.3f} (Jaccard index, mean over 3 instructions)" in text
    assert f"(interval {part.overall.low:.3f} to {part.overall.high:.3f})" in text
    assert f"Most altered is {kinds[-1][1]} ({kinds[-1][0]:.3f}), least {kinds[0][1]} ({kinds[0][0]:.3f})" in text
    assert "2 instructions have no ISN in either" in text
    layers = sorted(zip(part.overall.layer_alteration, part.layer_ids, strict=True))
    assert f"most in layer {layers[-1][1]} ({layers[-1][0]:.3f}) and least in layer {layers[0][1]}" in (
        layer_alteration_sentence(part)
    )
    change = np.abs(np.array(part.overall.tuned_by_layer) - part.overall.base_by_layer)
    assert np.allclose(change, 0.4)
    assert "changes in every layer by 0.4 of an instruction" in layer_pair_sentence(part)
    more = part.overall.model_copy(update={"tuned_by_layer": [1.6, 9.0, 1.2]})
    assert "changes most in layer 1: 2.0 of an" in layer_pair_sentence(part.model_copy(update={"overall": more}))
    venn = isn_venn_part(twins.altered, twins.archives, ["i0"])
    (shown,) = venn.instructions
    every = sum(sum(getattr(shown, name)) for name in PARTS)
    assert f"Of the ISNs of the instructions shown, {sum(shown.both) / every:.1%} are ISNs of both" in venn_sentence(
        venn
    )


def test_sentences_of_odd_results(make_moe) -> None:  # type: ignore[no-untyped-def]
    """No value at all, nothing altered, and other tokens are each said in words."""
    archive = make_moe(experts=2, choices=2).archive
    experts, neurons = instruction_experts(archive), instruction_specific_neurons(archive)
    part = ise_alteration_part(expert_alteration(experts, experts), (archive, archive))
    assert "no correlation is defined" in ise_alteration_sentence(part, "before")
    same = neuron_alteration(neurons, neurons)
    text = isn_alteration_sentence(isn_alteration_part(same, (archive, archive)), "before")
    assert "an alteration of 0.000. An instruction has" in text
    assert "equally in every layer" in layer_alteration_sentence(isn_alteration_part(same, (archive, archive)))
    assert "as many ISNs in each layer" in layer_pair_sentence(isn_alteration_part(same, (archive, archive)))
    nothing = replace(same, shared=same.shared * 0, base_counts=same.shared * 0, tuned_counts=same.shared * 0)
    empty = isn_alteration_part(nothing, (archive, archive))
    assert "No instruction has an ISN" in isn_alteration_sentence(empty, "before")
    assert "No layer holds" in layer_alteration_sentence(empty)
    assert "No instruction has an ISN" in venn_sentence(isn_venn_part(nothing, (archive, archive)))
    for facts, said in (
        ({"different_tokens": 4}, " 4 of the 10 instructions did not become the same tokens"),
        ({"different_tokens": None, "different_rows": 3}, " 3 of the 10 instructions have another number of tokens"),
        ({"different_tokens": 0, "different_rows": 3}, ""),
    ):
        found = tokens_sentence(part.twin.model_copy(update=facts))
        assert found.startswith(said)
        assert bool(found) == bool(said)
