"""Similarity of the same instruction's ISN sets before and after fine-tuning (SPARCOM, eq. 15, table 1).

J*(I) = |S(I) ∩ S*(I)| / |S(I) ∪ S*(I)| with the ISN sets of instruction I in the base and the tuned model; of a
category the mean over its instructions. By layer (ours) the same of the layer's neurons alone. Two empty sets have no
Jaccard index: they are in no mean.

The null (ours) are two random sets with as many ISNs in every layer: with E = Σ_layer a b / width common neurons the
index is about E / (|S| + |S*| − E).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sparcom_analysis import plotting
from sparcom_analysis.compare import IsnComparison
from sparcom_analysis.frequencies import Progress
from sparcom_analysis.measures.finetuning.before_after import (
    before_after_dataset,
    before_after_sentences,
    plot_before_after,
)
from sparcom_analysis.measures.measure import Measure, means
from sparcom_analysis.measures.neurons.layers import plot_layers
from sparcom_analysis.measures.text import decimal, extremes, neurons_of
from sparcom_analysis.resampling.bootstrap import resamples_for
from sparcom_analysis.resampling.means import group_means

FEW = 10.0  # ISNs per instruction below which the index of a layer jumps by a tenth with every neuron


def finetuning_jaccard(comparison: IsnComparison, progress: Progress | None = None, **changes: Any) -> xr.Dataset:
    """Return the mean Jaccard similarity of the same instruction's ISN sets in both models (SPARCOM, eq. 15).

    Args:
        comparison: ISN sets of both models. **changes: `n_resamples`, `confidence_level`, `seed`: see `Options`.

    Returns:
        The variables of `before_after_dataset`; `layer_value` (category, layer) and `overall_layer_value` (layer) with
        intervals; `base_isn`, `tuned_isn` (category) and `overall_base_isn`, `overall_tuned_isn`, ISNs per instruction;
        `layer_isn` (layer), the mean of both models over all instructions; `null_mean` and its kin.
    """
    comparison = comparison.with_options(**changes)
    kinds, part = comparison.matched.categories, comparison.base.population
    base, tuned, name = comparison.base_counts, comparison.tuned_counts, {"long_name": "mean Jaccard similarity"}
    by_layer = group_means(comparison.layer_jaccard, kinds, resamples_for(kinds, comparison.options))
    expected = base * tuned / part.width
    null = group_means(_of_random(expected.sum(axis=1), base.sum(axis=1) + tuned.sum(axis=1)), kinds)
    layer_null = group_means(_of_random(expected, base + tuned), kinds)
    sizes = {"base_isn": group_means(base.sum(axis=1), kinds), "tuned_isn": group_means(tuned.sum(axis=1), kinds)}
    return before_after_dataset(
        comparison,
        comparison.jaccard,
        name["long_name"],
        {
            "null_mean": ("category", null.mean),
            "overall_null_mean": ((), null.overall),
            **means(by_layer, ["layer"], "layer_", name),
            "layer_null_mean": (("category", "layer"), layer_null.mean),
            "overall_layer_null_mean": ("layer", layer_null.overall),
            **{key: ("category", size.mean, {"units": "ISNs per instruction"}) for key, size in sizes.items()},
            **{f"overall_{key}": ((), size.overall) for key, size in sizes.items()},
            "layer_isn": ("layer", (base.mean(axis=0) + tuned.mean(axis=0)) / 2, {"units": "ISNs per instruction"}),
        },
        {"layer": list(part.layer_ids)},
    )


def _of_random(common: NDArray[np.float64], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the Jaccard index of sets with so many common neurons and so many together; NaN for empty sets."""
    found: NDArray[np.float64] = np.divide(common, sizes - common, out=np.full(sizes.shape, np.nan), where=sizes > 0)
    return found


def sentences(ds: xr.Dataset) -> list[str]:
    """Return what the Dataset says."""
    what = f"The mean Jaccard similarity of the same instruction's ISN sets ({neurons_of(ds)})"
    found = before_after_sentences(ds, what, 3, "have no ISN in either model")
    if np.isnan(ds["overall_value"]):
        return found
    found.insert(
        1,
        f"Random sets with as many ISNs per layer would have about {decimal(float(ds['overall_null_mean']))}.",
    )
    sizes = [decimal(float(ds[f"overall_{side}_isn"]), 1) for side in ("base", "tuned")]
    found.append(f"An instruction has {sizes[0]} ISNs in the base model and {sizes[1]} in the tuned model.")
    if ends := extremes(ds["overall_layer_value"]):
        found.append(f"By layer, it is {ends}.")
    if none := int(np.isnan(ds["overall_layer_value"]).sum()):
        found.append(f"{none} layer{'s have' if none > 1 else ' has'} no ISN in either model.")
    return found


def caption(ds: xr.Dataset) -> str:
    """Return the caption of the figure."""
    return (
        f"Mean Jaccard similarity of the same instruction's ISN sets in {ds.attrs['model']} and "
        f"{ds.attrs['tuned_model']}, {neurons_of(ds)} (SPARCOM, eq. 15), by category and by layer. Ticks and dashed "
        f"line: random sets with as many ISNs per layer. Grey layers: fewer than {FEW:.0f} ISNs per instruction."
    )


def plot_by_layer(ds: xr.Dataset, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw one curve per category over the layers, with bands; layers with few ISNs are grey."""
    null, label = ds["overall_layer_null_mean"].values, ds["value"].attrs["long_name"]
    style = {"null": null, "label": label, "title": "by layer"} | style
    ax = plot_layers(ds, ax, values="layer_value", prefix="layer_", **style)
    for layer in ds["layer"].values[ds["layer_isn"].values < FEW]:
        ax.axvspan(layer - 0.5, layer + 0.5, color="0.5", alpha=0.15, linewidth=0)
    return ax


def figure(ds: xr.Dataset) -> Figure:
    """Draw the categories beside the layers."""
    drawn, axes = plotting.panels(2)
    plot_before_after(ds, axes[0])
    plot_by_layer(ds, axes[1])
    return drawn


def tables(ds: xr.Dataset) -> Mapping[str, Any]:
    """Return table 1 and the same by layer."""
    dims = {"": ("category",), "by_layer": ("category", "layer")}
    return {name: ds[[key for key in ds if ds[key].dims == shape]].to_dataframe() for name, shape in dims.items()}


MEASURE = Measure(
    name="finetuning_jaccard",
    title="Similarity of ISN sets before and after fine-tuning",
    equation="SPARCOM, eq. 15, table 1",
    needs="isn_comparison",
    definition=(
        "The Jaccard index |A ∩ B| / |A ∪ B| of an instruction's ISN sets in the base and in the tuned model, and its "
        "mean over the instructions of a category. The change is 1 − similarity (ours)."
    ),
    compute=finetuning_jaccard,
    sentences=sentences,
    caption=caption,
    plot=plot_before_after,
    figure=figure,
    tables=tables,
)
