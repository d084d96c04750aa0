"""Files of a report, and agreement between page, tables and metrics.json."""

from __future__ import annotations

import base64
import csv
import html
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import xarray as xr

from sparcom_analysis import analyze, read_metrics, write_report
from sparcom_analysis.report.page import MAX_SENTENCES, lead_sentences
from sparcom_analysis.report.write import run_files
from sparcom_data.errors import InvalidInputError, StorageError

pytestmark = pytest.mark.usefixtures("registry")
undrawn = pytest.mark.usefixtures("undrawn")
VOID = {"meta", "link", "img", "br", "hr"}


class Page(HTMLParser):
    """Collects what a browser would load, ids, and the text of cells; tags must nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.loads += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "action", "data"}]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def files_under(folder: Path) -> dict[str, bytes]:
    """Return every file by its path below the folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_node_has_its_files(folder: Path, runs: dict[str, xr.DataTree]) -> None:
    """Tables as CSV and LaTeX, figures as SVG and PDF, named by the path in the tree; and no other file."""
    stems = {node.path.strip("/").replace("/", "-") for node in runs["moe"].subtree if "measure" in node.attrs}
    drawn = {stem for stem in stems if "finetuning" not in stem}
    assert {"similarity", "tuned-similarity", "shared_expert_neuron-finetuning_jaccard", "tuned-curves"} <= stems
    found = files_under(folder)
    lists = {name for name in found if name.startswith(("lists/", "components"))}
    assert set(found) - lists == {
        ".sparcom-files",
        "metrics.json",
        "metrics.schema.json",
        "report.html",
        *(f"tables/{stem}.{kind}" for stem in stems for kind in ("csv", "tex")),
        *(f"figures/{stem}.{kind}" for stem in drawn for kind in ("svg", "pdf")),
    }


def test_figures_are_drawings(runs: dict[str, xr.DataTree]) -> None:
    """SVG files are XML, PDF files are PDF, and the page holds the drawing of the file."""
    kept = xr.DataTree.from_dict({"/": xr.Dataset(), "curves": runs["moe"]["curves"].to_dataset()})
    kept.attrs = runs["moe"].attrs
    files = run_files(kept)
    assert ET.fromstring(files["figures/curves.svg"]).tag.endswith("svg")  # noqa: S314  (our own file)
    assert files["figures/curves.pdf"].startswith(b"%PDF")
    assert base64.b64encode(files["figures/curves.svg"]) in files["report.html"]


def test_the_page_loads_nothing(folder: Path) -> None:
    """Everything is in the file: no address is fetched, no script runs, tags nest, ids are unique."""
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert all(load.startswith(("data:", "#")) for load in page.loads)
    assert {load[1:] for load in page.loads if load.startswith("#")} <= set(page.ids)
    assert "script" not in page.tags
    assert not re.search(r"url\(|@import|https?://", text)


def test_every_figure_and_table_is_on_the_page(folder: Path) -> None:
    """Each figure has a caption, also as alternative text; each table has its place."""
    text = (folder / "report.html").read_text(encoding="utf-8")
    ids = set(Page(text).ids)
    assert {f"figure-{path.stem}" for path in (folder / "figures").iterdir()} <= ids
    assert {f"table-{path.stem}" for path in (folder / "tables").iterdir()} <= ids
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text, re.DOTALL)
    assert captions == re.findall(r'alt="(.*?)"', text, re.DOTALL)
    assert all(len(caption) > 20 for caption in captions)


def numbers_in(value: Any) -> set[str]:
    """Return every number of metrics.json, as the page rounds them."""
    if isinstance(value, dict):
        return set().union(*map(numbers_in, value.values()))
    if isinstance(value, list):
        return set().union(*map(numbers_in, value))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return set()
    forms = {f"{value:,.3f}", f"{value:,.1f}", f"{value:.2g}", f"{value:,}"}
    return {form.replace("-", "−") for form in forms}


