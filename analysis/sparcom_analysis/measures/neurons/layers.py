"""ISNs by layer (SPARCOM, fig. 5)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from sparcom_analysis import plotting
from sparcom_analysis.frequencies import Progress
from sparcom_analysis.isn import IsnSets
from sparcom_analysis.measures.measure import Measure, dataset, means
from sparcom_analysis.measures.text import decimal, extremes, interval, largest, neurons_of
from sparcom_analysis.resampling.bootstrap import resamples_for
from sparcom_analysis.resampling.means import group_means


def layers(isn: IsnSets, progress: Progress | None = None, **changes: Any) -> xr.Dataset:
    """Return the mean number of ISNs per instruction in each layer, by category (SPARCOM, fig. 5).

    Args:
        isn: the sets, as `find_isns` returns them. **changes: `n_resamples`, `confidence_level`, `seed`: see `Options`.

    Returns:
        `value`, `ci_low`, `ci_high` (category, layer), the same with `overall_` (layer), and `null_mean` (layer): the
        same ISNs spread evenly over all layers (ours).
    """
    isn = isn.with_options(**changes)
    found = group_means(isn.layer_counts, isn.categories, resamples_for(isn.categories, isn.options))
    variables = means(found, ["layer"], attrs={"long_name": "mean number of ISNs", "units": "ISNs per instruction"})
    variables["null_mean"] = ("layer", np.full_like(found.overall, found.overall.mean()))
    coords = {"category": found.labels, "layer": list(isn.layer_ids)}
    return dataset(isn, variables, coords)


def sentences(ds: xr.Dataset) -> list[str]:
    """Return what the Dataset says."""
    mean, width = ds["overall_value"], ds.attrs["neurons"] // ds.sizes["layer"]
    total, size = float(mean.sum()), len(mean)
    if not total:
        return [f"No instruction of {ds.attrs['model']} has an ISN in any layer with these settings."]
    cell = ds.sel(layer=largest(mean)["layer"])
    top, even = (decimal(float(cell[name]), 1) for name in ("overall_value", "null_mean"))
    found = [
        f"Layer {cell['layer'].item()} of {ds.attrs['model']} holds the most ISNs ({neurons_of(ds)}): {top} of "
        f"{width:,} per instruction{interval(cell, prefix='overall_', digits=1)}; evenly spread it would hold {even}."
    ]
    if size >= 3:
        cuts = [0, size // 3, size - size // 3, size]
        thirds = [f"{float(mean[a:b].sum()) / total:.0%}" for a, b in pairwise(cuts)]
        found.append(f"The lower, middle and upper third of the layers hold {', '.join(thirds[:2])} and {thirds[2]}.")
    if (ends := extremes(ds["value"].sel(layer=(apart := _widest(ds))), 1)) and "highest" in ends:
        found.append(f"Categories differ most in layer {apart}, where the number is {ends}.")
    return found


def _widest(ds: xr.Dataset) -> int:
    """Return the layer in which categories differ most."""
    return int(largest(ds["value"].max("category") - ds["value"].min("category"))["layer"])


def caption(ds: xr.Dataset) -> str:
    """Return the caption of the figure."""
    bands = " Bands: confidence intervals over instructions." if "ci_low" in ds else ""
    return (
        f"Mean number of ISNs per instruction in each layer, by category, {ds.attrs['model']}, {neurons_of(ds)} "
        f"(SPARCOM, fig. 5).{bands} Dashed: the same ISNs spread evenly over the layers."
    )


def plot_layers(
    ds: xr.Dataset, ax: Axes | None = None, *, values: str = "value", prefix: str = "", **style: Any
) -> Axes:
    """Draw one curve per category over the layers, with bands.

    Args:
        values: variable (category, layer). prefix: of its interval. style: see `plotting.curves`.
    """
    held = {end: ds[f"{prefix}ci_{end}"].values for end in ("low", "high") if f"{prefix}ci_{end}" in ds}
    label, names = ds[values].attrs.get("units", ""), [str(name) for name in ds["category"].values]
    style = {"label": label, "title": ds.attrs["model"]} | held | style
    return plotting.curves(ds["layer"].values.tolist(), ds[values].values, names, ax=ax, **style)


def plot(ds: xr.Dataset, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw one curve per category over the layers, with bands and the even spread."""
    return plot_layers(ds, ax, **({"null": ds["null_mean"].values} | style))


MEASURE = Measure(
    name="layers",
    title="ISNs by layer",
    equation="SPARCOM, fig. 5",
    needs="isn",
    definition="The number of ISNs per instruction in each layer, mean over the instructions of a category.",
    compute=layers,
    sentences=sentences,
    caption=caption,
    plot=plot,
    also_tuned=True,
)
