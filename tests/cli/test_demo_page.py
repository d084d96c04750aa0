"""The demo's page: numbers and sentences of both reports side by side, in one file."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from sparcom_analysis import Metrics, analyze
from sparcom_cli.demo_page import Likeness, render_page, write_page
from sparcom_data.testing import write_random_archive, write_random_moe_archive


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo's folder with both reports in it; figures are the least that SVG can be. Tests change nothing of it."""
    folder = tmp_path_factory.mktemp("demo")
    write_random_archive(folder / "d.zarr")
    write_random_moe_archive(folder / "m.zarr", experts=9, dense_layers=0)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("to_png", "to_svg"):
            patch.setattr(f"sparcom_analysis.figures.neurons.{name}", lambda _figure: b"<svg/>")
        analyze(folder / "d.zarr", folder / "report", epsilon=0.2)
        analyze(folder / "m.zarr", folder / "report-moe", epsilon=0.2)
    return folder


def metrics(folder: Path) -> Metrics:
    return Metrics.model_validate_json((folder / "metrics.json").read_text("utf-8"))


def test_likeness_is_the_mean_over_categories() -> None:
    """The diagonal and what lies off it, pairs that do not exist left out, and how many times one is the other."""
    found = Likeness.of("x", "y", [[0.5, 0.2, None], [0.2, 0.7, 0.4], [None, 0.4, None]])
    assert (found.within, found.between) == (pytest.approx(0.6), pytest.approx(0.3))
    assert found.ratio == pytest.approx(2.0)
    assert Likeness.of("x", "y", [[None]]).ratio is None
    assert Likeness.of("x", "y", [[0.5, -0.1], [-0.1, 0.5]]).ratio is None, "a ratio to what is not above 0"


def test_the_page_has_what_both_reports_have(output: Path) -> None:
    """Facts of both models, a figure of every population, routes, and the tables' numbers; it links to the reports."""
    page = write_page(output, output / "report", output / "report-moe").read_text("utf-8")
    dense, mixture = metrics(output / "report"), metrics(output / "report-moe")
    assert mixture.archive.moe is not None
    for title in ("Dense model", "Mixture: routed experts", "Mixture: shared experts"):
        assert page.count(f"<h3>{title}</h3>") == 2, "similarity and layers of each population"
    assert page.count("data:image/svg+xml;base64,") == 9
    for view in (dense, *(mixture.of(part.component) for part in mixture.components or [])):
        assert f"{view.isn_size.mean:,.1f}" in page
        within = Likeness.of("", "", view.isn_similarity_without_self.matrix).within
        assert f'<td class="num">{within:.3f}</td>' in page
    passed = mixture.archive.moe.shared_neurons + mixture.archive.moe.experts_per_token * mixture.archive.moe.neurons
    assert f"In the mixture it passes {passed}" in re.sub(r"\s+", " ", page)
    assert mixture.top_experts is not None
    assert f"{mixture.top_experts.expert[0][0][0]} ({mixture.top_experts.frequency[0][0][0]:.2f})" in page
    for report in ("report/report.html", "report-moe/report.html"):
        assert f'href="{report}"' in page
        assert (output / report).is_file()


def test_the_page_loads_nothing(output: Path) -> None:
    """No address but those of the two reports beside it."""
    page = render_page(output / "report", output / "report-moe")
    assert not re.findall(r"""(?:src|href)=["'](?!data:|report)""", page)
    assert "http" not in page
    assert "<script" not in page


def test_names_are_text(output: Path, tmp_path: Path) -> None:
    """What a model or a category is called is never markup."""
    for name in ("report", "report-moe"):
        shutil.copytree(output / name, tmp_path / name)
        path = tmp_path / name / "metrics.json"
        raw = json.loads(path.read_text("utf-8"))
        raw["archive"]["model_name"] = "<b>odd</b>"
        path.write_text(json.dumps(raw))
    page = render_page(tmp_path / "report", tmp_path / "report-moe")
    assert "&lt;b&gt;odd&lt;/b&gt;" in page
    assert "<b>odd" not in page


def test_a_mixture_without_shared_experts_has_no_column_for_them(output: Path, tmp_path: Path) -> None:
    """One that has routed experts alone, like Mixtral, is told as that."""
    write_random_moe_archive(tmp_path / "m.zarr", shared_neurons=0, dense_layers=0)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("to_png", "to_svg"):
            patch.setattr(f"sparcom_analysis.figures.neurons.{name}", lambda _figure: b"<svg/>")
        analyze(tmp_path / "m.zarr", tmp_path / "report-moe", epsilon=0.2)
    page = render_page(output / "report", tmp_path / "report-moe")
    assert "of a shared expert" not in page
    assert "<h3>Mixture: shared experts</h3>" not in page
