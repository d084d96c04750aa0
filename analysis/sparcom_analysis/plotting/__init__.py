"""Plot functions for all figures; each takes `ax` and returns it.

Figures suit print and color-blind readers: cividis with numbers in the cells, Okabe-Ito colors with distinct markers
and dashes. Names are wrapped, never truncated. Without `ax`, a new figure is one column of a paper wide, or wider if
text needs it. Text sizes follow Matplotlib's `font.size`. The code uses Matplotlib's object interface, no global state.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from sparcom_analysis.plotting import fitting as fit
from sparcom_analysis.plotting.fitting import COLUMN, legend_below, new_axes
from sparcom_analysis.plotting.maps import heatmap, limits
from sparcom_analysis.plotting.sharing import share

__all__ = ["bars", "curves", "heatmap", "legend_below", "limits", "new_axes", "panels", "render", "share", "stacked"]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe-Ito without yellow
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (5, 2)), (0, (4, 1.5, 1, 1.5)), (0, (1, 1.2)))
HATCHES = ("", "////", "", "....", "\\\\\\\\", "", "xxxx")
GREY = "#6e6e6e"
FILES: dict[Any, Any] = {"svg.hashsalt": "sparcom", "svg.fonttype": "none", "pdf.fonttype": 42, "savefig.bbox": None}
FILES |= {"figure.autolayout": False, "figure.constrained_layout.use": False}
MAX_BANDS = 3  # curves with filled intervals; more bands would overlap


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
    """Draw one curve per name over the layers, or a heat map for more than seven names.

    Args:
        layers: layer numbers of the model. values, low, high: (name, layer); intervals are bands, or thin lines for
            more than three curves. null: (layer,) or one number, drawn as a grey dashed line "null".
        ymin, ymax: limits of the y axis; None: limits of the values. A `ymin` of 0 is lowered for negative values.
    """
    layers, table, own = [*map(int, layers)], np.asarray(values, dtype=np.float64), ax is None
    level = None if null is None else np.broadcast_to(np.asarray(null, dtype=np.float64), (len(layers),))
    style: dict[str, Any]
    if len(names) > len(COLORS):
        rows, names = (table, names) if level is None else (np.vstack([table, level]), [*names, "null"])
        style = {"vmin": ymin, "vmax": ymax, "label": label, "title": title, "annot": False}
        ax = heatmap(rows, names, [*map(str, layers)], ax=ax, **style)
        ax.set_xlabel("layer")
        return ax
    ax = new_axes() if ax is None else ax
    marked = np.flatnonzero(np.isin(layers, layers if len(layers) <= 12 else fit.layer_ticks(layers))).tolist()
    for index, (name, row) in enumerate(zip(names, table, strict=True)):
        look: dict[str, Any] = {"color": COLORS[index], "linestyle": DASHES[index % 4], "linewidth": 1.2}
        look |= {"marker": MARKERS[index], "markersize": 4, "markeredgecolor": "white", "markeredgewidth": 0.4}
        ax.plot(layers, row, label=fit.plain(name), markevery=marked, **look)
        if low is not None and high is not None:
            ends = np.array([np.asarray(low)[index], np.asarray(high)[index]], dtype=np.float64)
            if len(layers) == 1:
                ax.vlines(layers, *ends, color=COLORS[index], linewidth=1.0)
            elif len(names) <= MAX_BANDS:
                ax.fill_between(layers, *ends, color=COLORS[index], alpha=0.22, linewidth=0)
            else:
                ax.plot(layers, ends.T, color=COLORS[index], alpha=0.7, linewidth=0.4, zorder=1.5)
    if level is not None:
        style = {"color": GREY, "dashes": (3, 2), "linewidth": 1.1, "marker": "_" if len(layers) == 1 else ""}
        ax.plot(layers, level, label="null", zorder=1.8, markersize=16, **style)
    ax.set_ylim(None if ymin == 0 and ax.dataLim.y0 < 0 else ymin, ymax)
    return _layer_axes(ax, layers, label, title, legend, own)


def _layer_axes(ax: Axes, layers: Sequence[int], label: str, title: str, legend: bool, own: bool) -> Axes:
    """Format the axes: layer ticks, y label with unit, light grid, legend below."""
    ax.set_xticks(fit.layer_ticks([*map(int, layers)], max(2, int(fit.inches_of(ax)[0] / 0.28))))
    ax.set_xlabel("layer", fontsize=fit.LABEL)
    fit.set_label(ax.yaxis, label, max(1.3, fit.inches_of(ax)[1]))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}".replace("-", "−"))
    ax.grid(axis="y", color="#dcdcdc", linewidth=0.6)
    plain_axes(ax, title)
    if legend and len(ax.get_legend_handles_labels()[1]) > 1:
        legend_below(ax)
    if own:
        fit.fit_height(ax, 1.75)
    return ax


def plain_axes(ax: Axes, title: str, inches: float | None = None) -> None:
    """Format the axes: small ticks, no top and right spines, title."""
    ax.tick_params(labelsize=fit.TICK, length=2)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    fit.set_title(ax, title, inches)


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
    """Draw one horizontal bar per name, with interval and number.

    Args:
        values, low, high: (name,). null: (name,) or one number, drawn as a grey dashed line across each bar.
        marks: bool (name,), numbers to set in bold with an asterisk. label: label of the x axis, with its unit.
    """
    table, own = np.asarray(values, dtype=np.float64), ax is None
    held = [fit.wrapped(str(name), fit.TICK, 1.4) for name in names]
    ax, at = new_axes() if ax is None else ax, np.arange(len(held))
    beside = max(fit.text_width(name, fit.TICK) for name in held)
    room = max(1.1, COLUMN - beside - 0.4 if own else fit.inches_of(ax)[0])
    ends = np.array([table if end is None else end for end in (low, high)], dtype=np.float64)
    ax.barh(at, table, height=0.68, color=COLORS[0], alpha=0.75)
    ax.hlines(at, *ends, color="black", linewidth=1.0)
    ax.plot(ends, [at, at], "|", color="black", markersize=0.0 if low is None else 4.0)
    if null is not None:
        level = np.broadcast_to(np.asarray(null, dtype=np.float64), table.shape)
        ax.vlines(level, at - 0.5, at + 0.5, color=GREY, linestyle=(0, (2.4, 1.2)), linewidth=1.1)
        style: dict[str, Any] = {"color": GREY, "fontsize": fit.TICK, "annotation_clip": True}
        ax.annotate("null", (level[0], -0.55), ha="center", va="bottom", **style)
    if ax.dataLim.x0 >= 0:
        ax.set_xlim(0, None if ax.dataLim.x1 else 1)
    known = table[np.isfinite(table)]
    form = ",.0f" if np.abs(known).max(initial=0.0) >= 100 or (known == known.round()).all() else ",.3f"
    marked = np.zeros(table.shape, bool) if marks is None else np.asarray(marks, dtype=bool)
    for place, (value, end, mark) in enumerate(zip(table, np.fmax(table, ends[1]), marked, strict=True)):
        style = {"weight": "bold" if mark else "normal", "va": "center", "fontsize": fit.TICK}
        where = (max(0.0, float(np.nan_to_num(end))), place)
        ax.annotate(fit.number(value, form) + "*" * bool(mark), where, (4, 0), textcoords="offset points", **style)
    ax.set_yticks(at, [*map(fit.plain, held)], fontsize=fit.TICK)
    ax.set_ylim(len(held) - 0.4, -0.6 if null is None else -1.2)
    fit.set_label(ax.xaxis, label, room)
    plain_axes(ax, title, room)
    if own:
        fit.fit_height(ax, (0.1 + 0.12 * fit.most_lines(held)) * (len(held) + 0.5))
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
    """Draw stacked bars over the layers, with one color and hatch per part; parts: (layer,) each."""
    own, bottom = ax is None, np.zeros(len(layers))
    ax = new_axes() if ax is None else ax
    for index, (name, values) in enumerate(parts.items()):
        look: dict[str, Any] = {"facecolor": COLORS[index % 7], "hatch": HATCHES[index % 7], "edgecolor": "white"}
        ax.bar(layers, np.asarray(values), 0.85, bottom, label=fit.plain(name), linewidth=0.3, **look)
        bottom = bottom + np.asarray(values)
    ax.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
    return _layer_axes(ax, layers, label, title, legend, own)


def panels(
    count: int, *, columns: int | None = None, width: float = COLUMN, height: float = 2.8
) -> tuple[Figure, list[Axes]]:
    """Return a figure and `count` axes of this size (inches), in rows of at most `columns`."""
    across = min(count, columns or count)
    figure = fit.new_figure(width * across, height * (down := -(-count // across)))
    return figure, [figure.add_subplot(down, across, place + 1) for place in range(count)]


def render(figure: Figure, kind: str) -> bytes:
    """Return a figure as svg or pdf (with editable text) or png bytes; the first call fixes its layout."""
    buffer, metadata = io.BytesIO(), {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    with mpl.rc_context(FILES):
        fit.fix_layout(figure)
        figure.savefig(buffer, format=kind, metadata=metadata, dpi=220 if kind == "png" else "figure")
    return buffer.getvalue()
