"""Length control for routing correlation: instructions subsampled to equal length, next to all tokens (ours)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import xarray as xr

from sparcom_analysis.frequencies import Progress
from sparcom_analysis.ise import ExpertCounts, find_ises
from sparcom_analysis.measures.neurons.length_control import MEASURE as NEURONS
from sparcom_analysis.measures.neurons.length_control import length_control_dataset, length_control_sentences
from sparcom_analysis.resampling.subsampling import subsampled


def routing_length_control(experts: ExpertCounts, progress: Progress | None = None, **changes: Any) -> xr.Dataset:
    """Apply `length_control` to the mean Pearson correlation of each pair of categories, without set sizes."""
    plain = experts.with_options(**changes)
    equal = subsampled(plain, lambda draw: find_ises(plain.archive, plain.options, draw=draw, progress=progress))
    return length_control_dataset(plain, equal, "mean Pearson correlation", MEASURE.name, {})


def sentences(ds: xr.Dataset) -> list[str]:
    return length_control_sentences(ds, "mean Pearson correlation of expert frequencies")


MEASURE = replace(
    NEURONS,
    name="routing_length_control",
    title="Routing correlation with equally long instructions",
    needs="experts",
    definition=NEURONS.definition.replace("Equation 10", "Equation 14").replace("similarities", "correlations"),
    compute=routing_length_control,
    sentences=sentences,
)
