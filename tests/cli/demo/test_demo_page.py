"""The demo's page and ending: numbers and sentences of both reports side by side, in one file."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from sparcom_analysis import Metrics, analyze
from sparcom_cli.demo.comparison import likeness, write_comparison
from sparcom_data.errors import InvalidInputError
from sparcom_data.testing import write_random_archive, write_random_moe_archive


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo's folder with both reports in it; figures are the least that SVG can be. Tests change nothing of it."""
    folder = tmp_path_factory.mktemp("demo")
    for seed, ending in enumerate(("", "-tuned")):
        write_random_archive(folder / f"d{ending}.zarr", seed=seed)
        write_random_moe_archive(folder / f"m{ending}.zarr", experts=9, dense_layers=0, seed=seed)
    compare(folder, "d", "report")
    compare(folder, "m", "report-moe")
    return folder


def compare(folder: Path, name: str, report: str) -> None:
    """Analyze an archive and that of the fine-tuned model, without drawing."""
    few: dict[str, Any] = {"epsilon": 0.2, "resamples": 20, "permutations": 40}
    with pytest.MonkeyPatch.context() as patch:
        for convert in ("to_png", "to_svg"):
            patch.setattr(f"sparcom_analysis.figures.neurons.{convert}", lambda _figure: b"<svg/>")
        analyze(folder / f"{name}.zarr", folder / report, tuned=folder / f"{name}-tuned.zarr", **few)


def page_of(folder: Path, *reports: Path, tuned_here: bool = True) -> str:
    """Write the page into `folder`; return its text."""
    return write_comparison(folder, *reports, tuned_here=tuned_here)[0].read_text("utf-8")


def metrics(folder: Path) -> Metrics:
    return Metrics.model_validate_json((folder / "metrics.json").read_text("utf-8"))


def test_likeness_is_the_mean_over_categories() -> None:
    """The means of the diagonal and of the rest, without missing pairs, and their ratio."""
    within, between, ratio = likeness([[0.5, 0.2, None], [0.2, 0.7, 0.4], [None, 0.4, None]])
    assert (within, between) == (pytest.approx(0.6), pytest.approx(0.3))
    assert ratio == pytest.approx(2.0)
    assert likeness([[None]])[2] is None
    assert likeness([[0.5, -0.1], [-0.1, 0.5]])[2] is None, "a ratio to a value that is not above 0"


def test_the_page_has_what_both_reports_have(output: Path) -> None:
    """Facts of all models, figures of every population, routes, and the tables' numbers; it links to every section of
    both reports."""
    page = page_of(output, output / "report", output / "report-moe")
    dense, moe = metrics(output / "report"), metrics(output / "report-moe")
    assert moe.archive.moe is not None
    for title in ("Dense model", "MoE model: routed experts", "MoE model: shared experts"):
        assert page.count(f"<h3>{title}</h3>") == (2 if "Dense" in title else 1), "similarity, and in short"
        assert page.count(f"<h4>{title}</h4>") == (1 if "shared" in title else 2), "layers, and single instructions"
    assert page.count("data:image/svg+xml;base64,") == 11
    for view in (dense, *(moe.of(part.component) for part in moe.components or [])):
        assert view.isn_alteration is not None
        for number in (view.isn_size.mean, view.isn_alteration.overall.tuned_isn):
            assert f'<td class="num">{number:,.1f}</td>' in page
        within = likeness(view.isn_similarity_without_self.matrix)[0]
        for value in (within, *view.isn_alteration.alteration, view.isn_alteration.overall.alteration):
            assert f'<td class="num">{value:.3f}</td>' in page
    passed = moe.archive.moe.shared_neurons + moe.archive.moe.experts_per_token * moe.archive.moe.neurons
    assert f"In the MoE model it passes {passed}" in re.sub(r"\s+", " ", page)
    for folder in ("report", "report-moe"):
        report = (output / folder / "report.html").read_text("utf-8")
        anchors = {name for name in re.findall(r'<h2 id="([a-z]+)"', report) if name != "short"}
        assert len(anchors) >= 10
        assert set(re.findall(rf'href="{folder}/report\.html#([a-z]+)"', page)) == anchors


