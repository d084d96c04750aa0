"""The whole analysis: which files it writes, and that they hold the numbers that the functions give."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from sparcom_analysis import (
    Metrics,
    activation_frequencies,
    analyze,
    category_similarity,
    instruction_specific_neurons,
    isn_by_layer,
)
from sparcom_data.errors import IncompleteArchiveError, StorageError

FIGURES = (
    "isn_similarity",
    "isn_by_layer",
    "general_unique-neuron",
    "lape-neuron",
    "length_matched",
    "set_size_by_length",
)
TABLES = (
    "isn_similarity",
    "isn_similarity_without_self",
    "isn_similarity_intervals",
    "isn_by_layer",
    "isn_by_layer_intervals",
    "isn_tests",
    "isn_pair_tests",
    "general_unique",
    "general_unique-neuron",
    "lape",
    "length_matched",
    "length_matched_without_self",
    "instructions",
)
FILES = {
    ".sparcom-files",
    "metrics.json",
    "metrics.schema.json",
    "components.json",
    "components.schema.json",
    "report.html",
    *(f"lists/{name}-neuron.npz" for name in ("belonging", "unique", "lape")),
    *(f"figures/{name}.{form}" for name in FIGURES for form in ("png", "svg")),
    *(f"tables/{name}.{form}" for name in TABLES for form in ("csv", "md", "tex")),
}


def files_under(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def table(folder: Path, name: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO((folder / "tables" / f"{name}.csv").read_text(encoding="utf-8"), newline="")))


def test_all_files_are_written_and_no_other(typical, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The folder holds exactly the documented files, and figures of their kind."""
    result = analyze(typical.archive.path, tmp_path / "out")
    found = files_under(tmp_path / "out")
    assert set(found) == FILES
    assert result.report == tmp_path / "out" / "report.html"
    assert all(data.startswith(b"\x89PNG") for name, data in found.items() if name.endswith(".png"))
    assert all(b"<svg" in data[:1000] for name, data in found.items() if name.endswith(".svg"))