def test_every_number_of_the_page_is_in_metrics(folder: Path) -> None:
    """Each number in a cell of the page, or in a sentence at its top, is in metrics.json."""
    known = numbers_in(json.loads((folder / "metrics.json").read_bytes()))
    text = (folder / "report.html").read_text(encoding="utf-8")
    cells = [cell for cell in Page(text).cells if re.fullmatch(r"[−\d.,–() ]+", cell) and re.search(r"\d", cell)]
    assert len(cells) > 50
    found = {number for cell in cells for number in re.findall(r"−?\d[\d,]*(?:\.\d+)?", cell)}
    assert found <= known
    answers = re.search(r'<ul class="answers">(.*?)</ul>', text, re.DOTALL)
    assert answers is not None
    assert set(re.findall(r"\d+\.\d+", answers[1])) <= known


def test_tables_hold_the_numbers_of_metrics(folder: Path) -> None:
    """CSV values equal those of metrics.json to the last digit; LaTeX has equally many columns in every row."""
    held = json.loads((folder / "metrics.json").read_bytes())["measures"]["similarity"]["data_vars"]["value"]["data"]
    with (folder / "tables/similarity.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["value"]) for row in rows] == [cell for version in held for line in version for cell in line]
    assert [row["category"] for row in rows] == ["a|<b>", "a|<b>", "$x_&", "$x_&"] * 2
    for path in (folder / "tables").glob("*.tex"):
        lines = [line for line in path.read_text("utf-8").splitlines() if line.endswith(r" \\")]
        assert len({len(re.findall(r"(?<!\\)&", line)) for line in lines}) == 1, path.name


def test_the_answer_comes_first(folder: Path) -> None:
    """Title, key sentences and figures come before all details; each reason appears once."""
    text = (folder / "report.html").read_text(encoding="utf-8")
    top = text[: text.index("<details")]
    assert re.search(r"<h1>Instruction-specific neurons and experts of random</h1>", top)
    sentences = re.findall(r"<li>(.*?)</li>", top)
    assert [sentence.split()[0] for sentence in sentences] == ["Mean", "finetuning_jaccard", "curves"]
    assert top.count("<img") == 2
    assert text.count("Such a thing needs &lt;other&gt; data.") == 1
    assert "Made-up impossible; Made-up impossible (dense layers); Made-up impossible (shared experts)" in text
    assert text.count("null hypothesis") == 1
    assert "What curves is." in text
    assert "<h3>random, fine-tuned, shared experts</h3>" in text


@undrawn
def test_names_cannot_inject(folder: Path, make_case: Callable[..., Any], tmp_path: Path) -> None:
    """A category that looks like HTML, or holds control characters, is shown as text."""
    assert "a|&lt;b&gt;" in (folder / "report.html").read_text(encoding="utf-8")
    name = "<script>alert(1)</script>$\\frac\x1b"
    run = analyze(make_case((3, 4, 5), (name, name, "=1+2")).archive, n_resamples=20, n_permutations=0)
    report = write_report(run, tmp_path / "hostile")
    text = report.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;$\\frac\ufffd" in text
    assert read_metrics(report.parent).attrs["categories"] == [name, "=1+2"]
    for path in (report.parent / "tables").glob("*.tex"):
        assert "\x1b" not in path.read_text(encoding="utf-8")


@undrawn
def test_a_category_of_one_instruction_has_no_pair(make_case: Callable[..., Any], tmp_path: Path) -> None:
    """Without self pairs its diagonal cell is null in JSON, empty in CSV and n/a on the page, never 0."""
    run = analyze(make_case((5, 6, 7), "aab").archive, n_resamples=0, n_permutations=0)
    report = write_report(run, tmp_path)
    held = json.loads((tmp_path / "metrics.json").read_bytes())["measures"]["similarity"]["data_vars"]["value"]["data"]
    assert (held[0][1][1], held[1][1][1]) == (1.0, None)
    with (tmp_path / "tables/similarity.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file))[-1] == ["False", "b", "b", ""]
    assert ">n/a</td>" in report.read_text(encoding="utf-8")
    assert "null hypothesis" not in report.read_text(encoding="utf-8")


@undrawn
def test_left_out_instructions_are_reported(make_case: Callable[..., Any], tmp_path: Path) -> None:
    """The page gives the number left out by reason, and warns about the counted positions."""
    case = make_case((5, 6, 7, 8), "abab", failed=(3,), positions="response", responses=(3, 4, 5, 2))
    text = write_report(analyze(case.archive, n_resamples=20, n_permutations=0), tmp_path).read_text(encoding="utf-8")
    assert "1 of 4 instructions were left out: 0 not run yet, 1 failed, 0 cancelled, 0 without response tokens" in text
    assert '<p class="note">Frequencies count response tokens.' in text
    assert "needs at least 40 resamples" in text


@undrawn
@pytest.mark.parametrize(("categories", "each"), [(["a"], 3), (list("abcd"), 1), ([""], 3)])
def test_any_number_of_categories(categories: list[str], each: int, tmp_path: Path, make_case: Any) -> None:
    """One category, none, or one instruction per category: a report is written."""
    case = make_case([8 + k for k in range(len(categories) * each)], categories * each)
    run = analyze(case.archive, n_resamples=20, n_permutations=20)
    assert run.attrs["categories"] == [name or "(none)" for name in categories]
    Page(write_report(run, tmp_path).read_text(encoding="utf-8"))


@undrawn
def test_files_are_reproducible(archives: dict[str, Path], runs: dict[str, xr.DataTree], tmp_path: Path) -> None:
    """Every byte is the same for any block size and when written again; other files in the folder stay."""
    (tmp_path / "notes.txt").write_bytes(b"mine")
    (tmp_path / "metrics.json").write_bytes(b"old")
    write_report(runs["dense"], tmp_path)
    first = files_under(tmp_path)
    options = {"n_resamples": 20, "n_permutations": 20, "seed": 3, "top": 0.2}
    again = analyze(archives["dense-base"], archives["dense-tuned"], block_bytes=97, **options)  # type: ignore[arg-type]
    write_report(again, tmp_path)
    assert files_under(tmp_path) == first
    assert first["notes.txt"] == b"mine"


@undrawn
def test_a_report_is_written_from_metrics_alone(folder: Path, runs: dict[str, xr.DataTree], tmp_path: Path) -> None:
    """A run read back from metrics.json gives the same page and tables."""
    seen: list[tuple[int, int]] = []
    write_report(read_metrics(folder), tmp_path / "again", progress=lambda *at: seen.append(at))
    first, again = files_under(folder), files_under(tmp_path / "again")
    for name in again.keys() - {".sparcom-files"}:
        assert again[name] == first[name], name
    assert seen[-1][0] == seen[-1][1] == len([node for node in runs["moe"].subtree if "measure" in node.attrs])


@undrawn
def test_an_invalid_output_is_refused(archives: dict[str, Path], runs: dict[str, xr.DataTree], tmp_path: Path) -> None:
    """A file, or a folder in an archive, is refused as output."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"must be a folder; .*file is a file"):
        write_report(runs["dense"], tmp_path / "file")
    with pytest.raises(InvalidInputError, match="outside any archive"):
        write_report(runs["dense"], archives["dense-base"])


@undrawn
def test_several_runs_stand_side_by_side(runs: dict[str, xr.DataTree], tmp_path: Path) -> None:
    """Each run has its folder, linked from the page; panels and tables have all models and one range."""
    report = write_report({"One & only": runs["dense"], "figures": runs["moe"]}, tmp_path)
    text = report.read_text(encoding="utf-8")
    page = Page(text)
    assert [load for load in page.loads if not load.startswith(("data:", "#"))] == [
        "one-only/report.html",
        "figures-2/report.html",
    ]
    for name in ("one-only", "figures-2"):
        assert read_metrics(tmp_path / name).attrs["format_version"] == 3
        Page((tmp_path / name / "report.html").read_text(encoding="utf-8"))
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{name}.{kind}" for name in ("similarity", "curves") for kind in ("svg", "pdf")
    }
    assert "One &amp; only" in text
    first = next(lead_sentences(runs["dense"]))
    assert f"<li>{html.escape('One & only: ' + first, quote=False)}</li>" in text
    assert 2 <= text.split('class="answers">')[1].split("</ul>")[0].count("<li>") <= MAX_SENTENCES
    assert page.cells[-12:-6] == ["model", "a|<b>", "$x_&", "all", "One & only", "0.500 (0.400–0.600)"]
    table = (tmp_path / "tables/finetuning_jaccard.tex").read_text("utf-8")
    assert r"figures & 0.500 (0.400\textendash{}0.600)" in table
    assert len(page.ids) == len(set(page.ids))
    write_report([runs["dense"], runs["dense"]], tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} >= {"random", "random-2"}
    assert not (tmp_path / "one-only" / "metrics.json").exists()
