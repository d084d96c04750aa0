"""Correlation of each instruction's expert frequencies before and after fine-tuning (SPARCOM, eq. 16, table 2)."""

from __future__ import annotations

from typing import Any

import xarray as xr

from sparcom_analysis.compare import ExpertComparison
from sparcom_analysis.frequencies import Progress
from sparcom_analysis.measures.drawing import category_bars
from sparcom_analysis.measures.finetuning.before_after import before_after_dataset, before_after_sentences
from sparcom_analysis.measures.measure import measure


def finetuning_correlation(
    comparison: ExpertComparison, progress: Progress | None = None, **changes: Any
) -> xr.Dataset:
    """Return the mean correlation of each instruction's expert frequencies in both models (SPARCOM, eq. 16).

    r*(I) is the Pearson correlation of F(I) in both models, over all experts of all layers (eq. 11 and 12), from exact
    integer sums. Means skip instructions with constant frequencies.

    Args:
        comparison: expert counts of both models. **changes: `n_resamples`, `confidence_level`, `seed`; see `Options`.

    Returns:
        The variables of `before_after_dataset`; values from −1 to 1.
    """
    comparison = comparison.with_options(**changes)
    return before_after_dataset(comparison, comparison.correlation, "mean Pearson correlation", MEASURE.name)


def sentences(ds: xr.Dataset) -> list[str]:
    what = "The mean Pearson correlation of each instruction's expert frequencies"
    return before_after_sentences(ds, what, 4, "have constant frequencies")


def caption(ds: xr.Dataset) -> str:
    return (
        f"Mean Pearson correlation of each instruction's expert frequencies in {ds.attrs['model']} and "
        f"{ds.attrs['tuned_model']} (SPARCOM, eq. 16), by category."
    )


MEASURE = measure(
    finetuning_correlation,
    "Correlation of expert frequencies before and after fine-tuning",
    "SPARCOM, eq. 16, table 2",
    "expert_comparison",
    definition="The Pearson correlation of an instruction's expert frequencies in the base and in the tuned model, "
    "averaged over the instructions of a category. The change is 1 − correlation (ours).",
    plot=category_bars,
)
