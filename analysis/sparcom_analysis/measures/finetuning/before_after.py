"""Mean per category of an instruction's similarity between base and tuned model, for equations 15 and 16."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sparcom_analysis.compare import ExpertComparison, IsnComparison
from sparcom_analysis.measures.measure import Variable, dataset, means, present
from sparcom_analysis.measures.text import decimal, extremes, interval
from sparcom_analysis.resampling.bootstrap import resamples_for
from sparcom_analysis.resampling.means import group_means

MODELS = ["base", "tuned"]


def before_after_dataset(
    comparison: IsnComparison | ExpertComparison, values: NDArray[np.float64], long_name: str, measure: str
) -> xr.Dataset:
    """Return the means of the similarities of m matched instructions, float64 (m,), ignoring NaN.

    Variables: `value`, `ci_low`, `ci_high`, `counted`, `undefined` (category) and their `overall_…` versions;
    `instruction_value`, `instruction_category` (instruction). `change` with its interval is 1 − similarity (ours).
    """
    matched, name = comparison.matched, {"long_name": long_name}
    found = group_means(values, matched.categories, resamples_for(matched.categories, comparison.options))
    variables: dict[str, Variable] = {
        **means(found, attrs=name),
        "counted": ("category", found.counted),
        "undefined": ("category", found.undefined),
        "overall_counted": ((), found.counted.sum()),
        "overall_undefined": ((), found.undefined.sum()),
        "instruction_value": ("instruction", values, name),
        "instruction_category": ("instruction", matched.names),
    }
    ds = dataset(comparison, variables, {"category": found.labels, "instruction": matched.ids}, measure=measure)
    turned = {"value": "change", "ci_low": "change_ci_high", "ci_high": "change_ci_low"}
    pairs = [(f"{prefix}{old}", f"{prefix}{new}") for prefix in ("", "overall_") for old, new in turned.items()]
    return ds.assign({new: (ds[old].dims, 1 - ds[old].values) for old, new in pairs if old in ds})


def both_models(base: Mapping[str, Variable], tuned: Mapping[str, Variable]) -> dict[str, Any]:
    """Stack the variables of both models along a new first dimension `model`, base first."""
    return {
        name: (("model", *dims), np.stack([values, tuned[name][1]]), *attrs)
        for name, (dims, values, *attrs) in base.items()
    }


def before_after_sentences(ds: xr.Dataset, what: str, digits: int, undefined: str) -> list[str]:
    """Return sentences on the overall mean, the lowest and highest category, and undefined values.

    Args:
        what: "The mean Jaccard similarity of …". undefined: "have no ISN in either model".
    """
    models = f"{ds.attrs['model']} and {ds.attrs['tuned_model']}"
    if not present(ds, "overall_value"):
        return [f"{what} in {models} is undefined: all {ds.attrs['instructions']:,} instructions {undefined}."]
    value, change = (decimal(float(ds[f"overall_{name}"]), digits) for name in ("value", "change"))
    noun, ci = str(ds["value"].attrs["long_name"]).rsplit(" ", 1)[1], interval(ds, prefix="overall_", digits=digits)
    found = [f"{what} in {models} is {value}{ci}; the change, 1 − {noun}, is {change}."]
    if ends := extremes(ds["value"], digits):
        found.append(f"By category, the mean is {ends}.")
    if missing := int(ds["overall_undefined"]):
        found.append(f"Means skip {missing:,} of {ds.attrs['instructions']:,} instructions, which {undefined}.")
    return found
