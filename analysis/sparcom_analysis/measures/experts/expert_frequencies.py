"""Mean expert frequency per category (SPARCOM, eq. 11)."""

from __future__ import annotations

from typing import Any

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparcom_analysis import plotting
from sparcom_analysis.frequencies import Progress
from sparcom_analysis.ise import ExpertCounts
from sparcom_analysis.measures.drawing import names
from sparcom_analysis.measures.measure import dataset, means, measure
from sparcom_analysis.measures.text import TIE, decimal, interval, largest
from sparcom_analysis.resampling.bootstrap import resamples_for
from sparcom_analysis.resampling.means import group_means

MAX_PANELS = 12


def mean_expert_frequencies(experts: ExpertCounts, progress: Progress | None = None, **changes: Any) -> xr.Dataset:
    """Return the mean of f (SPARCOM, eq. 11) over the instructions of each category; the mean is ours.

    Instructions have equal weight, whatever their length. `experts["id"]` is the vector of one (SPARCOM, eq. 12).

    Args:
        experts: result of `find_ises`. **changes: `n_resamples`, `confidence_level`, `seed`; see `Options`.

    Returns:
        `value`, `ci_low`, `ci_high` (category, layer, expert): fractions of tokens. `overall_value`, … (layer, expert):
        the same over all instructions. `null_mean`: top_k / experts, the frequency under uniform routing.
    """
    experts = experts.with_options(**changes)
    found = group_means(experts.frequencies, experts.categories, resamples_for(experts.categories, experts.options))
    about = {"long_name": "mean expert frequency", "units": "fraction of tokens"}
    variables = means(found, ("layer", "expert"), attrs=about)
    variables["null_mean"] = ((), experts.top_k / experts.experts)
    coords = {"category": found.labels, "layer": list(experts.layer_ids), "expert": range(experts.experts)}
    return dataset(experts, variables, coords, measure=MEASURE.name)


def sentences(ds: xr.Dataset) -> list[str]:
    values, null = ds["overall_value"], decimal(float(ds["null_mean"]))
    where, most = largest(values), float(values.max())
    expert, ci = f"expert {where['expert']} of layer {where['layer']}", interval(ds, where, "overall_")
    if (ties := int((values > most - TIE).sum())) > 1:
        expert, ci = f"each of {ties:,} experts", ""
    found = [
        f"Mean expert frequency is largest for {expert}: {decimal(most)}{ci}; under uniform routing it would be {null}."
    ]
    if never := int((values == 0).sum()):
        found.append(f"No token activates {never:,} of {values.size:,} experts.")
    return found


def caption(ds: xr.Dataset) -> str:
    return (
        f"Mean expert frequency by layer and expert, {ds.attrs['model']} (f: SPARCOM, eq. 11; the mean is ours). "
        f"The color scale is centered on uniform routing, {decimal(float(ds['null_mean']))}."
    )


def plot(ds: xr.Dataset, ax: Axes | None = None, *, category: str | None = None, **style: Any) -> Axes:
    """Draw mean frequencies as a heat map centered on uniform routing; all categories use one color range.

    category: a label (default: all instructions). style: see `plotting.heatmap`.
    """
    one = ds["overall_value"] if category is None else ds["value"].sel(category=category)
    given = {"label": one.attrs["long_name"], "title": ds.attrs["model"] if category is None else category}
    given |= dict(zip(("vmin", "vmax"), plotting.limits([ds]), strict=True)) | {"center": float(ds["null_mean"])}
    ax = plotting.heatmap(one.values, names(ds, "layer"), names(ds, "expert"), ax=ax, **(given | style))
    ax.set(xlabel="expert", ylabel="layer")
    return ax


def figure(ds: xr.Dataset) -> Figure:
    """Draw one heat map per category, or one over all instructions if there are more than 12 categories."""
    shown = names(ds) if ds.sizes["category"] <= MAX_PANELS else [None]
    drawn, axes = plotting.panels(len(shown), columns=3)
    for ax, category in zip(axes, shown, strict=True):
        plot(ds, ax, category=category)
    plotting.share([axes[first : first + 3] for first in range(0, len(axes), 3)])
    return drawn


MEASURE = measure(
    mean_expert_frequencies,
    "Expert frequencies",
    "SPARCOM, eq. 11",
    "experts",
    "The fraction of an instruction's tokens that activate an expert (SPARCOM, eq. 11), and its mean over the "
    "instructions of a category (ours). Frequencies sum to top_k over the experts of a layer.",
    name="expert_frequencies",
)