def test_metrics_hold_the_numbers_of_the_functions(typical, undrawn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """metrics.json has the form of the schema and the values that the public functions return."""
    analyze(typical.archive, tmp_path, epsilon=0.2)
    text = (tmp_path / "metrics.json").read_text(encoding="utf-8")
    metrics, raw = Metrics.model_validate_json(text), json.loads(text)
    neurons = instruction_specific_neurons(typical.archive, epsilon=0.2)
    similarity = category_similarity(neurons)
    assert raw["categories"] == raw["isn_similarity"]["categories"] == ["QA", "CODE", "(none)"]
    assert raw["isn_similarity"]["matrix"] == similarity.matrix.tolist()
    assert raw["isn_similarity_without_self"]["matrix"] == similarity.without_self.tolist()
    assert raw["isn_by_layer"]["mean_count"] == isn_by_layer(neurons).mean_count.tolist()
    assert raw["isn_by_layer"]["layer_ids"] == [0, 1, 2]
    assert raw["isn_size"] == {
        "wanted": 12,
        "mean": neurons.sizes.mean(),
        "minimum": neurons.sizes.min(),
        "maximum": neurons.sizes.max(),
        "empty": 0,
    }
    assert (metrics.settings.rows, metrics.settings.epsilon, metrics.settings.threshold) == ("prompt", 0.2, None)
    assert metrics.archive.model == "random"


def test_left_out_instructions_are_reported(make_case, undrawn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Counts of instructions and tokens by category and by reason add up to the archive's."""
    case = make_case((5, 6, 7, 8, 9), ("a", "b", "a", "c", "a"), failed=(3,), unfinished=(4,))
    facts = analyze(case.archive, tmp_path).metrics.instructions
    assert (facts.total, facts.used, facts.tokens) == (5, 3, 18)
    left_out = {"pending": 1, "failed": 1, "cancelled": 0, "without_rows": 0, "unknown_origin": 0}
    assert facts.left_out.model_dump() == left_out
    assert [item.category for item in facts.by_category] == ["a", "b", "c"]
    assert [item.instructions for item in facts.by_category] == [2, 1, 0]
    assert [item.left_out for item in facts.by_category] == [1, 0, 1]
    assert [item.tokens for item in facts.by_category] == [12, 6, 0]
    assert [item.mean_tokens for item in facts.by_category] == [6.0, 6.0, None]
    assert facts.by_category[2].mean_isn is None
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "2 of 5 instructions were left out: 1 not run yet, 1 failed, 0 cancelled, 0 without such tokens" in report


def test_a_category_of_one_instruction_has_no_pair(make_case, undrawn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Without self pairs its diagonal cell is null in JSON, empty in CSV and n/a in the report, never 0."""
    case = make_case((5, 6, 7), ("a", "a", "b"))
    metrics = analyze(case.archive, tmp_path, exclude_self_pairs=True).metrics
    raw = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert raw["isn_similarity_without_self"]["matrix"][1][1] is None
    assert raw["isn_similarity"]["matrix"][1][1] == 1.0
    assert table(tmp_path, "isn_similarity_without_self")[2][2] == ""
    assert "n/a stands where a category has only one instruction" in (tmp_path / "report.html").read_text("utf-8")
    assert metrics.shown_similarity == metrics.isn_similarity_without_self


def test_tables_hold_the_same_numbers(typical, undrawn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """CSV values are those of metrics.json, to the last digit; the threshold of each instruction is its own."""
    result = analyze(typical.archive, tmp_path, epsilon=0.2)
    part = result.metrics.isn_similarity
    rows = table(tmp_path, "isn_similarity")
    assert rows[0] == ["category", *part.categories]
    assert [[float(cell) for cell in row[1:]] for row in rows[1:]] == part.matrix
    layers = table(tmp_path, "isn_by_layer")
    assert [row[0] for row in layers] == ["layer", "0", "1", "2"]
    assert np.array([row[1:] for row in layers[1:]], float).T.tolist() == result.metrics.isn_by_layer.mean_count
    header, *lines = table(tmp_path, "instructions")
    assert header == ["id", "category", "tokens", "isn", "minimum_count", "minimum_p"]
    for line, index in zip(lines, result.neurons.instruction, strict=True):
        p = activation_frequencies(typical.archive, int(index))
        assert int(line[3]) == int((p >= float(line[5])).sum())
        assert np.isclose(p[p >= float(line[5])].min(), float(line[5]))


def test_files_do_not_depend_on_the_block_size(typical, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Every byte of every file is the same for any block size, and from run to run."""
    results = []
    for block_bytes in (1, 97, 97):
        analyze(typical.archive, tmp_path / "out", block_bytes=block_bytes)
        results.append(files_under(tmp_path / "out"))
    assert results[0] == results[1] == results[2]


def test_other_files_stay_and_own_files_are_replaced(typical, undrawn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """A folder that is in use keeps what is not ours."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder / "metrics.json").write_text("old")
    analyze(typical.archive, folder)
    assert (folder / "notes.txt").read_text() == "mine"
    assert set(files_under(folder)) == FILES | {"notes.txt"}
    assert json.loads((folder / "metrics.json").read_text())["schema_version"] == 2


def test_an_output_that_is_a_file_is_refused_before_the_pass(typical, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """A wrong output is found before the masks are read."""
    (tmp_path / "file").write_text("")
    seen: list[object] = []
    with pytest.raises(StorageError, match=r"must be a folder; .*file is a file"):
        analyze(typical.archive, tmp_path / "file", progress=lambda *at: seen.append(at))
    with pytest.raises(StorageError, match="Not a directory"):
        analyze(typical.archive, tmp_path / "file" / "below", progress=lambda *at: seen.append(at))
    assert not seen


def test_too_few_instructions_write_nothing(make_case, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """An analysis that is refused leaves no file."""
    case = make_case((4, 5), "ab", failed=(0,))
    with pytest.raises(IncompleteArchiveError):
        analyze(case.archive, tmp_path / "out")
    assert files_under(tmp_path / "out") == {}


def test_one_category_and_one_layer_are_enough(make_case, undrawn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The smallest analysis: two instructions of one category, one layer of one neuron."""
    case = make_case((1, 1), ("", ""), layers=1, neurons=1, rates=(1.0,))
    metrics = analyze(case.archive, tmp_path).metrics
    assert metrics.isn_similarity.model_dump(exclude={"low", "high"}) == {"categories": ["(none)"], "matrix": [[1.0]]}


def test_no_active_neuron_at_all(make_case, undrawn, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Masks of zeros give empty sets, similarity 0, and a report that says so."""
    case = make_case((3, 4, 5), "aab", rates=(0.0,))
    metrics = analyze(case.archive, tmp_path).metrics
    assert metrics.isn_similarity.matrix == [[0.0, 0.0], [0.0, 0.0]]
    assert metrics.isn_size.empty == 3
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "3 instructions have no ISN at all" in report
    assert "No instruction has an ISN in any layer" in report
