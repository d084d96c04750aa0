"""ISNs by layer before and after fine-tuning, and the difference (SPARCOM, fig. 5; the difference is ours)."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparcom_analysis import plotting
from sparcom_analysis.compare import IsnComparison
from sparcom_analysis.frequencies import Progress
from sparcom_analysis.measures.drawing import layer_curves
from sparcom_analysis.measures.finetuning.before_after import MODELS, both_models
from sparcom_analysis.measures.measure import dataset, frames, means, measure, present
from sparcom_analysis.measures.neurons.layers import ABOUT
from sparcom_analysis.measures.text import TIE, among, decimal, interval, listed
from sparcom_analysis.resampling.bootstrap import resamples_for
from sparcom_analysis.resampling.means import group_means


def finetuning_layers(comparison: IsnComparison, progress: Progress | None = None, **changes: Any) -> xr.Dataset:
    """Return the mean number of ISNs per instruction in each layer of both models (SPARCOM, fig. 5).

    Args:
        comparison: ISN sets of both models. **changes: `n_resamples`, `confidence_level`, `seed`; see `Options`.

    Returns:
        `value` (model, category, layer); `difference` (category, layer): tuned − base, paired by instruction. Both
        have intervals, and `overall_…` versions without the category axis.
    """
    comparison = comparison.with_options(**changes)
    kinds, base, tuned = comparison.matched.categories, comparison.base_counts, comparison.tuned_counts
    draws = resamples_for(kinds, comparison.options)
    before, after, change = (group_means(counts, kinds, draws) for counts in (base, tuned, tuned - base))
    sides = both_models(*(means(side, ["layer"], attrs=ABOUT) for side in (before, after)))
    sides |= means(change, ["layer"], "difference_", ABOUT)
    coords = {"model": MODELS, "category": before.labels, "layer": list(comparison.base.layer_ids)}
    renamed = {f"{prefix}difference_value": f"{prefix}difference" for prefix in ("", "overall_")}
    return dataset(comparison, sides, coords, measure=MEASURE.name).rename(renamed)


def sentences(ds: xr.Dataset) -> list[str]:
    sizes = np.abs(ds["overall_difference"].values)
    layers = ds["layer"].values[sizes >= sizes.max() - TIE].tolist()
    start = f"The number of ISNs per instruction{among(ds)}"
    if sizes.max() <= TIE:
        return [f"{start} is the same in every layer of {ds.attrs['model']} and {ds.attrs['tuned_model']}."]
    if len(layers) > 1:
        where = listed([str(layer) for layer in layers])
        return [f"{start} changes most in layers {where} after fine-tuning, each by {decimal(float(sizes.max()), 1)}."]
    cell = ds.sel(layer=layers[0])
    before, after = (decimal(float(cell["overall_value"].sel(model=model)), 1) for model in MODELS)
    by = interval(cell, prefix="overall_difference_", digits=1)
    signed = ("+" if cell["overall_difference"] > 0 else "") + decimal(float(cell["overall_difference"]), 1)
    found = [f"{start} changes most in layer {layers[0]}: from {before} to {after}, by {signed}{by}."]
    if present(ds, "overall_difference_ci_low"):
        more, fewer = (ds["overall_difference_ci_low"] > 0).sum(), (ds["overall_difference_ci_high"] < 0).sum()
        out = f"The interval of the change excludes 0 in {int(more + fewer)} of {len(sizes)} layers"
        found.append(f"{out} (more ISNs in {int(more)}, fewer in {int(fewer)}).")
    return found


def caption(ds: xr.Dataset) -> str:
    bands = " Bands: confidence intervals over instructions." if "ci_low" in ds else ""
    return (
        f"Mean number of ISNs per instruction in each layer{among(ds, ', ')}: {ds.attrs['tuned_model']} (top), "
        f"{ds.attrs['model']} (middle), and the difference (bottom) (SPARCOM, fig. 5; the difference is ours).{bands}"
    )


def plot(ds: xr.Dataset, ax: Axes | None = None, *, model: str | None = None, **style: Any) -> Axes:
    """Draw one curve per category for `model` "base" or "tuned" (default: the difference)."""
    if model is None:
        held: dict[str, Any] = {"title": "tuned − base", "ymin": None, "null": 0.0}
        return layer_curves(ds, ax, variable="difference", prefix="difference_", **(held | style))
    title = ds.attrs["model" if model == "base" else "tuned_model"]
    return layer_curves(ds.sel(model=model), ax, **({"title": title} | style))


def figure(ds: xr.Dataset) -> Figure:
    """Draw the tuned model above the base model on one scale, and the difference below."""
    drawn, (top, middle, bottom) = plotting.panels(3, columns=1)
    plot(ds, top, model="tuned", legend=False)
    plot(ds, middle, model="base", legend=False)
    plotting.share([[top], [middle]])
    plot(ds, bottom)
    return drawn


MEASURE = measure(
    finetuning_layers,
    "Layers of ISNs before and after fine-tuning",
    "SPARCOM, fig. 5",
    "isn_comparison",
    definition="The number of ISNs per instruction in each layer of the base and of the tuned model, averaged over the "
    "instructions of a category, and the difference tuned − base (ours).",
    tables=lambda ds: frames(ds, {"": "value", "difference": "difference"}),
)
