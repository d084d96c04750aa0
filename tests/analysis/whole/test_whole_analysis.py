"""The whole analysis of every kind of archive: what it computes, what it says it cannot, and that its files agree."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from sparcom_analysis import (
    Analysis,
    LapeRates,
    Metrics,
    analyze,
    instruction_experts,
    instruction_specific_neurons,
    lape,
    pooled_counts,
)
from sparcom_analysis.report.ids import ComponentsFile
from sparcom_analysis.report.long_tensors import read_index_arrays
from sparcom_analysis.measures.similarity import similarity_pairs
from sparcom_analysis.options import Options
from sparcom_analysis.resampling.bootstrap import draw_resamples, mean_intervals, pair_intervals
from sparcom_analysis.resampling.permutation import permutation_tests
from sparcom_analysis.tuned.alteration import expert_alteration, neuron_alteration
from sparcom_analysis.tuned.venn import venn_by_layer
from sparcom_cli.analyze import analyze as command
from sparcom_data.archive import Archive, open_archive
from sparcom_data.errors import IncompleteArchiveError, InvalidInputError, UnsupportedArchiveError
from sparcom_data.testing import write_random_archive, write_random_moe_archive

FEW: dict[str, Any] = {"resamples": 20, "permutations": 40}
WRITERS = {"dense": write_random_archive, "mixture": write_random_moe_archive}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Archive, Archive, Analysis]]:
    """A dense pair and one of mixtures, analysed without drawing; of the tuned ones an instruction failed."""
    folder, found = tmp_path_factory.mktemp("pairs"), {}
    patch = pytest.MonkeyPatch()
    for name in ("to_png", "to_svg"):
        patch.setattr(f"sparcom_analysis.figures.neurons.{name}", lambda _figure: b"")
    for kind, write in WRITERS.items():
        for which, seed, failed in (("base", 0, ()), ("tuned", 1, (3,))):
            write(
                folder / f"{kind}-{which}.zarr", seed=seed, failed=failed, lengths=(6, 14), categories=("a|<b>", "$x")
            )
        base, tuned = (open_archive(folder / f"{kind}-{which}.zarr") for which in ("base", "tuned"))
        found[kind] = base, tuned, analyze(base, folder / kind, tuned=tuned, epsilon=0.2, seed=3, **FEW)
    patch.undo()
    return found


class Ids(HTMLParser):
    """Every id of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name == "id"]


@pytest.mark.parametrize("kind", ["dense", "mixture"])
def test_every_file_of_figures_and_tables_is_on_the_page(pairs, kind: str) -> None:  # type: ignore[no-untyped-def]
    """No figure and no table is written that the report does not show, and no id occurs twice."""
    folder = pairs[kind][2].output
    ids = Ids((folder / "report.html").read_text("utf-8")).found
    assert len(ids) == len(set(ids))
    drawn = {path.stem for path in (folder / "figures").iterdir()}
    written = {f"table-{path.stem}" for path in (folder / "tables").iterdir()}
    assert {name for name in ids if name.startswith("table-")} == written
    assert drawn <= set(ids)
    assert len(drawn) == {"dense": 9, "mixture": 34}[kind]


@pytest.mark.parametrize("kind", ["dense", "mixture"])
def test_the_three_forms_of_a_table_agree(pairs, kind: str) -> None:  # type: ignore[no-untyped-def]
    """CSV, Markdown and LaTeX have the same number of rows and columns, whatever the categories are called."""
    for path in sorted((pairs[kind][2].output / "tables").glob("*.csv")):
        rows = list(csv.reader(io.StringIO(path.read_text("utf-8"), newline="")))
        lines = [line for line in path.with_suffix(".md").read_text("utf-8").splitlines() if line.startswith("| ")]
        cells = [len(re.findall(r"(?<!\\)\|", line)) - 1 for line in lines]
        assert cells == [len(rows[0])] * (len(rows) + 1), path.name
        assert {len(row) for row in rows} == {len(rows[0])}
        body = [line for line in path.with_suffix(".tex").read_text("utf-8").splitlines() if line.endswith(r" \\")]
        assert [len(re.findall(r"(?<!\\)&", line)) + 1 for line in body] == [len(rows[0])] * len(rows), path.name


