"""ISNs by layer before and after fine-tuning, and the difference (SPARCOM, fig. 5; the difference is ours)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparcom_analysis import plotting
from sparcom_analysis.compare import IsnComparison
from sparcom_analysis.frequencies import Progress
from sparcom_analysis.measures.measure import Measure, dataset, means, present
from sparcom_analysis.measures.neurons.layers import plot_layers
from sparcom_analysis.measures.text import TIE, decimal, interval, listed, neurons_of
from sparcom_analysis.resampling.bootstrap import resamples_for
from sparcom_analysis.resampling.means import group_means

UNITS = {"long_name": "mean number of ISNs", "units": "ISNs per instruction"}
MODELS = ["base", "tuned"]


def finetuning_layers(comparison: IsnComparison, progress: Progress | None = None, **changes: Any) -> xr.Dataset:
    """Return the mean number of ISNs per instruction in each layer of both models (SPARCOM, fig. 5).

    Args:
        comparison: ISN sets of both models. **changes: `n_resamples`, `confidence_level`, `seed`: see `Options`.

    Returns:
        `value` (model, category, layer); `difference` (category, layer), tuned − base, whose interval is of the paired
        difference of the same instructions; both with intervals, and with `overall_` without the category axis.
    """
    comparison = comparison.with_options(**changes)
    kinds, base, tuned = comparison.matched.categories, comparison.base_counts, comparison.tuned_counts
    draws = resamples_for(kinds, comparison.options)
    found = [group_means(values, kinds, draws) for values in (base, tuned, tuned - base)]
    sides = [xr.Dataset(means(one, ["layer"], attrs=UNITS)) for one in found[:2]]
    change = xr.Dataset(means(found[2], ["layer"], "difference_", UNITS))
    names = {f"{prefix}difference_value": f"{prefix}difference" for prefix in ("", "overall_")}
    held = xr.concat(sides, "model").merge(change.rename(names))
    variables: dict[str, Any] = {str(name): held[name].variable for name in held}
    coords = {"model": MODELS, "category": found[0].labels, "layer": list(comparison.base.layer_ids)}
    return dataset(comparison, variables, coords)


def sentences(ds: xr.Dataset) -> list[str]:
    """Return what the Dataset says."""
    change, sizes = ds["overall_difference"], np.abs(ds["overall_difference"].values)
    layers = change["layer"].values[sizes >= sizes.max() - TIE].tolist()
    start = f"The number of ISNs per instruction ({neurons_of(ds)})"
    if sizes.max() <= TIE:
        return [f"{start} is the same in every layer of {ds.attrs['model']} and {ds.attrs['tuned_model']}."]
    if len(layers) > 1:
        where = f"layers {listed([str(layer) for layer in layers])}"
        return [f"{start} changes most in {where} after fine-tuning, each by {decimal(float(sizes.max()), 1)}."]
    cell = ds.sel(layer=layers[0])
    before, after = (decimal(float(cell["overall_value"].sel(model=model)), 1) for model in MODELS)
    by = interval(cell, prefix="overall_difference_", digits=1)
    signed = ("+" if cell["overall_difference"] > 0 else "") + decimal(float(cell["overall_difference"]), 1)
    found = [f"{start} changes most in layer {layers[0]}: from {before} to {after}, by {signed}{by}."]
    if present(ds, "overall_difference_ci_low"):
        low, high = ds["overall_difference_ci_low"].values, ds["overall_difference_ci_high"].values
        more, fewer = int((low > 0).sum()), int((high < 0).sum())
        found.append(
            f"The interval of the change excludes 0 in {more + fewer} of {len(low)} layers (more ISNs in {more}, fewer "
            f"in {fewer})."
        )
    return found


def caption(ds: xr.Dataset) -> str:
    """Return the caption of the figure."""
    return (
        f"Mean number of ISNs per instruction in each layer, {neurons_of(ds)}: {ds.attrs['tuned_model']} (top), "
        f"{ds.attrs['model']} (middle), and the difference (bottom) (SPARCOM, fig. 5; the difference is ours). Bands: "
        "confidence intervals over instructions."
    )


def plot(ds: xr.Dataset, ax: Axes | None = None, *, model: str | None = None, **style: Any) -> Axes:
    """Draw one curve per category: of `model` "base" or "tuned", or the difference (None)."""
    if model is None:
        held: dict[str, Any] = {"title": "tuned − base", "ymin": None, "null": 0.0}
        return plot_layers(ds, ax, values="difference", prefix="difference_", **(held | style))
    title = ds.attrs["model" if model == "base" else "tuned_model"]
    return plot_layers(ds.sel(model=model), ax, **({"title": title} | style))


def figure(ds: xr.Dataset) -> Figure:
    """Draw the tuned model above the base model on the same scale, and the difference below."""
    drawn, axes = plotting.panels(3, columns=1)
    highest = float(np.nanmax(ds["ci_high" if present(ds, "ci_high") else "value"])) or 1.0
    for place, model in enumerate(reversed(MODELS)):
        plot(ds, axes[place], model=model, ymin=0.0, ymax=1.05 * highest, legend=False)
    plot(ds, axes[2])
    return drawn


def tables(ds: xr.Dataset) -> Mapping[str, Any]:
    """Return the numbers of both models, and their difference."""
    dims = {"": ("model", "category", "layer"), "difference": ("category", "layer")}
    return {name: ds[[key for key in ds if ds[key].dims == shape]].to_dataframe() for name, shape in dims.items()}


MEASURE = Measure(
    name="finetuning_layers",
    title="Layers of ISNs before and after fine-tuning",
    equation="SPARCOM, fig. 5",
    needs="isn_comparison",
    definition=(
        "The number of ISNs per instruction in each layer of the base and of the tuned model, mean over the "
        "instructions of a category, and the difference tuned − base (ours)."
    ),
    compute=finetuning_layers,
    sentences=sentences,
    caption=caption,
    plot=plot,
    figure=figure,
    tables=tables,
)
