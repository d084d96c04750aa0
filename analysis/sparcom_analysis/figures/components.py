"""Draws general and unique components, and LAPE's neurons, by layer. Drawing only: numbers come in ready.

Bars are stacked: general, shared, unique. Unique ones are often few, so they have a panel of their own, by category,
with a scale of its own. Categories differ in colour and hatching; from eight on one bar stands for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from sparcom_analysis.figures import fitting
from sparcom_analysis.figures.fitting import canvas, panel_title
from sparcom_analysis.figures.neurons import COLOURS, label, layer_ticks
from sparcom_analysis.schema.components import ComponentGroups, LapeGroup
from sparcom_analysis.tables.components import component_title

HATCHES = ("", "////", "", "....", "", "xxxx", "")
GROUPS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("of all categories (general)", {"facecolor": "#4d4d4d"}),
    ("of several (shared)", {"facecolor": "#bdbdbd"}),
    ("of one (unique)", {"facecolor": "#7a5195", "hatch": "////"}),
)

Bars = Sequence[tuple[str, dict[str, Any], NDArray[np.int64]]]


def component_figure(group: ComponentGroups, model: str) -> Figure:
    """Components by layer: general, shared and unique above, unique ones by category below."""
    title = f"General and unique {component_title(group.component)}, {label(model)}"
    if group.general is None or group.shared is None or group.unique is None:
        return _without_comparison(group, title)
    unique = np.array([part.by_layer for part in group.unique])
    values = [np.array(group.general.by_layer), np.array(group.shared.by_layer), unique.sum(axis=0)]
    figure = canvas(6.4, 6.2)
    upper, lower = figure.subplots(2, 1, sharex=True)
    _stack(upper, [(*look, value) for look, value in zip(GROUPS, values, strict=True)], group.layer_ids)
    _stack(lower, _category_bars(group.categories, unique), group.layer_ids)
    upper.set_title("components that belong to a category", fontsize=9.5)
    lower.set_title("of these, unique to one", fontsize=9.5)
    lower.set_xlabel("layer", fontsize=10)
    fitting.title(figure, title)
    return figure


def _without_comparison(group: ComponentGroups, title: str) -> Figure:
    """With one category: what belongs to it, and why no more can be said."""
    figure = canvas(6.4, 3.8)
    axes = figure.add_subplot()
    own = np.array([part.by_layer for part in group.belonging])
    _stack(axes, _category_bars(group.categories, own), group.layer_ids)
    panel_title(axes, group.reason or "", 8.5, 4.2)
    axes.set_xlabel("layer", fontsize=10)
    fitting.title(figure, title)
    return figure


def lape_figure(group: LapeGroup, model: str) -> Figure:
    """LAPE's neurons by layer and category; one that is specific to two categories counts in both."""
    figure = canvas(6.4, 3.8)
    axes = figure.add_subplot()
    _stack(axes, _category_bars(group.categories, np.array(group.by_layer)), group.layer_ids)
    axes.set_xlabel("layer", fontsize=10)
    if group.reason:
        panel_title(axes, group.reason, 8.5, 4.2)
    title = f"Neurons specific to a category by LAPE, {label(model)}"
    fitting.title(figure, f"{title}\n{component_title(group.component)}")
    return figure


def _category_bars(categories: Sequence[str], values: NDArray[np.int64]) -> Bars:
    """A bar for each category, up to those that colours tell apart, one for all beyond."""
    if len(categories) > len(COLOURS):
        return [(f"any of {len(categories)} categories", GROUPS[2][1], values.sum(axis=0))]
    looks = ({"facecolor": colour, "hatch": hatch} for colour, hatch in zip(COLOURS, HATCHES, strict=True))
    return [(label(name), look, value) for name, look, value in zip(categories, looks, values, strict=False)]


def _stack(axes: Axes, bars: Bars, layer_ids: Sequence[int]) -> None:
    """Bars on top of each other, one a layer, and their names beside the panel."""
    places, below = np.arange(len(layer_ids)), np.zeros(len(layer_ids))
    for name, look, values in bars:
        axes.bar(places, values, bottom=below, label=name, width=0.82, edgecolor="white", linewidth=0.3, **look)
        below += values
    axes.set_ylim(0, 1.05 * float(below.max()) or 1.0)
    axes.set_xlim(-0.6, len(layer_ids) - 0.4)
    layer_ticks(axes, layer_ids)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.set_ylabel("number", fontsize=10)
    axes.grid(axis="y", color="#d8d8d8", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], names[::-1], loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8.5)
