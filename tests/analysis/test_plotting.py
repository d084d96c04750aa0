"""Plots: no text is clipped, names are whole, `ax` is used, ranges and colors match the numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from sparcom_analysis import plotting
from sparcom_analysis.plotting import fitting as fit

MODEL = "org/Meta-Llama-3.1-70B-Instruct-tuned-on-everything"
LONG = ("Classification of long documents", "W" * 36)  # W is the widest letter
RNG = np.random.default_rng(0)


def names(count: int, long: bool) -> list[str]:
    """Return names of categories with up to 40 characters."""
    return [f"{LONG[k % 2]} {k}" if long else f"CAT{k}" for k in range(count)]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Text, Any]]:
    """Return text, artist and box of every drawn text."""
    found: list[tuple[str, Text, Any]] = []
    draw = Text.draw

    def record(self: Text, renderer: Any) -> None:
        draw(self, renderer)
        if self.get_visible() and self.get_text().strip():
            found.append((self.get_text(), self, self.get_window_extent(renderer)))

    monkeypatch.setattr(Text, "draw", record)
    return found


def redraw(figure: Figure, drawn: list[tuple[str, Text, Any]]) -> None:
    """Draw the figure as a PNG would be, and record its texts."""
    canvas = FigureCanvasAgg(figure)
    drawn.clear()
    canvas.draw()
    assert drawn


def outside(figure: Figure, drawn: list[tuple[str, Text, Any]]) -> list[str]:
    """Return the texts that the figure's edge clips."""
    redraw(figure, drawn)
    page = figure.bbox
    return [
        said
        for said, _, box in drawn
        if box.x0 < page.x0 - 1 or box.y0 < page.y0 - 1 or box.x1 > page.x1 + 1 or box.y1 > page.y1 + 1
    ]


def drawings(count: int, layers: int, long: bool) -> Iterator[Axes]:
    """Yield every drawing with this many categories and layers."""
    held = names(count, long)
    matrix, curves = RNG.uniform(0.4, 0.6, (count, count)), RNG.uniform(0, 900, (count, layers))
    style: dict[str, Any] = {"title": MODEL, "label": "mean Jaccard index of ISN sets, 0 to 1"}
    yield plotting.heatmap(matrix, held, held, marks=matrix > 0.5, **style)
    yield plotting.curves(range(layers), curves, held, low=curves - 9, high=curves + 9, null=300, **style)
    yield plotting.bars(held, curves[:, 0], low=curves[:, 0] - 9, high=curves[:, 0] + 9, null=20, **style)
    yield plotting.stacked(range(layers), dict(zip(held[:7], curves, strict=False)), **style)


@pytest.mark.parametrize(("count", "layers", "long"), [(2, 30, True), (7, 60, True), (30, 30, False)])
def test_no_text_is_clipped(drawn: list[tuple[str, Text, Any]], count: int, layers: int, long: bool) -> None:
    """Titles, labels, legends and numbers lie inside the figure, with two to thirty categories."""
    for ax in drawings(count, layers, long):
        assert outside(fit.figure_of(ax), drawn) == []
        said = re.sub(r"\s", "", "".join(text for text, *_ in drawn))
        for name in [MODEL, *names(min(count, 7), long)]:
            assert name.replace(" ", "") in said


def test_figures_fit_the_columns_of_a_paper() -> None:
    """Six categories take one column, as do curves of any number of layers; the height follows the legend."""
    held = names(6, False)
    sizes = [
        fit.figure_of(ax).get_size_inches()
        for ax in (
            plotting.heatmap(np.eye(6), held, held),
            plotting.curves(range(60), np.ones((6, 60)), held),
            plotting.curves(range(30), np.ones((6, 30)), names(6, True)),
        )
    ]
    assert [width for width, _ in sizes] == [fit.COLUMN] * 3
    assert sizes[1][1] < sizes[2][1]


def test_text_is_wrapped_by_its_measured_width() -> None:
    """Lines break at the width; a word that is too long is split, not clipped; line breaks stay."""
    line = "four words to wrap"
    whole = fit.text_width(line, 10)
    assert fit.wrapped(line, 10, whole + 0.01) == line
    assert fit.wrapped(line, 10, whole * 0.6) == "four words\nto wrap"
    assert fit.wrapped("W" * 40, 10, 1.0).replace("\n", "") == "W" * 40
    assert fit.text_width(fit.wrapped("W" * 40, 10, 1.0), 10) <= 1.0
    assert fit.wrapped("a\nb c", 10, 5.0) == "a\nb c"


def test_names_are_drawn_literally(drawn: list[tuple[str, Text, Any]]) -> None:
    """Dollar signs do not start mathematics, and control characters that SVG forbids are replaced."""
    ax = plotting.bars(["costs $5 or $6", "a\x00b"], [1.0, 2.0], title="$x$")
    redraw(fit.figure_of(ax), drawn)
    assert {r"costs \$5 or \$6", "a\ufffdb", r"\$x\$"} <= {said for said, *_ in drawn}
    assert b"costs $5 or $6" in plotting.render(fit.figure_of(ax), "svg")


