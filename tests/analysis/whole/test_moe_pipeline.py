"""The whole analysis of a mixture of experts: files, metrics.json, report; and that the form for dense models stays."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from sparcom_analysis.figures.experts import all_figures, maps_figure, panels
from sparcom_analysis.figures.neurons import to_svg
from sparcom_analysis.findings.experts import correlation_sentence
from sparcom_analysis.passes import Passes
from sparcom_analysis.schema.metrics import COMPONENT_PARTS
from sparcom_analysis.tables.experts import all_label

from sparcom_analysis import (
    Analysis,
    Metrics,
    analyze,
    category_experts,
    category_similarity,
    expert_correlation,
    instruction_experts,
    instruction_specific_neurons,
    isn_by_layer,
    top_experts,
)
from sparcom_cli.analyze import analyze as command
from sparcom_data.archive import Archive, open_archive
from sparcom_data.errors import DamagedArchiveError
from sparcom_data.testing import write_random_moe_archive

DENSE_FIELDS = [
    "schema_version",
    "archive",
    "settings",
    "versions",
    "instructions",
    "categories",
    *COMPONENT_PARTS,
    "general_unique",
    "lape",
    "length_matched",
    "tests",
    "intervals",
    "warnings",
    "not_computed",
]
EXPERT_FIELDS = [
    "component",
    "components",
    "expert_frequency",
    "ise_correlation",
    "ise_correlation_without_self",
    "top_experts",
    "expert_shift",
    "ise_alteration",
]
COMPONENTS = ("expert_neuron", "neuron", "shared_expert_neuron")
ISN_FILES = {
    "isn_similarity",
    "isn_similarity_without_self",
    "isn_similarity_intervals",
    "isn_by_layer",
    "isn_by_layer_intervals",
    "isn_tests",
    "isn_pair_tests",
    "isn_alteration",
    "isn_alteration_by_layer",
    "isn_venn",
    "length_matched",
    "length_matched_without_self",
    "instructions",
}
ISN_FIGURES = {
    "isn_similarity",
    "isn_by_layer",
    "isn_by_layer_tuned",
    "isn_alteration_by_layer",
    "isn_venn",
    "length_matched",
    "set_size_by_length",
}
GROUPS = {f"general_unique-{name}" for name in (*COMPONENTS, "expert")}
EXPERT_TABLES = {
    "expert_frequency",
    "top_experts",
    "top_experts_kept",
    "ise_correlation",
    "ise_correlation_without_self",
    "ise_correlation_intervals",
    "ise_tests",
    "ise_pair_tests",
    "ise_alteration",
    "expert_shift",
    "length_matched-ise",
    "length_matched_without_self-ise",
    "general_unique",
    "lape",
    *GROUPS,
}
EXPERT_FIGURES = {
    "expert_frequency",
    "ise_correlation",
    "top_expert_share",
    "expert_shift",
    "expert_moved",
    "length_matched-ise",
    *GROUPS,
    *(f"lape-{name}" for name in COMPONENTS),
}
LISTS = {f"{kind}-{name}" for kind in ("belonging", "unique") for name in (*COMPONENTS, "expert")}


def names(folder: Path, part: str, ending: str) -> set[str]:
    return {path.name.removesuffix(ending) for path in (folder / part).iterdir() if path.name.endswith(ending)}


def table(folder: Path, name: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO((folder / "tables" / f"{name}.csv").read_text("utf-8"), newline="")))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Archive, Analysis, Path]:
    """An archive with every component, compared with a tuned twin, files and all; tests change nothing of it."""
    folder = tmp_path_factory.mktemp("compared")
    for name, seed, failed in (("base", 0, (2,)), ("tuned", 1, ())):
        write_random_moe_archive(folder / f"{name}.zarr", experts=9, seed=seed, failed=failed)
    base = open_archive(folder / "base.zarr")
    return base, analyze(base, folder / "out", tuned=folder / "tuned.zarr", epsilon=0.2), folder / "out"


def test_every_component_and_the_experts_are_written(compared) -> None:  # type: ignore[no-untyped-def]
    """Files of routed experts have plain names, those of further components end in theirs; experts have their own."""
    *_, folder = compared
    endings = ("", "-neuron", "-shared_expert_neuron")
    for form in (".csv", ".md", ".tex"):
        assert names(folder, "tables", form) == EXPERT_TABLES | {f"{n}{e}" for n in ISN_FILES for e in endings}
    drawn = EXPERT_FIGURES | {f"{n}{e}" for n in ISN_FIGURES for e in endings}
    assert names(folder, "figures", ".svg") == names(folder, "figures", ".png") == drawn
    assert names(folder, "lists", ".npz") == LISTS | {f"lape-{name}" for name in COMPONENTS}
    files = {"metrics.json", "metrics.schema.json", "components.json", "components.schema.json", "report.html"}
    assert {path.name for path in folder.iterdir()} == {".sparcom-files", "tables", "figures", "lists", *files}


def test_metrics_hold_the_numbers_of_the_functions(compared) -> None:  # type: ignore[no-untyped-def]
    """Each part of metrics.json is what the public functions return; the first component's is in front as well."""
    archive, result, folder = compared
    raw = json.loads((folder / "metrics.json").read_text("utf-8"))
    assert list(raw) == DENSE_FIELDS + EXPERT_FIELDS
    assert Metrics.model_validate(raw) == result.metrics
    assert [part["component"] for part in raw["components"]] == ["expert_neuron", "neuron", "shared_expert_neuron"]
    for part in raw["components"]:
        neurons = instruction_specific_neurons(archive, epsilon=0.2, component=part["component"])
        assert part["isn_similarity"]["matrix"] == category_similarity(neurons).matrix.tolist()
        assert part["isn_by_layer"]["mean_count"] == isn_by_layer(neurons).mean_count.tolist()
        assert part["isn_size"]["mean"] == neurons.sizes.mean()
    assert [part["isn_size"]["wanted"] for part in raw["components"]] == [44, 4, 8]  # of 2 · 9 · 12, 20 and 2 · 20
    for name in COMPONENT_PARTS:
        assert raw[name] == raw["components"][0][name]
    experts = instruction_experts(archive)
    means = category_experts(experts)
    assert raw["expert_frequency"]["mean"] == means.mean.tolist()
    assert raw["expert_frequency"]["overall"] == means.overall.tolist()
    correlation = expert_correlation(experts)
    assert raw["ise_correlation"]["matrix"] == correlation.matrix.tolist()
    assert raw["ise_correlation_without_self"]["matrix"] == correlation.without_self.tolist()
    assert raw["top_experts"]["overall_expert"] == top_experts(means).overall_expert.tolist()
    assert (raw["expert_shift"]["matched"], raw["expert_shift"]["only_tuned"]) == (9, 1)
    assert raw["archive"]["moe"] == {
        "layer_ids": [1, 2],
        "experts": 9,
        "experts_per_token": 2,
        "neurons": 12,
        "shared_neurons": 20,
    }


