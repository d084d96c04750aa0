"""Sizes of ISN sets, the effect of ties, and the correlation with length (ours)."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from sparcom_analysis import plotting
from sparcom_analysis.frequencies import Progress
from sparcom_analysis.isn import IsnSets
from sparcom_analysis.measures.drawing import names
from sparcom_analysis.measures.measure import OURS, dataset, means, measure
from sparcom_analysis.measures.text import among, decimal, interval, neurons_of
from sparcom_analysis.plotting import fitting as fit
from sparcom_analysis.resampling.bootstrap import resamples_for
from sparcom_analysis.resampling.means import group_means
from sparcom_analysis.resampling.ranks import rank_correlation

UNITS = {"long_name": "size of the ISN set", "units": "ISNs per instruction"}


def set_sizes(isn: IsnSets, progress: Progress | None = None, **changes: Any) -> xr.Dataset:
    """Return the number of ISNs of each instruction, and its mean by category.

    Args:
        isn: ISN sets from `find_isns`. **changes: `n_resamples`, `confidence_level`, `seed`; see `Options`.

    Returns:
        `instruction_value`, `instruction_tokens`, `instruction_category` (instruction); `value` with its interval and
        `mean_tokens` (category); `overall_value`, `overall_min`, `overall_max`, `overall_empty` (empty sets), and
        `tokens_correlation`, Spearman's correlation of size and T (NaN without variance). The attribute `wanted` is
        k = ⌈top · N⌉, absent for `min_frequency`.
    """
    isn = isn.with_options(**changes)
    sizes, tokens = isn.sizes, group_means(isn.tokens, isn.categories)
    found = group_means(sizes, isn.categories, resamples_for(isn.categories, isn.options))
    variables = {
        **means(found, attrs=UNITS),
        "overall_min": ((), sizes.min()),
        "overall_max": ((), sizes.max()),
        "overall_empty": ((), (sizes == 0).sum()),
        "tokens_correlation": ((), rank_correlation(sizes, isn.tokens)),
        "mean_tokens": ("category", tokens.mean, {"units": "tokens per instruction"}),
        "instruction_value": ("instruction", sizes, UNITS),
        "instruction_tokens": ("instruction", isn.tokens, {"long_name": "T", "units": "tokens"}),
        "instruction_category": ("instruction", isn.names),
    }
    coords = {"category": found.labels, "instruction": list(isn.ids)}
    return dataset(isn, variables, coords, measure=MEASURE.name, wanted=isn.options.wanted(isn.population.total))


def sentences(ds: xr.Dataset) -> list[str]:
    mean, wanted, total = float(ds["overall_value"]), ds.attrs.get("wanted"), ds.attrs["neurons"]
    low, high, empty = (int(ds[f"overall_{name}"]) for name in ("min", "max", "empty"))
    found = [
        f"ISN sets of {ds.attrs['model']} have {decimal(mean, 1)} of {total:,} {neurons_of(ds)} on average"
        f"{interval(ds, prefix='overall_', digits=1)} and range from {low:,} to {high:,} ({ds.attrs['rule']})."
    ]
    if wanted:
        found.append(
            f"The rule selects {wanted:,} neurons; ties make sets {mean / wanted:.2f} times as large on average."
        )
    if empty:
        found.append(f"{empty:,} instruction{'s have' if empty > 1 else ' has'} no ISN at all.")
    if not np.isnan(ds["tokens_correlation"]):
        r = decimal(float(ds["tokens_correlation"]), 2)
        found.append(f"Spearman's rank correlation of set size and number of tokens is {r}.")
    return found


def caption(ds: xr.Dataset) -> str:
    line = f" Dashed: size without ties, {ds.attrs['wanted']:,}." if "wanted" in ds.attrs else ""
    return f"ISNs and tokens of each instruction, {ds.attrs['model']}{among(ds, ', ')} ({ds.attrs['rule']}).{line}"


def plot(ds: xr.Dataset, ax: Axes | None = None, *, title: str | None = None, ymax: float | None = None) -> Axes:
    """Draw one point per instruction: tokens and ISNs, colored by category."""
    ax = plotting.new_axes() if ax is None else ax
    for place, name in enumerate(names(ds)):
        one = ds.isel(instruction=ds["instruction_category"].values == name)
        color, marker = plotting.COLORS[place % 7], plotting.MARKERS[(place + place // 7) % 7]
        points = one["instruction_tokens"], one["instruction_value"]
        ax.scatter(*points, 12, color=color, marker=marker, label=fit.plain(name), alpha=0.7)
    if "wanted" in ds.attrs:
        ax.axhline(ds.attrs["wanted"], color=plotting.GREY, linestyle="--", linewidth=1.1)
    ax.set_xlabel("tokens per instruction", fontsize=fit.LABEL)
    ax.set_ylabel(UNITS["units"], fontsize=fit.LABEL)
    ax.set_ylim(top=ymax)
    plotting.plain_axes(ax, ds.attrs["model"] if title is None else title)
    plotting.legend_below(ax)
    return ax


MEASURE = measure(
    set_sizes,
    "Sizes of ISN sets",
    OURS,
    "isn",
    definition="The number of ISNs per instruction. A set includes all ties with the last selected neuron, so it can "
    "be larger than the rule requires.",
    also_tuned=True,
)
