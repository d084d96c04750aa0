"""No word of any figure lies outside of its canvas, whatever the number of categories and the length of their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from sparcom_analysis.figures import fitting
from sparcom_analysis.figures import neurons as figures
from sparcom_analysis.figures.every import every_figure
from sparcom_analysis.measure import Job, measure
from sparcom_analysis.options import Options
from sparcom_analysis.passes import Passes
from sparcom_analysis.report.files import component_views
from sparcom_analysis.schema.metrics import CategoryMatrix
from sparcom_analysis.summary.whole import summarise
from sparcom_data.archive import open_archive
from sparcom_data.testing import write_random_archive, write_random_moe_archive

MODEL = "org/Meta-Llama-3.1-70B-Instruct-tuned-on-everything"
LONG = ("Classification of long documents", "WWWWWWWWWWWWWWWWWWWWWWWWWWWWWW")  # W is the widest letter


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Text]:
    """Texts that were really drawn; labels of ticks past the axes never are."""
    found: list[Text] = []
    draw = Text.draw

    def record(self: Text, renderer: Any, *arguments: Any, **more: Any) -> None:
        found.append(self)
        draw(self, renderer, *arguments, **more)

    monkeypatch.setattr(Text, "draw", record)
    return found


def outside(figure: Figure, drawn: list[Text]) -> list[str]:
    """Texts that the canvas of the PNG cuts; laid out at the SVG's 72 dots per inch, as in an analysis."""
    figure.set_dpi(72)
    figure.draw_without_rendering()  # type: ignore[no-untyped-call]
    figure.set_layout_engine("none")
    figure.set_dpi(figures.DPI)
    canvas = FigureCanvasAgg(figure)
    drawn.clear()
    canvas.draw()
    page, renderer = figure.bbox, canvas.get_renderer()
    boxes = [(one.get_text(), one.get_window_extent(renderer)) for one in drawn if one.get_text().strip()]
    assert boxes
    return [
        f"{said!r} at {box}"
        for said, box in boxes
        if box.x0 < page.x0 or box.y0 < page.y0 or box.x1 > page.x1 or box.y1 > page.y1
    ]


def names(count: int, long: bool) -> list[str]:
    """Names of categories."""
    return [f"{LONG[k % 2]} {k}" if long else f"CAT{k}" for k in range(count)]


def figures_of(folder: Path, kind: str, categories: Sequence[str], model: str) -> dict[str, Figure]:
    """Every figure of an analysis of random archives with a tuned twin."""
    write: Any = write_random_archive if kind == "dense" else write_random_moe_archive
    for seed in (0, 1):
        write(folder / f"{seed}.zarr", categories=categories, per_category=3, seed=seed, lengths=(10, 14))
    base, tuned = (open_archive(folder / f"{seed}.zarr") for seed in (0, 1))
    for archive in (base, tuned):
        facts = archive.attributes
        archive.attributes = facts.model_copy(update={"model": facts.model.model_copy(update={"id": model})})
    options = Options(resamples=10, permutations=10)
    results = measure(Job(base, tuned, options, Passes(None, 1), 1 << 20, folder))
    metrics = summarise(results, options)
    return every_figure(metrics, component_views(metrics), results)


@pytest.mark.parametrize(
    ("kind", "count", "long"),
    [
        ("dense", 2, True),
        ("dense", 3, False),
        ("moe", 3, True),
        ("dense", 6, False),
        ("dense", 7, True),
        ("moe", 12, True),
    ],
)
def test_no_text_is_cut(tmp_path: Path, drawn: list[Text], kind: str, count: int, long: bool) -> None:
    """Titles, labels, legends and numbers of every figure, with two to twelve categories."""
    found = figures_of(tmp_path, kind, names(count, long), MODEL if long else "W" * 40)
    assert len(found) >= (8 if kind == "dense" else 25)
    cut = {name: said for name, figure in found.items() if (said := outside(figure, drawn))}
    assert cut == {}


@pytest.mark.parametrize("count", [1, 24, 40])
def test_no_text_of_a_large_matrix_is_cut(drawn: list[Text], count: int) -> None:
    """One category, as many as have numbers in the cells, and more."""
    matrix = CategoryMatrix(categories=names(count, True), matrix=[[0.5] * count] * count)
    figure = figures.similarity_figure(matrix, MODEL, self_pairs=False, detail="neurons of routed experts")
    assert outside(figure, drawn) == []


def test_text_is_wrapped_by_its_measured_width() -> None:
    """Lines break at spaces only where they must; a single long word stays whole, and own line breaks too."""
    line = "four words to wrap"
    whole = fitting.text_width(line, 10)
    assert fitting.wrapped(line, 10, whole + 0.01) == line
    assert fitting.wrapped(line, 10, whole * 0.6).count("\n") == 1
    assert fitting.wrapped("WWWWWWWWWW", 10, 0.1) == "WWWWWWWWWW"
    assert fitting.wrapped("a\nb c", 10, 5.0) == "a\nb c"
    assert all(
        fitting.text_width(part, 10) <= whole * 0.6 for part in fitting.wrapped(line, 10, whole * 0.6).split("\n")
    )
    assert fitting.text_width(r"a\$b", 10) == fitting.text_width("a$b", 10)
    assert fitting.widest([], 10) == 0
