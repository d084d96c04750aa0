"""What equations 15 and 16 share: the mean by category of a similarity of the same instruction in both models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from sparcom_analysis import plotting
from sparcom_analysis.compare import ExpertComparison, IsnComparison
from sparcom_analysis.measures.measure import Variable, bounds, dataset, means, present
from sparcom_analysis.measures.text import decimal, extremes, interval
from sparcom_analysis.resampling.bootstrap import Interval, resamples_for
from sparcom_analysis.resampling.means import group_means


def before_after_dataset(
    comparison: IsnComparison | ExpertComparison,
    values: NDArray[np.float64],
    long_name: str,
    variables: Mapping[str, Variable] | None = None,
    coords: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Return the means of a similarity of m matched instructions, float64 (m,); NaN is in no mean.

    Variables: `value`, `ci_low`, `ci_high`, `counted`, `undefined` (category) and the same with `overall_`;
    `instruction_value`, `instruction_category` (instruction); those given. `change` with its interval is 1 − similarity
    (ours).
    """
    matched, name = comparison.matched, {"long_name": long_name}
    found = group_means(values, matched.categories, resamples_for(matched.categories, comparison.options))
    changed: dict[str, Variable] = {}
    for prefix, dims, mean, ends in (
        ("", ("category",), found.mean, found.interval),
        ("overall_", (), found.overall, found.overall_interval),
    ):
        flipped = None if ends is None else Interval(1 - ends.high, 1 - ends.low)
        changed |= {f"{prefix}change": (dims, 1 - mean), **bounds(f"{prefix}change_", dims, flipped)}
    counts: dict[str, Variable] = {}
    for key, counted in (("counted", found.counted), ("undefined", found.undefined)):
        counts |= {key: ("category", counted), f"overall_{key}": ((), counted.sum())}
    one: dict[str, Variable] = {
        "instruction_value": ("instruction", values, name),
        "instruction_category": ("instruction", matched.names),
    }
    return dataset(
        comparison,
        {**means(found, attrs=name), **changed, **counts, **one, **(variables or {})},
        {"category": found.labels, "instruction": matched.ids, **(coords or {})},
    )


def before_after_sentences(ds: xr.Dataset, what: str, digits: int, undefined: str) -> list[str]:
    """Return the overall mean with its interval, the categories at both ends, and how many have no value.

    Args:
        what: "The mean Jaccard similarity of …". undefined: "have no ISN in either model".
    """
    models = f"{ds.attrs['model']} and {ds.attrs['tuned_model']}"
    if not present(ds, "overall_value"):
        return [f"{what} in {models} is undefined: all {ds.attrs['instructions']:,} instructions {undefined}."]
    value, change = (float(ds[f"overall_{name}"]) for name in ("value", "change"))
    found = [
        f"{what} in {models} is {decimal(value, digits)}{interval(ds, prefix='overall_', digits=digits)}, a change of "
        f"{decimal(change, digits)}."
    ]
    if ends := extremes(ds["value"], digits):
        found.append(f"It is {ends}.")
    if missing := int(ds["overall_undefined"]):
        one = undefined.replace("have", "has", 1) if missing == 1 else undefined
        found.append(
            f"{missing:,} instruction{'s' * (missing > 1)} {one} and {'are' if missing > 1 else 'is'} left out."
        )
    return found


def plot_before_after(ds: xr.Dataset, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw one bar per category with its interval, and the null where the Dataset has one."""
    held = {key: ds[name].values for key, name in (("low", "ci_low"), ("high", "ci_high")) if name in ds}
    held |= {"null": ds["null_mean"].values} if "null_mean" in ds else {}
    title = f"{ds.attrs['model']} → {ds.attrs['tuned_model']}"
    style = {"label": str(ds["value"].attrs["long_name"]), "title": title} | held | style
    return plotting.bars([str(name) for name in ds["category"].values], ds["value"].values, ax=ax, **style)