def test_experts_that_stay_are_marked(output: Path) -> None:
    """Table 6: the base's most chosen experts in their order, a star where they are among the tuned model's too."""
    page = page_of(output, output / "report", output / "report-moe")
    shift = metrics(output / "report-moe").expert_shift
    assert shift is not None
    for top, kept in zip(shift.top_base, shift.top_kept, strict=True):
        for experts, marks in zip(top, kept, strict=True):
            cell = ", ".join(f"{expert}{'*' if mark else ''}" for expert, mark in zip(experts, marks, strict=True))
            assert f"<td>{cell}</td>" in page
    assert any(mark for kept in shift.top_kept for marks in kept for mark in marks)
    assert any(not mark for kept in shift.top_kept for marks in kept for mark in marks)


def test_the_terminal_shows_alteration_by_category(output: Path) -> None:
    """A line for each population's neurons and one for the experts, with the numbers of tables 1 and 2."""
    _, table = write_comparison(output, output / "report", output / "report-moe", tuned_here=True)
    head, names, *lines = table.splitlines()
    assert head.startswith("alteration by tuning (0: the same")
    assert names.split() == ["CLS", "CODE", "all"]
    dense, moe = metrics(output / "report"), metrics(output / "report-moe")
    parts = [view.isn_alteration for view in (dense, *(moe.of(c.component) for c in moe.components or []))]
    for line, part in zip(lines, [*parts, moe.ise_alteration], strict=True):
        assert part is not None
        expected = [f"{value:.3f}" for value in (*part.alteration, part.overall.alteration)]
        assert line.split()[-3:] == expected
    assert {len(line) for line in (names, *lines)} == {len(names)}


def test_a_report_without_a_tuned_model_is_refused(output: Path, tmp_path: Path) -> None:
    """The page is about pairs; a report of one model alone is refused."""
    with pytest.MonkeyPatch.context() as patch:
        for convert in ("to_png", "to_svg"):
            patch.setattr(f"sparcom_analysis.figures.neurons.{convert}", lambda _figure: b"<svg/>")
        analyze(output / "d.zarr", tmp_path / "alone", epsilon=0.2, resamples=0, permutations=0)
    with pytest.raises(InvalidInputError, match="analyze both with --tuned first"):
        page_of(tmp_path, tmp_path / "alone", output / "report-moe")


def test_the_page_loads_nothing(output: Path, tmp_path: Path) -> None:
    """No address but those of the two reports beside it."""
    page = page_of(tmp_path, output / "report", output / "report-moe")
    assert not re.findall(r"""(?:src|href)=["'](?!data:|report)""", page)
    assert "http" not in page
    assert "<script" not in page


def test_what_is_not_known_of_tuning_is_not_said(output: Path, tmp_path: Path) -> None:
    """The page tells how the models were tuned only where the demo made them."""
    pages = [page_of(tmp_path, output / "report", output / "report-moe", tuned_here=here) for here in (True, False)]
    for words in ("were trained on other instructions of the same set", "The tuning is short."):
        assert [words in page for page in pages] == [True, False]


def test_names_are_text(output: Path, tmp_path: Path) -> None:
    """Names of models and categories are never markup."""
    for name in ("report", "report-moe"):
        shutil.copytree(output / name, tmp_path / name)
        path = tmp_path / name / "metrics.json"
        raw = json.loads(path.read_text("utf-8"))
        raw["archive"]["model_name"] = "<b>odd</b>"
        path.write_text(json.dumps(raw))
    page = page_of(tmp_path, tmp_path / "report", tmp_path / "report-moe", tuned_here=True)
    assert "&lt;b&gt;odd&lt;/b&gt;" in page
    assert "<b>odd" not in page


def test_an_moe_model_without_shared_experts_has_no_column_for_them(output: Path, tmp_path: Path) -> None:
    """A model with routed experts alone, like Mixtral."""
    for seed, ending in enumerate(("", "-tuned")):
        write_random_moe_archive(tmp_path / f"m{ending}.zarr", shared_neurons=0, dense_layers=0, seed=seed)
    compare(tmp_path, "m", "report-moe")
    page = page_of(tmp_path, output / "report", tmp_path / "report-moe", tuned_here=True)
    assert "of a shared expert" not in page
    assert "<h3>MoE model: shared experts</h3>" not in page
