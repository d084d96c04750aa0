"""Similarity of the ISN sets of categories (SPARCOM, eq. 10, fig. 3)."""

from __future__ import annotations

from typing import Any

import xarray as xr

from sparcom_analysis.frequencies import Progress
from sparcom_analysis.isn import IsnSets
from sparcom_analysis.measures.measure import measure
from sparcom_analysis.measures.pair_means import pair_mean_dataset, pair_mean_sentences, plot_pair_means
from sparcom_analysis.measures.text import among


def similarity(isn: IsnSets, progress: Progress | None = None, **changes: Any) -> xr.Dataset:
    """Return the mean Jaccard index of ISN sets for each pair of categories (SPARCOM, eq. 10).

    The Jaccard index of two empty sets is undefined; means skip it.

    Args:
        isn: ISN sets from `find_isns`.
        **changes: `n_resamples`, `confidence_level`, `n_permutations`, `seed`, `self_pairs`; see `Options`.

    Returns:
        `value`, `ci_low`, `ci_high` (self_pairs, category, category_2) and the tests of `pair_mean_dataset`.
    """
    return pair_mean_dataset(isn.with_options(**changes), progress, "mean Jaccard index", measure=MEASURE.name)


def sentences(ds: xr.Dataset) -> list[str]:
    return pair_mean_sentences(ds, "Mean Jaccard similarity", f"ISN sets{among(ds)}")


def caption(ds: xr.Dataset) -> str:
    pairs = "included" if ds.attrs["self_pairs_shown"] else "omitted"
    marks = " Bold with an asterisk: above the permutation null after correction (p < 0.05)."
    return (
        f"Mean Jaccard index of ISN sets for each pair of categories, {ds.attrs['model']}{among(ds, ', ')} (SPARCOM, "
        f"eq. 10). Pairs of an instruction with itself are {pairs}.{marks if 'pvalue_adjusted' in ds else ''}"
    )


MEASURE = measure(
    similarity,
    "Similarity of categories in their neurons",
    "SPARCOM, eq. 10",
    "isn",
    "The Jaccard index |A ∩ B| / |A ∪ B| of two instructions' ISN sets, averaged over all pairs of instructions from "
    "two categories.",
    plot=plot_pair_means,
    also_tuned=True,
)