def test_dense_models_keep_their_form(typical, undrawn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """metrics.json of a dense model has the fields it always had, and no other."""
    analyze(typical.archive, tmp_path)
    raw = json.loads((tmp_path / "metrics.json").read_text("utf-8"))
    assert list(raw) == DENSE_FIELDS
    assert "moe" not in raw["archive"]


def test_files_do_not_depend_on_blocks_or_where_sets_lie(make_moe, undrawn, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Every number is the same for any block size, in memory or in a file, and of counts as of masks."""
    masks, counts = make_moe().archive, make_moe(granularity="count").archive
    found = []
    for archive, block_bytes, memory in ((masks, 1, 0), (masks, 97, 1 << 26), (counts, 500, 0)):
        monkeypatch.setattr("sparcom_analysis.kernels.bitsets.MEMORY_BYTES", memory)
        analyze(archive, tmp_path / "out", block_bytes=block_bytes, tuned=archive, match_tokens=False)
        files = {str(p.relative_to(tmp_path)): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
        found.append({name: data for name, data in files.items() if archive is masks or name.endswith(".csv")})
    assert found[0] == found[1]
    assert found[2] == {name: data for name, data in found[0].items() if name.endswith(".csv")}
    assert len(found[2]) == 3 * 11 + 16


@pytest.mark.parametrize("absent", [("dense_layers",), ("shared_neurons",), ("dense_layers", "shared_neurons")])
def test_models_without_dense_layers_or_shared_experts(make_moe, undrawn, tmp_path: Path, absent) -> None:  # type: ignore[no-untyped-def]
    """What a model does not have is not there; the report is whole all the same."""
    metrics = analyze(make_moe(**dict.fromkeys(absent, 0)).archive, tmp_path).metrics
    held = [part.component for part in metrics.components or []]
    assert ("neuron" in held) == ("dense_layers" not in absent)
    assert ("shared_expert_neuron" in held) == ("shared_neurons" not in absent)
    assert "neurons of routed experts" in (tmp_path / "report.html").read_text("utf-8")


def test_report_shows_experts(compared) -> None:  # type: ignore[no-untyped-def]
    """Every figure has a caption; table 6, the equations and what tuning shifts are there; it loads nothing."""
    *_, folder = compared
    report = (folder / "report.html").read_text("utf-8")
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", report, re.DOTALL)
    alternatives = re.findall(r'alt="(.*?)"', report, re.DOTALL)
    assert len(captions) == len(alternatives) == len(names(folder, "figures", ".svg")) == 3 * 7 + 13
    assert all(len(text) > 40 for text in captions)  # every figure has its sentence
    for text in (
        "equation 8",
        "equations 11 and 12",
        "equations 13 and 14",
        "table 6",
        "What tuning shifts",
        "marked *",
    ):
        assert text in report
    assert not re.search(r"url\(|@import|https?://|<script", report)
    assert "have another number of tokens in the tuned archive" in report


def test_tables_of_experts_hold_the_numbers(compared) -> None:  # type: ignore[no-untyped-def]
    """CSV values are those of metrics.json, to the last digit, with the rows over all instructions last."""
    _, result, tmp_path = compared
    metrics = result.metrics
    part, top, shift = metrics.expert_frequency, metrics.top_experts, metrics.expert_shift
    assert part is not None
    assert top is not None
    assert shift is not None
    header, *rows = table(tmp_path, "expert_frequency")
    assert header == ["category", "layer", "expert", "frequency", "low", "high"]
    assert [float(row[3]) for row in rows] == np.array([*part.mean, part.overall]).ravel().tolist()
    assert [row[:3] for row in rows[:8]] == [["CLS", str(1 + k // 9), str(k % 9)] for k in range(8)]
    assert rows[-1][:3] == ["(all)", "2", "8"]
    header, *rows = table(tmp_path, "top_experts")
    assert header == ["category", "layer", "rank", "expert", "frequency", "low", "high"]
    assert [int(row[3]) for row in rows] == np.array([*top.expert, top.overall_expert]).ravel().tolist()
    assert [row[2] for row in rows[:6]] == ["1", "2", "3", "4", "5", "1"]
    header, *rows = table(tmp_path, "expert_shift")
    assert header == ["category", "layer", "expert", "base", "tuned", "shift", "rank_base", "rank_tuned"]
    for row in rows[:18]:
        layer, expert = int(row[1]) - 1, int(row[2])
        assert float(row[5]) == shift.tuned[0][layer][expert] - shift.base[0][layer][expert]
        assert row[6] == (str(shift.top_base[0][layer].index(expert) + 1) if expert in shift.top_base[0][layer] else "")
    moved = np.abs(np.array(shift.tuned) - np.array(shift.base)).sum(axis=-1) / 2
    np.testing.assert_allclose(shift.moved, moved, rtol=0, atol=1e-12)


def test_a_category_called_all_is_not_taken_for_all() -> None:
    """Rows over all instructions never carry a category's name."""
    assert all_label(["a", "(all)", "((all))"]) == "(((all)))"


def test_damage_writes_nothing(make_moe, damage, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """A row without its choice ends the analysis and leaves no file."""
    archive = damage(make_moe().archive, "router/expert", (0, 0, 0), 65_535)
    with pytest.raises(DamagedArchiveError, match="instruction 'i000'"):
        analyze(archive, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_no_variance_is_said(make_moe, undrawn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Where every expert is always chosen the matrix is null, and report and command say why."""
    archive = make_moe(experts=2, choices=2).archive
    result = CliRunner().invoke(command, [archive.path, "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "10 instructions have no variance and are in no mean" in result.output
    raw = json.loads((tmp_path / "metrics.json").read_text("utf-8"))
    for name in ("ise_correlation", "ise_correlation_without_self"):
        assert raw[name]["matrix"] == raw[name]["low"] == [[None, None], [None, None]]
    assert "10 instructions choose every expert equally often" in (tmp_path / "report.html").read_text("utf-8")


def test_self_pairs_of_experts_are_shown_as_asked_for(make_moe, undrawn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Figure 4, the matched maps and the command show the version that the option names; both are always written."""
    archive = make_moe(lengths=(9, 14)).archive
    arguments = [archive.path, "--resamples", "20", "--permutations", "9", "--output", str(tmp_path)]
    for option, words in (([], "counted"), (["--exclude-self-pairs"], "left out")):
        result = CliRunner().invoke(command, [*arguments, *option])
        assert result.exit_code == 0, result.output
        metrics = Metrics.model_validate_json((tmp_path / "metrics.json").read_bytes())
        assert metrics.ise_correlation is not None
        assert metrics.ise_correlation_without_self is not None
        assert metrics.length_matched is not None
        parts = {"counted": metrics.ise_correlation, "left out": metrics.ise_correlation_without_self}
        assert metrics.shown_correlation == parts[words]
        assert f"mean Pearson correlation, pairs of an instruction with itself {words}" in result.output
        drawn = all_figures(metrics)["ise_correlation"]
        shown = drawn.axes[0]
        np.testing.assert_array_equal(shown.images[0].get_array(), parts[words].matrix)
        assert ("left out" in drawn.get_suptitle()) == (words == "left out")
        assert "two different instructions correlate" in correlation_sentence(metrics)
        assert ("diagonal of the figure counts" in correlation_sentence(metrics)) == (words == "counted")
        header, *rows = table(tmp_path, "ise_correlation_intervals")
        assert header[2:] == [
            f"{which}{end}" for which in ("with_self", "without_self") for end in ("", "_low", "_high")
        ]
        one = [parts[which] for which in ("counted", "left out")]
        assert [float(cell) for cell in rows[0][2:]] == [
            v for p in one for v in (p.matrix[0][0], p.low[0][0], p.high[0][0])
        ]
    assert metrics.tests.matrices[-1].category_within == [
        pytest.approx(parts["left out"].matrix[k][k], abs=1e-12) for k in range(2)
    ]


def test_the_command_prints_every_component(make_moe, undrawn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Sizes of each, the similarity of the first, the correlation of experts, and what tuning shifts."""
    base, tuned = make_moe().archive, make_moe(seed=1).archive
    result = CliRunner().invoke(command, [base.path, "--tuned", tuned.path, "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    for text in (
        "neurons of routed experts: epsilon",
        "neurons of dense layers: epsilon",
        "neurons of shared experts: epsilon",
        "similarity of categories in neurons of routed experts (mean Jaccard",
        "mean Pearson correlation, pairs of an instruction with itself counted",
        "Over the 10 inst",
    ):
        assert result.output.count(text) == 1
    assert result.output.count("mean Jaccard") == 1


def test_progress_covers_every_pass(make_moe, undrawn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Rows done rise to the rows of all passes: three components and the router, the same of the twin, and with T
    matched over rows drawn; and shuffles and resamples of each are counted too."""
    seen: list[tuple[int, int]] = []
    case = make_moe(lengths=(9, 12))
    options = {"tuned": case.archive, "matched_tokens": 9, "progress": lambda *at: seen.append(at)}
    analyze(case.archive, tmp_path, permutations=30, resamples=20, **options)  # type: ignore[arg-type]
    tokens = case.archive.tokens
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert all(done <= total for done, total in seen)
    work = 4 * (2 * tokens + 30 + (20 + 30))
    assert work + 4 * 9 * 10 <= seen[-1][0] == seen[-1][1] <= work + 4 * tokens
    assert Passes(None, 3).next() is None


@pytest.mark.parametrize(("count", "layers", "experts"), [(1, 1, 1), (2, 24, 60), (5, 3, 2), (12, 1, 8), (13, 40, 128)])
def test_maps_take_any_size(count: int, layers: int, experts: int) -> None:
    """From one category, layer and expert to many; past twelve categories one map over all, which says so."""
    maps = np.random.default_rng(0).random((count, layers, experts))
    titles, drawn = panels([f"c{k}" for k in range(count)], maps.tolist(), maps.mean(axis=0).tolist())
    assert titles == ([f"c{k}" for k in range(count)] if count <= 12 else ["all instructions of 13 categories"])
    for signed in (False, True):
        figure = maps_figure(titles, drawn, list(range(layers)), "title", "quantity", signed=signed)
        assert to_svg(figure).startswith(b"<?xml")
