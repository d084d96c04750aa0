"""Similarity of each instruction's ISN sets before and after fine-tuning (SPARCOM, eq. 15, table 1)."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from sparcom_analysis import plotting
from sparcom_analysis.compare import IsnComparison
from sparcom_analysis.frequencies import Progress
from sparcom_analysis.measures.drawing import category_bars, layer_curves
from sparcom_analysis.measures.finetuning.before_after import before_after_dataset, before_after_sentences
from sparcom_analysis.measures.measure import Variable, frames, means, measure
from sparcom_analysis.measures.text import among, decimal, extremes
from sparcom_analysis.resampling.bootstrap import resamples_for
from sparcom_analysis.resampling.means import group_means
from sparcom_analysis.resampling.pairs import ratio


def finetuning_jaccard(comparison: IsnComparison, progress: Progress | None = None, **changes: Any) -> xr.Dataset:
    """Return the mean Jaccard similarity of each instruction's ISN sets in both models (SPARCOM, eq. 15).

    J*(I) = |S(I) ∩ S*(I)| / |S(I) ∪ S*(I)|, with the ISN sets of instruction I in the base and the tuned model. Values
    by layer (ours) use the neurons of one layer. The index of two empty sets is undefined; means skip it. The null
    (ours) is two random sets with the same number of ISNs per layer (a and b). They have E = Σ_layer a b / width
    neurons in common on average, and an index of about E / (|S| + |S*| − E).

    Args:
        comparison: ISN sets of both models. **changes: `n_resamples`, `confidence_level`, `seed`; see `Options`.

    Returns:
        The variables of `before_after_dataset`; `layer_value` (category, layer) and `overall_layer_value` (layer) with
        intervals; `base_isn`, `tuned_isn` (category), `overall_base_isn`, `overall_tuned_isn`: ISNs per instruction;
        `layer_isn` (layer): mean of both models over all instructions; `null_mean` and its variants.
    """
    comparison = comparison.with_options(**changes)
    kinds, part = comparison.matched.categories, comparison.base.population
    base, tuned = comparison.base_counts, comparison.tuned_counts
    expected, sizes = base * tuned / part.width, base + tuned
    whole = expected.sum(axis=1)
    null = group_means(ratio(whole, sizes.sum(axis=1) - whole), kinds)
    layer_null = group_means(ratio(expected, sizes - expected), kinds)
    ds = before_after_dataset(comparison, comparison.jaccard, "mean Jaccard similarity", MEASURE.name)
    by_layer = group_means(comparison.layer_jaccard, kinds, resamples_for(kinds, comparison.options))
    units = {"units": "ISNs per instruction"}
    variables: dict[str, Variable] = {
        "null_mean": ("category", null.mean),
        "overall_null_mean": ((), null.overall),
        **means(by_layer, ["layer"], "layer_", ds["value"].attrs),
        "layer_null_mean": (("category", "layer"), layer_null.mean),
        "overall_layer_null_mean": ("layer", layer_null.overall),
        "layer_isn": ("layer", (base.mean(axis=0) + tuned.mean(axis=0)) / 2, units),
    }
    for name, counts in (("base_isn", base), ("tuned_isn", tuned)):
        size = group_means(counts.sum(axis=1), kinds)
        variables |= {name: ("category", size.mean, units), f"overall_{name}": ((), size.overall)}
    return ds.assign_coords(layer=list(part.layer_ids)).assign(variables)


def sentences(ds: xr.Dataset) -> list[str]:
    what = f"The mean Jaccard similarity of each instruction's ISN sets{among(ds)}"
    found = before_after_sentences(ds, what, 3, "have no ISN in either model")
    if not np.isnan(ds["overall_value"]):
        null = decimal(float(ds["overall_null_mean"]))
        found.insert(1, f"For random sets with the same number of ISNs per layer, the mean is about {null}.")
    if ends := extremes(ds["overall_layer_value"]):
        found.append(f"By layer, the mean similarity is {ends}.")
    return found


def caption(ds: xr.Dataset) -> str:
    return (
        f"Mean Jaccard similarity of each instruction's ISN sets in {ds.attrs['model']} and "
        f"{ds.attrs['tuned_model']}{among(ds, ', ')} (SPARCOM, eq. 15), by category and by layer. Dashed: random sets "
        "with the same number of ISNs per layer."
    )


def figure(ds: xr.Dataset) -> Figure:
    """Draw two panels: by category and by layer."""
    drawn, axes = plotting.panels(2)
    category_bars(ds, axes[0])
    null = ds["overall_layer_null_mean"].values
    layer_curves(ds, axes[1], variable="layer_value", prefix="layer_", null=null, title="by layer")
    return drawn


MEASURE = measure(
    finetuning_jaccard,
    "Similarity of ISN sets before and after fine-tuning",
    "SPARCOM, eq. 15, table 1",
    "isn_comparison",
    definition="The Jaccard index |A ∩ B| / |A ∪ B| of an instruction's ISN sets in the base and in the tuned model, "
    "averaged over the instructions of a category. The change is 1 − similarity (ours).",
    plot=category_bars,
    tables=lambda ds: frames(ds, {"": "value", "by_layer": "layer_value"}),
)
