"""Routing correlation between categories (SPARCOM, eq. 13, 14, fig. 4)."""

from __future__ import annotations

from typing import Any

import xarray as xr

from sparcom_analysis.frequencies import Progress
from sparcom_analysis.ise import ExpertCounts
from sparcom_analysis.measures.measure import NotComputableError, measure
from sparcom_analysis.measures.pair_means import pair_mean_dataset, pair_mean_sentences, plot_pair_means


def routing_correlation(experts: ExpertCounts, progress: Progress | None = None, **changes: Any) -> xr.Dataset:
    """Return the mean Pearson correlation of expert frequencies for each pair of categories (SPARCOM, eq. 14).

    The correlation is undefined for an instruction that activates all experts equally often. Means skip such
    instructions; the attribute `undefined` counts them.

    Args:
        experts: result of `find_ises`.
        **changes: `n_resamples`, `confidence_level`, `n_permutations`, `seed`, `self_pairs`; see `Options`.

    Returns:
        `value`, `ci_low`, `ci_high` (self_pairs, category, category_2) and the tests of `pair_mean_dataset`.

    Raises:
        NotComputableError: the correlation is undefined for every instruction.
        UnsupportedArchiveError: an instruction is too long for exact sums (about a million tokens).
    """
    ds = pair_mean_dataset(experts.with_options(**changes), progress, "mean Pearson correlation", measure=MEASURE.name)
    if ds.attrs["undefined"] == len(experts):
        raise NotComputableError(
            f"All {len(experts):,} instructions activate every expert equally often, so the Pearson correlation of "
            "expert frequencies is undefined."
        )
    return ds


def sentences(ds: xr.Dataset) -> list[str]:
    found = pair_mean_sentences(ds, "Mean Pearson correlation", "expert frequencies")
    if undefined := ds.attrs["undefined"]:
        found.append(
            f"{undefined:,} of {ds.attrs['instructions']:,} instructions activate every expert equally often; their "
            "correlation is undefined, and means skip them."
        )
    return found


def caption(ds: xr.Dataset) -> str:
    pairs = "included" if ds.attrs["self_pairs_shown"] else "omitted"
    marks = " Bold with an asterisk: above the permutation null after correction (p < 0.05)."
    return (
        f"Mean Pearson correlation of expert frequencies for each pair of categories, {ds.attrs['model']} (SPARCOM, "
        f"eq. 14). Pairs of an instruction with itself are {pairs}.{marks if 'pvalue_adjusted' in ds else ''}"
    )


MEASURE = measure(
    routing_correlation,
    "Similarity of categories in their experts",
    "SPARCOM, eq. 13, 14",
    "experts",
    "The Pearson correlation of two instructions' expert frequencies over all experts of all layers, averaged over all "
    "pairs of instructions from two categories.",
    plot=plot_pair_means,
    also_tuned=True,
)