@pytest.mark.parametrize("kind", ["dense", "mixture"])
def test_metrics_fit_the_schema_beside_them(pairs, kind: str) -> None:  # type: ignore[no-untyped-def]
    """metrics.json and components.json are what the JSON Schemas in the folder describe; a wrong one is told."""
    jsonschema = pytest.importorskip("jsonschema")
    folder = pairs[kind][2].output
    for name in ("metrics", "components"):
        raw = json.loads((folder / f"{name}.json").read_text("utf-8"))
        schema = json.loads((folder / f"{name}.schema.json").read_text("utf-8"))
        jsonschema.validate(raw, schema, cls=jsonschema.Draft202012Validator)
        for wrong in ({**raw, "categories": [1]}, {**raw, "unknown": 1}, {**raw, "schema_version": 9}):
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(wrong, schema, cls=jsonschema.Draft202012Validator)
    assert Metrics.model_validate_json((folder / "metrics.json").read_bytes()) == pairs[kind][2].metrics


def nulls(values: np.ndarray[Any, Any]) -> Any:
    """As JSON has them."""
    return json.loads(re.sub(r"\bNaN\b", "null", json.dumps(values.tolist())))


def test_intervals_tests_and_alteration_are_those_of_the_functions(pairs) -> None:  # type: ignore[no-untyped-def]
    """Every part is what the public functions give with the parameters that were asked for."""
    base, tuned, result = pairs["mixture"]
    metrics = result.metrics
    assert metrics.intervals.model_dump() == {"resamples": 20, "confidence": 0.95, "seed": 3}
    assert (metrics.tests.permutations, metrics.tests.seed, metrics.general_unique.seed) == (40, 3, 3)
    assert (metrics.general_unique.resamples, metrics.general_unique.shuffles) == (20, 40)
    for part, tests in zip(metrics.components, metrics.tests.matrices, strict=False):
        sides = [instruction_specific_neurons(one, epsilon=0.2, component=part.component) for one in (base, tuned)]
        kept, drawn = similarity_pairs(sides[0]), draw_resamples(sides[0].categories, resamples=20, seed=3)
        cells = pair_intervals(kept, drawn)
        assert part.isn_similarity.low == nulls(cells.with_self.low)
        assert part.isn_similarity_without_self.high == nulls(cells.without_self.high)
        assert part.isn_by_layer.low == nulls(mean_intervals(sides[0].layer_counts, drawn).by_category.low)
        assert tests.component == part.component
        assert tests.category_p == nulls(permutation_tests(kept, permutations=40, seed=3).category_p)
        altered = neuron_alteration(*sides)
        ends = mean_intervals(altered.alteration, draw_resamples(altered.twins.categories, resamples=20, seed=3))
        assert part.isn_alteration.alteration == nulls(altered.by_category(altered.alteration).mean)
        assert part.isn_alteration.low == nulls(ends.by_category.low)
        assert (part.isn_alteration.twin.matched, part.isn_alteration.twin.only_base) == (9, 1)
        assert part.isn_alteration.twin.different_tokens == 9
        assert [one.id for one in part.isn_venn.instructions] == [one.id for one in venn_by_layer(altered)]
    routed = expert_alteration(*(instruction_experts(one) for one in (base, tuned)))
    assert metrics.ise_alteration.alteration == nulls(routed.by_category(routed.alteration).mean)
    assert metrics.tests.matrices[-1].measure == "ise_correlation"
    assert metrics.isn_alteration == metrics.components[0].isn_alteration


def test_lists_hold_what_metrics_count(pairs) -> None:  # type: ignore[no-untyped-def]
    """components.json and the index lists have as many ids of each kind as metrics.json says."""
    for _, _, result in pairs.values():
        held = ComponentsFile.model_validate_json((result.output / "components.json").read_bytes())
        for group, ids in zip(result.metrics.general_unique.groups, held.components, strict=True):
            counts = [sum(map(len, ids.unique[name].values())) for name in group.categories]
            assert counts == [one.total for one in group.unique]
            names, lists = read_index_arrays(result.output / "lists" / f"unique-{group.component}.npz")
            assert names == group.categories
            assert [sum(map(len, own)) for own in lists] == counts
        for group in result.metrics.lape.groups:
            _, lists = read_index_arrays(result.output / "lists" / f"lape-{group.component}.npz")
            assert [sum(map(len, own)) for own in lists] == group.total


