"""Draws what routers choose: maps of expert by layer, the correlation of categories, curves over layers. Drawing only.

Frequencies are drawn in cividis as other maps are; shifts in PuOr, whose two colours the colour-blind tell apart, white
where nothing moved.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sparcom_analysis.figures import fitting
from sparcom_analysis.figures.fitting import canvas, panel_title, wrapped
from sparcom_analysis.figures.neurons import curves_figure, label, layer_ticks, matrix_figure
from sparcom_analysis.schema.metrics import Metrics

MOST_PANELS = 12  # categories that get a map each; with more there is one map over all instructions

Maps = Sequence[Sequence[Sequence[float]]]


def all_figures(metrics: Metrics) -> dict[str, Figure]:
    """Every figure about experts, by the name of its file."""
    part, name = metrics.expert_frequency, label(metrics.archive.model_name)
    correlation, top = metrics.shown_correlation, metrics.top_experts
    left_out = "\npairs of an instruction with itself left out" if metrics.settings.exclude_self_pairs else ""
    assert part is not None and correlation is not None and top is not None  # noqa: PT018, S101  (they come together)
    drawn = {
        "expert_frequency": maps_figure(
            *panels(part.categories, part.mean, part.overall),
            part.layer_ids,
            f"Expert frequencies, {name}",
            "share of tokens that choose the expert, mean",
        ),
        "ise_correlation": matrix_figure(
            correlation.categories,
            correlation.matrix,
            f"Similarity of categories in their experts\n{name}{left_out}",
            "mean Pearson correlation of expert frequencies",
        ),
        "top_expert_share": curves_figure(
            top.categories,
            top.layer_ids,
            top.share,
            f"Choices that go to the layer's {len(top.overall_expert[0])} most chosen experts\n{name}",
            "share of the category's choices",
            None if top.share_low is None or top.share_high is None else (top.share_low, top.share_high),
        ),
    }
    return drawn | _shift_figures(metrics)


def _shift_figures(metrics: Metrics) -> dict[str, Figure]:
    part = metrics.expert_shift
    if part is None:
        return {}
    shift = (np.array(part.tuned) - np.array(part.base)).tolist()
    overall = (np.array(part.overall_tuned) - np.array(part.overall_base)).tolist()
    name = label(metrics.archive.model_name)
    return {
        "expert_shift": maps_figure(
            *panels(part.categories, shift, overall),
            part.layer_ids,
            f"Expert frequencies, tuned minus {name}",
            "shift of the share of tokens that choose the expert",
            signed=True,
        ),
        "expert_moved": curves_figure(
            part.categories,
            part.layer_ids,
            part.moved,
            f"Choices that tuning moves to other experts\n{name}",
            "choices a token, mean frequencies compared",
            None if part.moved_low is None or part.moved_high is None else (part.moved_low, part.moved_high),
        ),
    }


def panels(categories: Sequence[str], maps: Maps, overall: Sequence[Sequence[float]]) -> tuple[list[str], Maps]:
    """Titles and maps to draw: a category each, or one over all instructions where there are too many."""
    if len(categories) <= MOST_PANELS:
        return [label(name) for name in categories], maps
    return [f"all instructions of {len(categories)} categories"], [overall]


def maps_figure(
    titles: Sequence[str], maps: Maps, layer_ids: Sequence[int], title: str, quantity: str, *, signed: bool = False
) -> Figure:
    """Maps of layer by expert beside each other, one scale for all.

    Args:
        maps: map × layer × expert.
        signed: values may be below 0: the scale is symmetric.
    """
    values = np.array(maps, dtype=np.float64)
    most = float(np.abs(values).max()) or 1.0
    across = min(3, len(titles))
    down = -(-len(titles) // across)
    height = 0.9 + down * (0.55 + min(3.0, max(1.2, 0.08 * len(layer_ids))))
    figure = canvas(max(4.6, 3.0 * across), height + 0.5)
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    for axes in grid.flat[len(titles) :]:
        axes.set_visible(False)
    for axes, name, one in zip(grid.flat, titles, values, strict=False):
        image = axes.imshow(
            one,
            cmap=mpl.colormaps["PuOr" if signed else "cividis"],
            vmin=-most if signed else 0.0,
            vmax=most,
            aspect="auto",
            interpolation="nearest",
        )
        panel_title(axes, name, 9, 2.6)
        axes.spines[:].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        layer_ticks(axes, layer_ids, vertical=True)
        axes.tick_params(length=0, labelsize=8)
    for place, axes in np.ndenumerate(grid):
        axes.set_ylabel("layer" if place[1] == 0 else "", fontsize=9)
        axes.set_xlabel("expert" if place[0] == down - 1 else "", fontsize=9)
    fitting.title(figure, title)
    shown = wrapped(quantity, 10, 3.0 * across)
    figure.colorbar(image, ax=list(grid.flat), label=shown, location="bottom", shrink=0.7, aspect=40)
    return figure
