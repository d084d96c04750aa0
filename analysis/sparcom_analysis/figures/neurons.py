"""Draws matrices over categories (figure 3) and curves over layers (figure 5). Drawing only: numbers come in ready.

Read in print and by the colour-blind: a map whose lightness rises steadily (cividis) with the numbers in the cells, and
Okabe-Ito line colours that differ in marker and dash as well. Matplotlib's object interface, no global state.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from sparcom_analysis.figures import fitting
from sparcom_analysis.figures.fitting import canvas, legend_below, widest, wrapped
from sparcom_analysis.schema.metrics import CategoryMatrix, LayerMeans
from sparcom_analysis.tables.formats import visible

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe-Ito without yellow
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (5, 2)), (0, (4, 1.5, 1, 1.5)), (0, (1, 1.2)))
MOST_NUMBERED = 24  # categories up to which a number fits into a cell
LABEL_LENGTH = 22
PER_INSTRUCTION = "ISNs an instruction, mean"
DPI = 220

Values = Sequence[Sequence[float | None]]


def label(name: str) -> str:
    """A category's name as plain text: no mathematics between dollar signs, nothing that SVG cannot hold, cut in the
    middle when long."""
    name = visible(name)
    if len(name) > LABEL_LENGTH:
        name = f"{name[: LABEL_LENGTH // 2]}…{name[-(LABEL_LENGTH // 2 - 1) :]}"
    return name.replace("$", r"\$")


def _limits(values: NDArray[np.float64]) -> tuple[float, float]:
    """Colour range: the values, widened to twentieths so that close archives get the same scale."""
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0, 1.0
    low, high = math.floor(float(known.min()) * 20) / 20, math.ceil(float(known.max()) * 20) / 20
    return (low, high) if high > low else (low - 0.05, high + 0.05)


def similarity_figure(similarity: CategoryMatrix, model: str, *, self_pairs: bool, detail: str = "") -> Figure:
    """Figure 3: the matrix of mean Jaccard indices as a heat map, numbers in the cells; `detail` says whose neurons."""
    notes = [detail, "" if self_pairs else "pairs of an instruction with itself left out"]
    title = "\n".join([f"Similarity of categories, {label(model)}", *filter(None, notes)])
    return matrix_figure(similarity.categories, similarity.matrix, title, "mean Jaccard index of ISN sets")


def matrix_figure(
    categories: Sequence[str], matrix: Sequence[Sequence[float | None]], title: str, quantity: str
) -> Figure:
    """A matrix over categories as a heat map, numbers in the cells where they fit."""
    values = np.array(matrix, dtype=np.float64)  # None becomes NaN
    count = len(categories)
    names, size = [label(name) for name in categories], 10 if count <= 12 else 8
    beside = max(0.8, widest(names, size))  # inches that the names take beside the cells, and less than that below
    cells = min(11.3, max(2.7, 0.45 * count))
    figure = canvas(cells + beside + 0.9, cells + 0.75 * beside + 2.0, square=True)
    axes = figure.add_subplot()
    low, high = _limits(values)
    _heat_map(figure, axes, values, (low, high), wrapped(quantity, 10, cells))
    if count <= MOST_NUMBERED:
        _number_cells(axes, values, low, high)
    axes.set_xticks(range(count), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=size)
    axes.set_yticks(range(count), names, fontsize=size)
    axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="both", length=0)
    fitting.title(figure, title)
    return figure


def _heat_map(figure: Figure, axes: Axes, values: NDArray[np.float64], limits: tuple[float, float], label: str) -> None:
    """Cells in cividis, grey where there is no value, and the colour bar below."""
    colours = mpl.colormaps["cividis"].with_extremes(bad="#e3e3e3")
    square = values.shape[0] == values.shape[1]
    image = axes.imshow(
        values,
        cmap=colours,
        vmin=limits[0],
        vmax=limits[1],
        aspect="equal" if square else "auto",
        interpolation="nearest",
    )
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label=label, location="bottom", shrink=0.85, aspect=30)


def _number_cells(axes: Axes, values: NDArray[np.float64], low: float, high: float) -> None:
    digits = 3 if high - low <= 0.1 else 2
    size = 10.5 if len(values) <= 8 else max(5.0, 84 / len(values))
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value):
            text, colour = "n/a", "#333333"
        else:
            text, colour = f"{value:.{digits}f}", "white" if (value - low) / (high - low) < 0.45 else "black"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)


def layer_figure(by_layer: LayerMeans, model: str, *, detail: str = "") -> Figure:
    """Figure 5: mean number of ISNs an instruction has in each layer; `detail` says whose neurons."""
    title = "\n".join([f"Instruction-specific neurons by layer, {label(model)}", *filter(None, [detail])])
    ends = None if by_layer.low is None or by_layer.high is None else (by_layer.low, by_layer.high)
    return curves_figure(by_layer.categories, by_layer.layer_ids, by_layer.mean_count, title, PER_INSTRUCTION, ends)


def curves_figure(
    categories: Sequence[str],
    layer_ids: Sequence[int],
    values: Sequence[Sequence[float]],
    title: str,
    quantity: str,
    ends: tuple[Values, Values] | None = None,
) -> Figure:
    """A value of each category in each layer; `ends` are intervals of the values, drawn as bands behind lines.

    One line a category, up to the seven that can be told apart by colour; a heat map of category by layer beyond.
    """
    count = len(categories)
    lines = count <= len(COLOURS)
    names = [label(name) for name in categories]
    beside = 0.0 if lines else max(0.0, widest(names, 8) - 1.2)
    height = 4.1 if lines else min(14.0, 2.2 + 0.2 * count)
    figure = canvas(5.4 + beside, height)
    axes = figure.add_subplot()
    if lines:
        if ends is not None:
            bands(axes, layer_ids, *ends)
        reached = [*values, *(() if ends is None else ends[1])]
        top = max((value for row in reached for value in row if value is not None), default=0.0)
        layer_lines(axes, categories, layer_ids, values, top)
        axes.set_ylabel(wrapped(quantity, 10, 2.6), fontsize=10)
        legend_below(figure, *axes.get_legend_handles_labels())
    else:
        table = np.array(values)
        _heat_map(figure, axes, table, (0.0, float(table.max()) or 1.0), wrapped(quantity, 10, 3.0))
        axes.set_yticks(range(count), names, fontsize=8)
        layer_ticks(axes, layer_ids)
        axes.tick_params(length=0)
    axes.set_xlabel("layer", fontsize=10)
    fitting.title(figure, title)
    return figure


def layer_ticks(axes: Axes, layer_ids: Sequence[int], *, vertical: bool = False) -> None:
    """Name the layers along an axis of a map, at most a dozen of them."""
    ticks = range(0, len(layer_ids), max(1, -(-len(layer_ids) // 12)))
    (axes.set_yticks if vertical else axes.set_xticks)(ticks, [str(layer_ids[tick]) for tick in ticks])


def bands(
    axes: Axes, layer_ids: Sequence[int], low: Values | NDArray[np.float64], high: Values | NDArray[np.float64]
) -> None:
    """Intervals as pale bands; none where a value has none."""
    for index, both in enumerate(zip(low, high, strict=True)):
        below, above = (np.array(end, dtype=np.float64) for end in both)
        axes.fill_between(layer_ids, below, above, color=COLOURS[index], alpha=0.15, linewidth=0)


def layer_lines(
    axes: Axes,
    categories: Sequence[str],
    layer_ids: Sequence[int],
    values: Sequence[Sequence[float]] | NDArray[np.float64],
    top: float,
) -> None:
    """One curve a category over the layers, from 0 to a little above `top`."""
    every = max(1, len(layer_ids) // 12)
    for index, (name, means) in enumerate(zip(categories, values, strict=True)):
        axes.plot(
            layer_ids,
            means,
            label=label(name),
            color=COLOURS[index],
            linestyle=DASHES[index % len(DASHES)],
            marker=MARKERS[index],
            markevery=(index % every, every),
            markersize=4.5,
            linewidth=1.5,
        )
    axes.set_ylim(0, 1.05 * top or 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
    axes.grid(axis="y", color="#d8d8d8", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)


def to_png(figure: Figure) -> bytes:
    """The figure as PNG, 220 dots an inch."""
    buffer = io.BytesIO()
    figure.set_dpi(DPI)
    FigureCanvasAgg(figure).print_png(buffer)  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def to_svg(figure: Figure) -> bytes:
    """The figure as SVG, text as outlines; the same figure gives the same bytes. Its layout is fixed by it: laying it
    out again for the PNG took a quarter of the time of drawing."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "sparcom"}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})  # type: ignore[no-untyped-call]
    figure.set_layout_engine("none")
    return buffer.getvalue()
