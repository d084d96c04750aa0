"""The drawings that all figures are made of; each takes `ax` and returns it.

Read in print and by the color-blind: cividis with numbers in the cells, Okabe-Ito colors that differ in marker and dash
as well. Matplotlib's object interface, no global state.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe-Ito without yellow
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (5, 2)), (0, (4, 1.5, 1, 1.5)), (0, (1, 1.2)))
COLUMN = 3.4  # inches: one column of a paper; two are 7


def new_axes(width: float = COLUMN, height: float = 2.8) -> Axes:
    """Return the axes of a new figure of so many inches, outside of pyplot."""
    return Figure(figsize=(width, height), layout="constrained").add_subplot()


def heatmap(
    values: ArrayLike,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    ax: Axes | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    center: float | None = None,
    annot: bool | None = None,
    marks: ArrayLike | None = None,
    label: str = "",
    title: str = "",
) -> Axes:
    """Draw a matrix.

    Args:
        values: (row, column), NaN is grey. rows, columns: names of the ticks.
        vmin, vmax: ends of the colors; the values' own without them. center: draw a diverging map about this value.
        annot: write the numbers into the cells; None: if they fit.
        marks: bool (row, column), cells in bold.
        label: of the color bar, with its unit. title: of the axes.
    """
    matrix = np.asarray(values, dtype=np.float64)
    ax = new_axes() if ax is None else ax
    image = ax.imshow(matrix, cmap=mpl.colormaps["cividis"], vmin=vmin, vmax=vmax)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.figure.colorbar(image, ax=ax, label=label)
    ax.set_title(title)
    return ax


def curves(
    layers: Sequence[int],
    values: ArrayLike,
    names: Sequence[str],
    *,
    ax: Axes | None = None,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    null: ArrayLike | float | None = None,
    ymin: float | None = 0.0,
    ymax: float | None = None,
    label: str = "",
    title: str = "",
    legend: bool = True,
) -> Axes:
    """Draw one curve per name over the layers.

    Args:
        layers: the model's numbers. values, low, high: (name, layer); intervals are bands. null: (layer,) or one
            number, drawn as a grey dashed line "null".
    """
    ax = new_axes() if ax is None else ax
    for name, row in zip(names, np.asarray(values), strict=True):
        ax.plot(layers, row, label=name)
    ax.set(xlabel="layer", ylabel=label, title=title)
    return ax


def bars(
    names: Sequence[str],
    values: ArrayLike,
    *,
    ax: Axes | None = None,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    null: ArrayLike | float | None = None,
    marks: ArrayLike | None = None,
    label: str = "",
    title: str = "",
) -> Axes:
    """Draw one horizontal bar per name with its interval; `null` as a tick per bar, `marks` as significant bars."""
    ax = new_axes() if ax is None else ax
    ax.barh(names, np.asarray(values))
    ax.set(xlabel=label, title=title)
    return ax


def stacked(
    layers: Sequence[int],
    parts: Mapping[str, ArrayLike],
    *,
    ax: Axes | None = None,
    label: str = "",
    title: str = "",
    legend: bool = True,
) -> Axes:
    """Draw stacked bars over the layers, one color and hatch per part: (layer,) each."""
    ax = new_axes() if ax is None else ax
    bottom = np.zeros(len(layers))
    for name, values in parts.items():
        ax.bar(layers, np.asarray(values), bottom=bottom, label=name)
        bottom += np.asarray(values)
    ax.set(xlabel="layer", ylabel=label, title=title)
    return ax


def panels(
    count: int, *, columns: int | None = None, width: float = COLUMN, height: float = 2.8
) -> tuple[Figure, list[Axes]]:
    """Return a figure and so many axes side by side, of this size each, wrapped after `columns`."""
    across = min(count, columns or count)
    down = -(-count // across)
    figure = Figure(figsize=(width * across, height * down), layout="constrained")
    axes = [figure.add_subplot(down, across, place + 1) for place in range(count)]
    return figure, axes


def limits(datasets: Sequence[Any], variable: str = "value") -> tuple[float, float]:
    """Return a color or y range that several Datasets share, rounded outward to twentieths."""
    known = np.concatenate([np.asarray(ds[variable]).ravel() for ds in datasets])
    known = known[np.isfinite(known)]
    return (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)


def render(figure: Figure, kind: str) -> bytes:
    """Return the figure as svg (text stays text), pdf or png; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "sparcom", "svg.fonttype": "none"}):
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()
