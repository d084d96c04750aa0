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
from sparcom_analysis.measures.measure import Measure, bounds, dataset, present, resampling_attrs
from sparcom_analysis.measures.text import TIE, decimal, interval, listed, neurons_of
from sparcom_analysis.resampling.bootstrap import Interval, resamples_for
from sparcom_analysis.resampling.means import group_means

UNITS = {"units": "ISNs per instruction"}
MODELS = ["base", "tuned"]


def finetuning_layers(comparison: IsnComparison, progress: Progress | None = None, **changes: Any) -> xr.Dataset:  # noqa: ARG001
    """Return the mean number of ISNs per instruction in each layer of both models (SPARCOM, fig. 5).

    Args:
        comparison: ISN sets of both models. **changes: `n_resamples`, `confidence_level`, `seed`: see `Options`.

    Returns:
        `value` (model, category, layer); `difference` (category, layer), tuned − base, whose interval is of the paired
        difference of the same instructions; both with intervals, and with `overall_` without the category axis.
    """
    comparison = comparison.with_options(**changes)
    kinds, base, tuned = comparison.matched.categories, comparison.base_counts, comparison.tuned_counts
    found = group_means(np.stack([base, tuned, tuned - base], axis=1), kinds, resamples_for(kinds, comparison.options))
    variables: dict[str, Any] = {}
    for prefix, dims, mean, ends in (
        ("", ("category", "layer"), found.mean, found.interval),
        ("overall_", ("layer",), found.overall, found.overall_interval),
    ):
        axis = len(dims) - 1  # of the three columns above
        low_high = (np.moveaxis(part, axis, 0) for part in (ends.low, ends.high)) if ends else ()
        columns, both = np.moveaxis(mean, axis, 0), list(low_high)
        variables |= {f"{prefix}value": (("model", *dims), columns[:2], {"long_name": "mean number of ISNs"} | UNITS)}
        variables |= {f"{prefix}difference": (dims, columns[2], {"long_name": "tuned − base"} | UNITS)}
        if both:
            variables |= bounds(prefix, ("model", *dims), Interval(both[0][:2], both[1][:2]))
            variables |= bounds(f"{prefix}difference_", dims, Interval(both[0][2], both[1][2]))
    coords = {"model": MODELS, "category": found.labels, "layer": list(comparison.base.layer_ids)}
    return dataset(comparison, variables, coords, **resampling_attrs(comparison.options))


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
            f"The interval of the change excludes 0 in {more + fewer} of {len(low)} layers (more ISNs in {more}, fewer in "
            f"{fewer})."
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
    name = "difference_" if model is None else ""
    values = ds["difference"] if model is None else ds["value"].sel(model=model)
    held: dict[str, Any] = {"title": "tuned − base", "ymin": None, "null": 0.0}
    if model is not None:
        held = {"title": ds.attrs["model" if model == "base" else "tuned_model"]}
    for end in ("low", "high"):
        if (key := f"{name}ci_{end}") in ds:
            held[end] = (ds[key] if model is None else ds[key].sel(model=model)).values
    style = {"label": "ISNs per instruction"} | held | style
    names = [str(one) for one in ds["category"].values]
    return plotting.curves(ds["layer"].values.tolist(), values.values, names, ax=ax, **style)


def figure(ds: xr.Dataset) -> Figure:
    """Draw the tuned model above the base model on the same scale, and the difference below."""
    drawn, axes = plotting.panels(3, columns=1)
    highest = float(np.nanmax(ds["ci_high" if present(ds, "ci_high") else "value"])) or 1.0
    for place, model in enumerate(reversed(MODELS)):
        plot(ds, axes[place], model=model, ymin=0.0, ymax=1.05 * highest, legend=not place)
    plot(ds, axes[2], legend=False)
    return drawn


def tables(ds: xr.Dataset) -> Mapping[str, Any]:
    """Return the numbers of both models, and their difference."""
    both = [name for name in ds if ds[name].dims == ("model", "category", "layer")]
    difference = [name for name in ds if ds[name].dims == ("category", "layer")]
    return {"finetuning_layers": ds[both].to_dataframe(), "finetuning_layers_change": ds[difference].to_dataframe()}


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
