"""ISNs by layer (SPARCOM, fig. 5)."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from sparcom_analysis.frequencies import Progress
from sparcom_analysis.isn import IsnSets
from sparcom_analysis.measures.drawing import layer_curves
from sparcom_analysis.measures.measure import dataset, means, measure
from sparcom_analysis.measures.text import among, decimal, interval, largest
from sparcom_analysis.resampling.bootstrap import resamples_for
from sparcom_analysis.resampling.means import group_means

ABOUT = {"long_name": "mean ISNs per instruction"}


def layers(isn: IsnSets, progress: Progress | None = None, **changes: Any) -> xr.Dataset:
    """Return the mean number of ISNs per instruction in each layer, by category (SPARCOM, fig. 5).

    Args:
        isn: ISN sets from `find_isns`. **changes: `n_resamples`, `confidence_level`, `seed`; see `Options`.

    Returns:
        `value`, `ci_low`, `ci_high` (category, layer); `overall_…` (layer); `null_mean` (layer): the same number of
        ISNs spread evenly over all layers (ours).
    """
    isn = isn.with_options(**changes)
    found = group_means(isn.layer_counts, isn.categories, resamples_for(isn.categories, isn.options))
    even = np.full_like(found.overall, found.overall.mean())
    variables = {**means(found, ["layer"], attrs=ABOUT), "null_mean": ("layer", even)}
    return dataset(isn, variables, {"category": found.labels, "layer": list(isn.layer_ids)}, measure=MEASURE.name)


def sentences(ds: xr.Dataset) -> list[str]:
    mean, width = ds["overall_value"], ds.attrs["neurons"] // ds.sizes["layer"]
    total, size = float(mean.sum()), len(mean)
    if not total:
        return [f"No instruction of {ds.attrs['model']} has an ISN in any layer with these settings."]
    cell = ds.sel(layer=largest(mean)["layer"])
    top, even = (decimal(float(cell[name]), 1) for name in ("overall_value", "null_mean"))
    found = [
        f"Layer {cell['layer'].item()} of {ds.attrs['model']} holds the most ISNs{among(ds)}: {top} of "
        f"{width:,} per instruction{interval(cell, prefix='overall_', digits=1)}; an even spread would give {even}."
    ]
    if size >= 3:
        thirds = np.split(mean.values, [size // 3, size - size // 3])
        low, middle, high = (f"{100 * third.sum() / total:.0f} %" for third in thirds)
        found.append(f"The lower, middle and upper thirds of the layers hold {low}, {middle} and {high} of the ISNs.")
    return found


def caption(ds: xr.Dataset) -> str:
    bands = " Bands: confidence intervals over instructions." if "ci_low" in ds else ""
    return (
        f"Mean number of ISNs per instruction in each layer, by category, {ds.attrs['model']}{among(ds, ', ')} "
        f"(SPARCOM, fig. 5).{bands} Dashed: an even spread over the layers."
    )


MEASURE = measure(
    layers,
    "ISNs by layer",
    "SPARCOM, fig. 5",
    "isn",
    "The number of ISNs per instruction in each layer, averaged over the instructions of a category.",
    plot=layer_curves,
    also_tuned=True,
)