@pytest.mark.parametrize("kind", ["dense", "mixture"])
def test_twins_run_again_give_the_same_bytes(pairs, undrawn, kind: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Every file of a pair is the same when it is made again with blocks of another size; another seed changes it."""
    base, tuned, result = pairs[kind]
    options = {"tuned": tuned, "epsilon": 0.2, **FEW}
    analyze(base, tmp_path, block_bytes=333, seed=3, **options)  # type: ignore[arg-type]
    for path in (path for path in result.output.rglob("*") if path.is_file()):
        assert (tmp_path / path.relative_to(result.output)).read_bytes() == path.read_bytes(), path.name
    other = analyze(base, tmp_path, seed=4, **options).metrics  # type: ignore[arg-type]
    assert other.isn_similarity.matrix == result.metrics.isn_similarity.matrix
    assert other.isn_similarity.low != result.metrics.isn_similarity.low


@pytest.mark.parametrize(
    ("categories", "each", "untested"),
    [
        (["a"], 3, True),  # one category
        (list("abcd"), 1, True),  # one instruction a category
        ([""], 3, True),  # no categories
        ([f"c{k}" for k in range(33)], 2, False),  # more than pairs are tested of
    ],
)
def test_any_number_of_categories(  # type: ignore[no-untyped-def]
    undrawn, tmp_path: Path, categories: list[str], each: int, untested: bool
) -> None:
    """From none to 33 categories: nothing fails, and what cannot be told is null."""
    for name, seed in (("base", 0), ("tuned", 1)):
        path = tmp_path / f"{name}.zarr"
        write_random_archive(path, categories=categories, per_category=each, lengths=(8, 10), seed=seed)
    metrics = analyze(tmp_path / "base.zarr", tmp_path / "out", tuned=tmp_path / "tuned.zarr", **FEW).metrics
    assert metrics.isn_alteration is not None
    assert metrics.general_unique is not None
    assert (metrics.general_unique.groups[0].general is None) == (len(categories) == 1)
    assert metrics.tests is not None
    assert (metrics.tests.matrices[0].p is None) == untested
    assert metrics.length_matched is not None
    assert metrics.not_computed == []
    assert len(metrics.categories) == len(categories)


def test_counts_say_what_they_cannot_give(make_case, undrawn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Of counts T is not matched, which report and command say; asked for by name it is refused, as special tokens."""
    archive = make_case((5, 9, 12, 8), "abab", granularity="count").archive
    result = analyze(archive, tmp_path, **FEW)
    assert result.metrics.length_matched is None
    assert [item.field for item in result.metrics.not_computed] == ["length_matched"]
    assert "Matching T needs masks of single tokens" in result.report.read_text("utf-8")
    said = CliRunner().invoke(command, [archive.path, "--output", str(tmp_path / "b"), "--permutations", "9"]).output
    assert "not computed: Matching T needs masks of single tokens" in said
    for options, message in (
        ({"match_tokens": True}, "matching T needs masks"),
        ({"matched_tokens": 3}, "matching T needs masks"),
        ({"special_tokens": "leave_out"}, "leaving special tokens out needs masks"),
    ):
        with pytest.raises(UnsupportedArchiveError, match=message):
            analyze(archive, tmp_path, progress=lambda *_: pytest.fail("a pass began"), **options)  # type: ignore[arg-type]


def test_short_prompts_are_not_matched_unless_asked_for(make_case, undrawn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Without an instruction of eight tokens the analysis goes on and says so; asked for, it ends with an error."""
    archive = make_case((3, 4, 5, 6), "abab").archive
    metrics = analyze(archive, tmp_path, **FEW).metrics
    assert metrics.length_matched is None
    assert re.match(r"Drawing as many tokens .* of 1.zarr has 6\. Say how many", metrics.not_computed[0].reason)
    with pytest.raises(IncompleteArchiveError, match="the longest of"):
        analyze(archive, tmp_path, match_tokens=True, **FEW)
    drawn = analyze(archive, tmp_path, matched_tokens=4, **FEW).metrics.length_matched
    assert drawn is not None
    assert (drawn.tokens, drawn.used, drawn.too_short) == (4, 3, 1)


def test_without_chance_there_are_means_alone(make_case, undrawn, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Past the most instructions, or with 0 resamples and permutations, the same means come without ends and tests."""
    archive = make_case((9, 10, 11, 12), "abab").archive
    full = analyze(archive, tmp_path, **FEW).metrics
    asked = analyze(archive, tmp_path, resamples=0, permutations=0).metrics
    monkeypatch.setattr("sparcom_analysis.summary.chance.MOST_INSTRUCTIONS", 3)
    many = analyze(archive, tmp_path, **FEW)
    for metrics in (asked, many.metrics):
        assert metrics.isn_similarity.matrix == full.isn_similarity.matrix
        assert metrics.isn_by_layer.mean_count == full.isn_by_layer.mean_count
        assert (metrics.tests, metrics.intervals, metrics.isn_similarity.low) == (None, None, None)
        assert metrics.general_unique is not None
        assert (metrics.general_unique.resamples, metrics.general_unique.groups[0].unique_p) == (None, None)
        assert [item.field for item in metrics.not_computed] == ["intervals", "tests"]
    assert "are computed for up to 3 instructions" in many.report.read_text("utf-8")
    assert not (tmp_path / "tables" / "none.csv").exists()


def test_sums_too_large_for_lape_are_said(make_case, undrawn, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Where sums over categories outgrow their room LAPE is left out with its reason, and nothing else."""
    archive = make_case((9, 10, 11, 12), "abab").archive
    monkeypatch.setattr("sparcom_analysis.components.pooled.MOST_BYTES", 4 * 2 * 60 - 1)
    result = analyze(archive, tmp_path, **FEW)
    assert result.metrics.lape is None
    assert [item.field for item in result.metrics.not_computed] == ["lape"]
    assert "2 categories of 60 neurons take more" in result.report.read_text("utf-8")
    monkeypatch.setattr("sparcom_analysis.components.pooled.MOST_BYTES", 4 * 2 * 60)
    assert analyze(archive, tmp_path, **FEW).metrics.lape is not None


def test_special_tokens_are_left_out_everywhere(tmp_path: Path, undrawn) -> None:  # type: ignore[no-untyped-def]
    """Sets, LAPE's sums, T and the report count what is left, in base and twin alike."""
    masks = write_random_archive(tmp_path / "a.zarr", lengths=(9, 14))
    write_random_archive(tmp_path / "b.zarr", lengths=(9, 14), seed=0)
    archive = open_archive(tmp_path / "a.zarr")
    ids = archive.read_rows("token/id", 0, archive.tokens)
    special = int(np.bincount(ids).argmax())
    options: dict[str, Any] = {"special_tokens": "leave_out", "special_token_ids": [special], **FEW}
    result = analyze(archive, tmp_path / "out", tuned=tmp_path / "b.zarr", **options)
    facts, table = result.metrics.instructions, archive.instructions
    assert (facts.special_token_ids, facts.special_rows) == ([special], int((ids == special).sum()))
    assert facts.tokens == archive.tokens - facts.special_rows
    found = result.results.neurons[0].lape
    assert found is not None
    for code, name in enumerate(("CLS", "CODE")):
        rows = np.concatenate(
            [
                np.arange(table.token_start[k], table.token_start[k] + table.token_length[k])
                for k in range(len(table))
                if table.category[k] == name
            ]
        )
        rows = rows[ids[rows] != special]
        assert int(found.tokens[code]) == len(rows)
        p = masks[rows].mean(axis=0).reshape(-1)[found.neuron]
        np.testing.assert_allclose(found.frequency[code], p, rtol=0, atol=1e-12)
    assert result.metrics.isn_alteration is not None
    assert result.metrics.isn_alteration.overall.alteration == 0
    assert f"{facts.special_rows} rows, token ids {special}" in result.report.read_text("utf-8")


def test_lape_takes_what_is_asked_for(pairs, undrawn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Rates that are given are those of `lape`, of every component; without any they are the authors' own."""
    base, _, result = pairs["mixture"]
    rates = LapeRates(top=0.07, filter=0.6, bar=0.5)
    found = analyze(base, tmp_path, lape_rates=rates, match_tokens=False, **FEW)
    assert found.metrics.lape is not None
    assert result.metrics.lape is not None
    assert (result.metrics.lape.top_rate, result.metrics.lape.bar_rate) == (0.01, 0.95)
    for group, one in zip(found.metrics.lape.groups, found.results.neurons, strict=True):
        own = lape(pooled_counts(base, component=group.component), rates)
        assert (group.selected, group.filter, group.bar) == (len(own.neuron), own.filter, own.bar)
        assert one.lape is not None
        np.testing.assert_array_equal(one.lape.neuron, own.neuron)


def test_instructions_to_show_are_those_asked_for(pairs, undrawn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Figure 6 shows the ids in their order; ids that are not in both archives are refused before the first pass."""
    base, tuned, _ = pairs["dense"]
    venn = analyze(base, tmp_path, tuned=tuned, instructions=["i005", "i001"], **FEW).metrics.isn_venn
    assert venn is not None
    assert (venn.typical, [one.id for one in venn.instructions]) == (False, ["i005", "i001"])
    seen: list[object] = []
    with pytest.raises(InvalidInputError, match="'i003' is not"):
        analyze(base, tmp_path, tuned=tuned, instructions=["i003"], progress=lambda *at: seen.append(at))
    with pytest.raises(InvalidInputError, match=r"there is none\. Give --tuned"):
        analyze(base, tmp_path, instructions=["i001"], progress=lambda *at: seen.append(at))
    assert not seen


def test_models_that_are_no_twins_are_refused_before_the_pass(make_case, make_moe, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Other layers, or a mixture beside a dense model, are no model before and after tuning."""
    base, wide = make_case((5, 6), "ab").archive, make_case((5, 6), "ab", neurons=24).archive
    for tuned in (wide, make_moe().archive):
        with pytest.raises(UnsupportedArchiveError, match="these differ"):
            analyze(base, tmp_path, tuned=tuned)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resamples": 1}, "resamples must be 0"),
        ({"resamples": -2}, "resamples must be 0"),
        ({"permutations": -1}, "permutations must be 0"),
        ({"confidence": 1.0}, "confidence must be above 0"),
        ({"seed": -1}, "the seed must be 0 or more"),
        ({"share": 0.0}, "the share of a category's"),
        ({"matched_tokens": 4, "match_tokens": False}, "not both"),
        ({"matched_tokens": 0}, "tokens to draw must be at least 1"),
        ({"epsilon": 0.1, "threshold": 0.2}, "exactly one of"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    """What cannot be is refused with its rule before anything is opened; several at once are all said."""
    with pytest.raises(InvalidInputError, match=message):
        analyze("nowhere.zarr", "nowhere", **options)
    with pytest.raises(InvalidInputError) as error:
        Options(resamples=1, seed=-1)
    assert len(error.value.problems) == 2


def test_the_command_takes_every_option(pairs, undrawn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """What is given on the command line is what metrics.json says was used."""
    base, tuned, _ = pairs["dense"]
    arguments = ["--share", "0.4", "--resamples", "12", "--permutations", "15", "--confidence", "0.9", "--seed", "5"]
    arguments += ["--matched-tokens", "6", "--lape-top", "0.1", "--lape-filter", "0.8", "--lape-bar", "0.7"]
    arguments += ["--special-tokens", "leave-out", "--special-token-id", "1", "--special-token-id", "2"]
    arguments += ["--instruction", "i001", "--tuned", str(tuned.path), "--output", str(tmp_path)]
    result = CliRunner().invoke(command, [str(base.path), *arguments])
    assert result.exit_code == 0, result.output
    metrics = Metrics.model_validate_json((tmp_path / "metrics.json").read_bytes())
    assert metrics.intervals is not None
    assert metrics.intervals.model_dump() == {"resamples": 12, "confidence": 0.9, "seed": 5}
    assert metrics.tests is not None
    assert metrics.general_unique is not None
    assert metrics.length_matched is not None
    assert (metrics.tests.permutations, metrics.general_unique.share) == (15, 0.4)
    assert metrics.lape is not None
    assert (metrics.lape.top_rate, metrics.lape.filter_rate, metrics.lape.bar_rate) == (0.1, 0.8, 0.7)
    assert (metrics.length_matched.tokens, metrics.length_matched.seed) == (6, 5)
    assert (metrics.settings.special_tokens, metrics.instructions.special_token_ids) == ("leave_out", [1, 2])
    assert "Tuning alters an instruction’s neurons by" in result.output
    for wrong in (["--special-token-id", "1"], ["--instruction", "i001"]):
        assert CliRunner().invoke(command, [str(base.path), *wrong, "--output", str(tmp_path)]).exit_code == 2