DRAW: Sequence[Callable[[Axes | None], Axes]] = (
    lambda ax: plotting.heatmap(np.eye(3), "ABC", "ABC", ax=ax),
    lambda ax: plotting.curves(range(4), np.ones((2, 4)), "AB", ax=ax),
    lambda ax: plotting.curves(range(4), np.ones((9, 4)), "ABCDEFGHI", ax=ax),
    lambda ax: plotting.bars("ABC", np.ones(3), ax=ax),
    lambda ax: plotting.stacked(range(4), {"a": np.ones(4), "b": np.ones(4)}, ax=ax),
)


@pytest.mark.parametrize("draw", DRAW)
def test_given_axes_are_used(draw: Callable[[Axes | None], Axes]) -> None:
    """The same axes come back; their figure keeps its size and its other axes stay empty."""
    figure = Figure(figsize=(5, 2))
    ax, other = figure.subplots(1, 2)
    assert draw(ax) is ax
    assert tuple(figure.get_size_inches()) == (5, 2)
    assert figure.axes == [ax, other]
    assert not other.has_data()


def test_colors_follow_the_range() -> None:
    """The default range covers the values, rounded outward to twentieths; values outside a given range are marked."""
    ax = plotting.heatmap([[0.41, 0.58], [np.nan, 0.5]], "AB", "AB")
    (mesh,) = ax.collections
    assert mesh.get_clim() == pytest.approx((0.4, 0.6))
    given = plotting.heatmap([[0.41, 0.58], [np.nan, 0.5]], "AB", "AB", vmin=0.45, vmax=0.7).collections[0]
    assert given.get_clim() == (0.45, 0.7)
    assert given.colorbar.extend == "min"  # type: ignore[attr-defined]
    assert mesh.colorbar.extend == "neither"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("values", "center", "ends"), [([0.1, 0.5], 0.2, (0.0, 0.5)), ([-0.3, 0.1], 0.0, (-0.3, 0.3)), ([2, 2], 2, (1, 3))]
)
def test_a_center_is_white(values: list[float], center: float, ends: tuple[float, float]) -> None:
    """A diverging map reaches equally far on both sides of its center, but not below 0 for frequencies."""
    (mesh,) = plotting.heatmap([values], ["A"], ["B", "C"], center=center).collections
    assert mesh.get_clim() == pytest.approx(ends)
    assert min(mesh.cmap(mesh.norm(center))) > 0.95


def test_cells_show_their_number(drawn: list[tuple[str, Text, Any]]) -> None:
    """Numbers lie inside their cells, black on bright and white on dark; marks are bold with an asterisk."""
    marks = np.array([[True, False], [False, False]])
    ax = plotting.heatmap([[0.1, 0.9], [np.nan, 0.5]], "AB", "AB", marks=marks)
    redraw(fit.figure_of(ax), drawn)
    cells = [(said, cell.get_weight(), box) for said, cell, box in drawn if cell in ax.texts or cell in ax.artists]
    assert [(said, weight) for said, weight, _ in cells if said != "*"] == [
        ("0.10", "bold"),
        ("0.90", "normal"),
        ("n/a", "normal"),
        ("0.50", "normal"),
    ]
    assert sum(said == "*" for said, *_ in cells) == 1
    colors = {said: cell.get_color() for said, cell, _ in drawn}
    assert (colors["0.10"], colors["0.90"], colors["n/a"]) == ("white", "black", "black")
    for _, _, box in cells:
        low, high = ax.transData.inverted().transform([(box.x0, box.y0), (box.x1, box.y1)])
        assert np.floor(low[0] + 0.5) == np.floor(high[0] + 0.5)
        assert np.floor(low[1] + 0.5) == np.floor(high[1] + 0.5)


def test_numbers_that_do_not_fit_leave_their_marks(drawn: list[tuple[str, Text, Any]]) -> None:
    """Small cells, and cells without numbers, show only the mark."""
    held, marks = names(20, False), np.eye(20, dtype=bool)
    figure = Figure(figsize=(3, 3))
    ax = plotting.heatmap(np.full((20, 20), 0.5), held, held, marks=marks, ax=figure.add_subplot())
    redraw(figure, drawn)
    assert [said for said, cell, _ in drawn if cell in ax.texts] == ["*"] * 20


@pytest.mark.parametrize("layers", [range(30), range(60), [1, 2, 3, 5, 7], range(1, 28), [4]])
def test_ticks_are_layers_of_the_model(layers: Sequence[int]) -> None:
    """Every tick is at a layer; markers of all curves are at the same layers."""
    ax = plotting.curves(layers, np.ones((3, len(layers))), "ABC")
    assert {int(tick) for tick in ax.get_xticks()} <= set(layers)
    assert len(ax.get_xticks()) <= 10
    assert len({str(line.get_markevery()) for line in ax.lines}) == 1
    assert fit.layer_ticks(range(30)) == [0, 5, 10, 15, 20, 25]
    assert fit.layer_ticks([7, 9]) == [7, 9]


