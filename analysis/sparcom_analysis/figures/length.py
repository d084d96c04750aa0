"""Draws what length explains: similarities plain and with T matched side by side, and set sizes against T.

Drawing only. The two maps have one colour scale, so that a cell of the same colour has the same value in both.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from sparcom_analysis.figures import fitting
from sparcom_analysis.figures.fitting import canvas, legend_below, widest, wrapped
from sparcom_analysis.figures.neurons import COLOURS, MARKERS, MOST_NUMBERED, label
from sparcom_analysis.reading.categories import category_codes, category_labels
from sparcom_analysis.reading.populations import TITLES
from sparcom_analysis.schema.length import LengthMatched, MatchedMatrix
from sparcom_analysis.statistics.length_control import MatchedNeurons

NO_VALUE = "#e3e3e3"
GREY = "#555555"


def matched_figure(part: LengthMatched, matrix: MatchedMatrix, title: str, quantity: str) -> Figure:
    """The plain matrix and the one with T matched, numbers in the cells where they fit."""
    maps = [np.array(values, dtype=np.float64) for values in (matrix.plain, matrix.matrix)]  # None becomes NaN
    names = [label(name) for name in matrix.categories]
    beside = max(0.6, widest(names, _size(len(names))))  # inches that the names take beside the cells
    cells = min(9.0, max(2.6, 0.5 * len(names)))
    figure = canvas(2 * cells + beside + 1.2, cells + 0.75 * beside + 2.2, square=True)
    panels = figure.subplots(1, 2, sharey=True)
    limits = _limits(np.stack(maps))
    for axes, values, name in zip(panels, maps, ("all tokens", f"{part.tokens} tokens of each"), strict=True):
        image = axes.imshow(
            values,
            cmap=mpl.colormaps["cividis"].with_extremes(bad=NO_VALUE),
            vmin=limits[0],
            vmax=limits[1],
            interpolation="nearest",
        )
        axes.set_title(name, fontsize=10)
        _cells(axes, names, values, limits)
    fitting.title(figure, f"{title}\n{part.used} instructions, the same in both")
    figure.colorbar(
        image, ax=list(panels), label=wrapped(quantity, 10, 2 * cells), location="bottom", shrink=0.6, aspect=40
    )
    return figure


def _size(count: int) -> float:
    """Points of the names of so many categories."""
    return 9.5 if count <= 12 else 7.0


def _limits(values: NDArray[np.float64]) -> tuple[float, float]:
    """Colour range: the values, widened to twentieths as in `figures`."""
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0, 1.0
    low, high = np.floor(known.min() * 20) / 20, np.ceil(known.max() * 20) / 20
    return (float(low), float(high)) if high > low else (float(low) - 0.05, float(high) + 0.05)


def _cells(axes: Axes, names: Sequence[str], values: NDArray[np.float64], limits: tuple[float, float]) -> None:
    """Names along the axes, white lines between the cells, numbers in them."""
    count, size = len(names), _size(len(names))
    axes.set_xticks(range(count), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=size)
    axes.set_yticks(range(count), names, fontsize=size)
    axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    if count > MOST_NUMBERED:
        return
    digits = 3 if limits[1] - limits[0] <= 0.1 else 2
    for (row, column), value in np.ndenumerate(values):
        light = (value - limits[0]) / (limits[1] - limits[0]) >= 0.45
        text, colour = ("n/a", "#333333") if np.isnan(value) else (f"{value:.{digits}f}", "black" if light else "white")
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=max(5.0, min(9.5, 84 / count)))


def size_figure(neurons: MatchedNeurons, model: str) -> Figure:
    """Size of each instruction's set against its T, with all tokens and with T matched; one point an instruction, the
    same on both sides: those too short for the draw are in neither.

    What ties add to a set lies above the dashed line of the epsilon rule.
    """
    places = neurons.places
    lengths, categories = neurons.plain.tokens[places], neurons.matched.categories
    m = neurons.matched.token_facts.drawn
    wanted = neurons.plain.selection.wanted(neurons.plain.population.total)
    panels = (
        ("all tokens", neurons.plain.sizes[places]),
        (f"{m} tokens of each", neurons.matched.sizes),
    )
    figure = canvas(8.8, 4.6)
    grid = figure.subplots(1, 2, sharey=True, sharex=True)
    order = list(dict.fromkeys(neurons.plain.categories))
    for axes, (name, sizes) in zip(grid, panels, strict=True):
        _points(axes, lengths, sizes, categories, order)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("tokens of the instruction (T)", fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        axes.grid(color="#e3e3e3", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if wanted is not None:
            axes.axhline(wanted, color=GREY, linewidth=1.0, linestyle="--", label=f"{wanted:,}, what ε asks for")
    grid[0].set_ylabel("ISNs of the instruction", fontsize=10)
    what = TITLES[neurons.plain.population.component]
    title = f"Set size against length, {label(model)} ({what})"
    fitting.title(figure, f"{title}\n{len(lengths):,} instructions, the same in both")
    handles, texts = grid[0].get_legend_handles_labels()
    legend_below(figure, handles, texts, most=4)
    return figure


def _points(
    axes: Axes, x: NDArray[np.int64], y: NDArray[np.int64], categories: Sequence[str], order: Sequence[str]
) -> None:
    """A colour and a marker a category, up to the seven that can be told apart; beyond, one for all."""
    if len(order) > len(COLOURS):
        axes.scatter(x, y, s=14, color=GREY, alpha=0.5, linewidths=0)
        return
    labels = category_labels(order)
    codes = category_codes([*order, *categories])[len(order) :]
    for at, name in enumerate(labels):
        own = codes == at
        if not own.any():  # of instructions that are too short, all of them
            continue
        axes.scatter(
            x[own], y[own], s=18, marker=MARKERS[at], color=COLOURS[at], alpha=0.7, linewidths=0, label=label(name)
        )
