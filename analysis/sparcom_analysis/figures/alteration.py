"""Draws what fine-tuning alters: figure 5 of both models, the alteration by layer, figure 6. Drawing only.

Lines as in `figures`: colour, marker and dash by category, heat maps past the seven categories that colours tell apart.
In figure 6 the three parts of a bar differ in lightness and hatching too, so that print and the colour-blind tell them
apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from sparcom_analysis.figures.fitting import canvas, legend_below, panel_title, title, widest, wrapped
from sparcom_analysis.figures.neurons import (
    COLOURS,
    PER_INSTRUCTION,
    Values,
    bands,
    label,
    layer_lines,
    layer_ticks,
)
from sparcom_analysis.reading.populations import TITLES
from sparcom_analysis.schema.alteration import IsnAlteration, IsnVenn, VennInstruction

MOST_PANELS = 12  # instructions that figure 6 shows; more would not be readable on a page
PANEL_INCHES = 3.1  # width of a panel of figure 6
NO_VALUE = "#e3e3e3"
PARTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("only base", {"facecolor": "#0072B2"}),
    ("both", {"facecolor": "#d0d0d0"}),
    ("only tuned", {"facecolor": "#E69F00", "hatch": "////"}),
)


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves by layer: float64 (category, layer) each, NaN where there is no value or no interval."""

    title: str
    values: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def of(cls, title: str, values: Values, low: Values, high: Values) -> Panel:
        """From lists as metrics.json has them."""
        return cls(title, *(np.array(part, dtype=np.float64) for part in (values, low, high)))  # None becomes NaN


def layer_pair_figure(part: IsnAlteration, base_name: str) -> Figure:
    """Figure 5: mean number of ISNs in each layer over the instructions of both models, the tuned above the base."""
    panels = [
        Panel.of(
            f"tuned: {label(part.twin.model_name)}",
            part.tuned_by_layer,
            part.tuned_by_layer_low,
            part.tuned_by_layer_high,
        ),
        Panel.of(f"base: {label(base_name)}", part.base_by_layer, part.base_by_layer_low, part.base_by_layer_high),
    ]
    name = f"Instruction-specific neurons by layer, {TITLES[part.component]}"
    return _layer_panels(panels, part.categories, part.layer_ids, name, PER_INSTRUCTION)


def layer_alteration_figure(part: IsnAlteration, base_name: str) -> Figure:
    """Equation 15 among the neurons of each layer, by category; a gap where no instruction has an ISN."""
    above = f"Alteration by layer, {TITLES[part.component]}"
    name = f"{label(base_name)} to {label(part.twin.model_name)}"
    panels = [Panel.of(name, part.layer_alteration, part.layer_low, part.layer_high)]
    return _layer_panels(panels, part.categories, part.layer_ids, above, "alteration of ISNs, mean")


def venn_figure(part: IsnVenn, base_name: str) -> Figure:
    """Figure 6: of each instruction, by layer, the neurons only in the base, in both, only in the tuned model.

    At most `MOST_PANELS` instructions, the first ones.
    """
    shown = part.instructions[:MOST_PANELS]
    across = min(3, len(shown)) or 1
    down = -(-len(shown) // across) or 1
    figure = canvas(max(5.0, PANEL_INCHES * across), 1.5 + 2.0 * down)
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    for axes, one in zip(grid.flat, shown, strict=False):
        _venn_bars(axes, one, part.layer_ids)
    for place, axes in np.ndenumerate(grid):
        axes.set_ylabel("ISNs" if place[1] == 0 else "", fontsize=9)
        last = (place[0] + 1) * across + place[1] >= len(shown)  # no panel below
        axes.set_xlabel("layer" if last else "", fontsize=9)
        axes.tick_params(labelbottom=last)
    handles = [Patch(label=name, edgecolor="white", **look) for name, look in PARTS]
    legend_below(figure, handles, [name for name, _ in PARTS])
    names = f"{label(base_name)} (base) and {label(part.tuned_name)} (tuned)"
    title(figure, f"Neurons of single instructions, {TITLES[part.component]}\n{names}")
    return figure


def _venn_bars(axes: Axes, one: VennInstruction, layer_ids: Sequence[int]) -> None:
    """The bars of one instruction, one a layer."""
    places, below = np.arange(len(layer_ids)), np.zeros(len(layer_ids))
    for (_, look), counts in zip(PARTS, (one.only_base, one.both, one.only_tuned), strict=True):
        axes.bar(places, counts, bottom=below, width=0.9, edgecolor="white", linewidth=0.3, **look)
        below += counts
    known = "no ISN" if one.alteration is None else f"altered {one.alteration:.2f}"
    panel_title(axes, f"{label(one.category)}\n{label(one.id)}, {known}", 8.5, PANEL_INCHES - 0.6)
    layer_ticks(axes, layer_ids)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _layer_panels(
    panels: Sequence[Panel],
    categories: Sequence[str],
    layer_ids: Sequence[int],
    name: str,
    quantity: str,
) -> Figure:
    """Panels above each other, one scale for all; intervals are bands behind the lines, which maps do not have."""
    lines = len(categories) <= len(COLOURS)
    each = 2.5 if lines else min(7.0, 1.0 + 0.17 * len(categories))
    beside = 0.0 if lines else max(0.0, widest([label(name) for name in categories], 7) - 1.2)
    figure = canvas(5.4 + beside, 1.4 + each * len(panels))
    grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
    values = np.concatenate([part.ravel() for one in panels for part in ((one.values, one.high)[: 1 + lines])])
    most = float(np.nanmax(values)) if np.isfinite(values).any() else 0.0
    for axes, one in zip(grid, panels, strict=True):
        panel_title(axes, one.title, 9.5, 3.6, loc="left")
        if lines and np.isfinite(one.low).any():
            bands(axes, layer_ids, one.low, one.high)
        (layer_lines if lines else _map)(axes, categories, layer_ids, one.values, most or 1.0)
    grid[-1].set_xlabel("layer", fontsize=10)
    if lines:
        figure.supylabel(wrapped(quantity, 10, 2.2 * len(panels)), fontsize=10)
        legend_below(figure, *grid[0].get_legend_handles_labels())
    else:
        figure.colorbar(
            grid[-1].images[0],
            ax=list(grid),
            label=wrapped(quantity, 10, 3.0),
            location="bottom",
            shrink=0.85,
            aspect=30,
        )
    title(figure, name)
    return figure


def _map(
    axes: Axes,
    categories: Sequence[str],
    layer_ids: Sequence[int],
    values: NDArray[np.float64],
    most: float,
) -> None:
    colours = mpl.colormaps["cividis"].with_extremes(bad=NO_VALUE)
    axes.imshow(values, cmap=colours, vmin=0.0, vmax=most, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(len(categories)), [label(name) for name in categories], fontsize=7)
    layer_ticks(axes, layer_ids)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