def test_curves_show_intervals_and_null() -> None:
    """Up to three curves have bands, more have thin lines. The null is grey and named. The axis begins below 0 if
    values do.
    """
    values = np.arange(12.0).reshape(2, 6)
    ax = plotting.curves(range(6), values, "AB", low=values - 1, high=values + 1, null=3.0)
    assert len(ax.collections) == 2
    assert ax.get_legend_handles_labels()[1] == ["A", "B", "null"]
    assert ax.lines[-1].get_color() == plotting.GREY
    np.testing.assert_array_equal(ax.lines[-1].get_ydata(), np.full(6, 3.0))
    assert ax.get_ylim()[0] < 0
    many = np.tile(np.arange(6.0), (5, 1))
    thin = plotting.curves(range(6), many, "ABCDE", low=many, high=many + 2, ymax=9)
    assert not thin.collections
    assert thin.get_ylim() == (0, 9)
    np.testing.assert_array_equal(thin.lines[2].get_ydata(), many[0] + 2)


def test_one_layer_has_its_interval_and_null() -> None:
    """Over one layer, a band has no area, so the interval is a bar and the null a dash."""
    ax = plotting.curves([0], [[2.0]], "A", low=[[1.0]], high=[[4.0]], null=3.0)
    (interval,) = ax.collections
    np.testing.assert_allclose(interval.get_segments()[0], [[0, 1], [0, 4]])  # type: ignore[attr-defined]
    assert ax.lines[-1].get_marker() == "_"


@pytest.mark.parametrize(
    ("value", "form", "text"), [(-0.004, ",.2f", "0.00"), (-1234.5, ",.1f", "−1,234.5"), (np.nan, ",.1f", "n/a")]
)
def test_numbers_have_a_true_minus_sign(value: float, form: str, text: str) -> None:
    """Rounded zeros have no sign."""
    assert fit.number(value, form) == text


def test_many_curves_are_a_map() -> None:
    """Eight names are drawn as a heat map over the layers, with the null as its last row."""
    ax = plotting.curves(range(30), np.ones((8, 30)), names(8, False), null=0.5)
    assert [text.get_text() for text in ax.get_yticklabels()] == [*names(8, False), "null"]
    assert ax.collections[0].get_array()[-1].tolist() == [0.5] * 30  # type: ignore[index]


def test_bars_show_interval_null_and_mark(drawn: list[tuple[str, Text, Any]]) -> None:
    """Each bar has its number, interval and null; significant bars have an asterisk."""
    ax = plotting.bars("AB", [0.5, np.nan], low=[0.4, np.nan], high=[0.7, np.nan], null=0.3, marks=[True, False])
    redraw(fit.figure_of(ax), drawn)
    assert {"0.500*", "n/a", "null"} <= {said for said, *_ in drawn}
    assert ax.get_xlim()[0] == 0
    assert [text.get_text() for text in plotting.bars("AB", [3.0, 0.0], null=0.0).texts] == ["null", "3", "0"]
    interval, null = (item.get_segments() for item in ax.collections)  # type: ignore[attr-defined]
    np.testing.assert_allclose(interval[0], [[0.4, 0.0], [0.7, 0.0]])
    np.testing.assert_allclose(null[1][:, 0], 0.3)


def test_parts_are_stacked() -> None:
    """Each part begins where the previous one ends; colors and hatches differ."""
    ax = plotting.stacked([3, 4], {"a": [1, 2], "b": [5, 7]}, label="ISNs")
    lower, upper = ax.containers
    assert [bar.get_y() for bar in upper] == [1, 2]
    assert [bar.get_hatch() for bar in (lower[0], upper[0])] == ["", "////"]
    assert [int(tick) for tick in ax.get_xticks()] == [3, 4]


def test_limits_are_rounded_outward() -> None:
    """A range of several Datasets holds all their values; counts are rounded to half a power of ten."""
    assert plotting.limits([{"value": [0.41, np.nan]}, {"value": [0.63]}]) == pytest.approx((0.4, 0.65))
    assert plotting.limits([{"value": [120, 512]}]) == (100, 550)
    assert plotting.limits([{"value": [0.5]}]) == pytest.approx((0.45, 0.55))
    assert plotting.limits([{"value": [np.nan]}]) == (0, 1)


@pytest.mark.parametrize("draw", DRAW)
def test_files_are_the_same_and_their_text_is_text(draw: Callable[[Axes | None], Axes]) -> None:
    """Drawing twice, or saving one drawing twice, gives the same bytes; SVG and PDF keep text as text."""
    first, second = (fit.figure_of(draw(None)) for _ in range(2))
    svg, pdf, again = (plotting.render(first, kind) for kind in ("svg", "pdf", "svg"))
    assert svg == again == plotting.render(second, "svg")
    assert pdf == plotting.render(second, "pdf")
    assert b"<text" in svg
    assert b"/TrueType" in pdf or b"/CIDFontType2" in pdf
    assert b"/Type3" not in pdf
