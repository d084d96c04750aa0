"""Similarity of categories in their experts (SPARCOM, eq. 13, 14, fig. 4)."""

from __future__ import annotations

from typing import Any

import xarray as xr

from sparcom_analysis.frequencies import Progress
from sparcom_analysis.ise import ExpertCounts
from sparcom_analysis.measures.measure import NotComputableError, measure
from sparcom_analysis.measures.pair_means import pair_mean_dataset, pair_mean_sentences, plot_pair_means


def routing_correlation(experts: ExpertCounts, progress: Progress | None = None, **changes: Any) -> xr.Dataset:
    """Return the mean Pearson correlation of every two categories' expert frequencies (SPARCOM, eq. 14).

    An instruction that activates every expert equally often has no correlation: it is in no mean, and counted in the
    attribute `undefined`.

    Args:
        experts: of `find_ises`. **changes: `n_resamples`, `confidence_level`, `n_permutations`, `seed`, `self_pairs`.

    Returns:
        `value`, `ci_low`, `ci_high` (self_pairs, category, category_2) and the tests of `pair_mean_dataset`.

    Raises:
        NotComputableError: no instruction has a correlation.
        UnsupportedArchiveError: an instruction is too long for exact sums (about a million tokens).
    """
    ds = pair_mean_dataset(experts.with_options(**changes), progress, "mean Pearson correlation", measure=MEASURE.name)
    if ds.attrs["undefined"] == len(experts):
        raise NotComputableError(
            f"Each of the {len(experts):,} instructions activates every expert equally often, so no Pearson "
            "correlation of expert frequencies is defined."
        )
    return ds


def sentences(ds: xr.Dataset) -> list[str]:
    said = pair_mean_sentences(ds, "Mean Pearson correlation", "expert frequencies")
    if undefined := ds.attrs["undefined"]:
        said.append(
            "Instructions that activate every expert equally often have no correlation and are in no mean: "
            f"{undefined:,} of {ds.attrs['instructions']:,}."
        )
    return said


def caption(ds: xr.Dataset) -> str:
    pairs = "counted" if ds.attrs["self_pairs_shown"] else "left out"
    marks = " Bold with an asterisk: above the permutation null after correction (p < 0.05)."
    return (
        f"Mean Pearson correlation of the expert frequencies of every two categories, {ds.attrs['model']} (SPARCOM, "
        f"eq. 14). Pairs of an instruction with itself are {pairs}.{marks if 'pvalue_adjusted' in ds else ''}"
    )


MEASURE = measure(
    routing_correlation,
    "Similarity of categories in their experts",
    "SPARCOM, eq. 13, 14",
    "experts",
    "The Pearson correlation of two instructions' expert frequencies over all experts of all layers, and its mean over "
    "all pairs of an instruction of one category and an instruction of another.",
    plot=plot_pair_means,
    also_tuned=True,
)
