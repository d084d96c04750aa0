"""Mean over all pairs of instructions from two categories, for equations 10 and 14.

Within a category, the equations include each instruction's pair with itself. Its value is 1 for every model. Results
with and without these pairs lie along the dimension `self_pairs`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from sparcom_analysis import plotting
from sparcom_analysis.frequencies import Progress
from sparcom_analysis.ise import ExpertCounts
from sparcom_analysis.isn import IsnSets
from sparcom_analysis.measures.drawing import names
from sparcom_analysis.measures.measure import NotComputableError, bounds, dataset, present
from sparcom_analysis.measures.text import SIGNIFICANT, decimal, interval, listed, p_value
from sparcom_analysis.resampling.bootstrap import pair_intervals, resamples_for
from sparcom_analysis.resampling.pairs import category_means
from sparcom_analysis.resampling.permutation import label_tests

PairSubject = IsnSets | ExpertCounts
CELLS = ("self_pairs", "category", "category_2")
SELF_PAIRS = [True, False]


def pair_mean_dataset(subject: PairSubject, progress: Progress | None, long_name: str, **attributes: Any) -> xr.Dataset:
    """Return the mean for each pair of categories, with intervals and permutation tests.

    `pvalue` and `pvalue_adjusted` (category, category_2) test whether two categories are more similar than two random
    groups. On the diagonal they test whether a category is more similar within than to other categories. `within`,
    `others` (category), `overall_within` and `overall_between` are means over pairs of two different instructions;
    `overall_pvalue` tests the whole matrix. `null_mean` is the mean over all such pairs.

    The attribute `undefined` counts instructions with an undefined self-similarity (empty sets, or constant expert
    frequencies). Means skip undefined pairs. The attribute `reason` states why intervals or tests are missing.
    """
    options, variables, tests, reason = subject.options, dict[str, Any](), dict[str, Any](), None
    try:
        pairs = subject.pairs
    except NotComputableError as error:
        reason, (*means, itself) = str(error), category_means(subject.categories, subject.pair_blocks())
    else:
        means, itself = list(pairs.means()), pairs.values.diagonal()
        if (resamples := resamples_for(subject.categories, options)) is not None:
            variables |= bounds("", CELLS, pair_intervals(resamples, pairs)[0])
        try:
            tests = label_tests(pairs, options, progress)
        except NotComputableError as error:
            reason = str(error)
    variables |= {name: (CELLS[1 : 1 + tested.ndim], tested) for name, tested in tests.items()}
    return dataset(
        subject,
        {"value": (CELLS, np.stack(means), {"long_name": long_name}), **variables},
        {"self_pairs": SELF_PAIRS, "category": subject.labels, "category_2": subject.labels},
        self_pairs_shown=options.self_pairs,
        undefined=int(np.isnan(itself).sum()),
        n_permutations=options.n_permutations if "overall_pvalue" in tests else None,
        reason=reason,
        **attributes,
    )


def shown(ds: xr.Dataset, self_pairs: bool | None = None) -> xr.Dataset:
    """Select the results with or without self pairs (default: as in the options)."""
    return ds.sel(self_pairs=ds.attrs["self_pairs_shown"] if self_pairs is None else self_pairs)


def plot_pair_means(ds: xr.Dataset, ax: Any = None, *, self_pairs: bool | None = None, **style: Any) -> Any:
    """Draw the matrix as a heat map into `ax`; mark cells above the permutation null.

    Args:
        self_pairs: include self pairs (default: as in the options). style: see `plotting.heatmap`.
    """
    held = {"label": ds["value"].attrs["long_name"], "title": ds.attrs["model"]}
    held["marks"] = ds["pvalue_adjusted"].values < SIGNIFICANT if "pvalue_adjusted" in ds else None
    return plotting.heatmap(shown(ds, self_pairs)["value"].values, names(ds), names(ds), ax=ax, **(held | style))


def pair_mean_sentences(ds: xr.Dataset, index: str, of: str) -> list[str]:
    """Return sentences on within and between categories, significant categories, and the closest two.

    Args:
        index: "Mean Jaccard similarity". of: "ISN sets".
    """
    found = []
    if present(ds, "overall_within", "overall_between"):
        within, between = (decimal(float(ds[name])) for name in ("overall_within", "overall_between"))
        test = f"; permutation test, {p_value(float(ds['overall_pvalue']))}" if "overall_pvalue" in ds else ""
        found.append(
            f"{index} of {of} is {within} within categories and {between} between them (pairs of different "
            f"instructions{test})."
        )
    if "pvalue_adjusted" in ds and (tested := int(np.isfinite(own := ds["pvalue_adjusted"].values.diagonal()).sum())):
        out = [name for name, value in zip(names(ds), own, strict=True) if value < SIGNIFICANT]
        found.append(
            f"{len(out)} of {tested} categories {'is' if len(out) == 1 else 'are'} significantly more similar within "
            "than to other categories (corrected p < 0.05)" + (f": {listed(out)}." if out else ".")
        )
    if (pair := closest(ds)) is not None:
        cell = ds.sel(self_pairs=False, category=pair[0], category_2=pair[1])
        mean = f"{decimal(float(cell['value']))}{interval(cell)}"
        found.append(f"The two most similar categories are {pair[0]} and {pair[1]}: {mean}.")
    return found


def closest(ds: xr.Dataset) -> tuple[str, str] | None:
    """Return the two different categories with the largest mean, or None if no mean is defined."""
    values = ds["value"].sel(self_pairs=False).values
    above = np.where(np.tri(len(values), dtype=np.bool_) | np.isnan(values), -np.inf, values)
    row, column = np.unravel_index(int(above.argmax()), above.shape)
    return (names(ds)[row], names(ds)[column]) if np.isfinite(above[row, column]) else None
