"""Labelled results about the experts that routers choose: frequencies, table 6, correlation. See `results`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr

from sparcom_analysis.labelled.labels import (
    CATEGORIES,
    dataset,
    instruction_coords,
    measured_attrs,
    pair_coords,
    variable,
    with_ends,
)
from sparcom_analysis.measures.correlation import ExpertCorrelation
from sparcom_analysis.measures.experts import CategoryExperts, InstructionExperts, TopExperts
from sparcom_analysis.statistics.bootstrap import MeanIntervals, PairIntervals

SHARE = "share of tokens, 0 to 1"
PEARSON = "mean Pearson correlation, -1 to 1"
FREQUENCY = ("category", "layer", "expert")
RANKED = ("category", "layer", "rank")


def instruction_experts(experts: InstructionExperts) -> xr.Dataset:
    """How often each instruction uses each expert."""
    dims = ("instruction", "layer", "expert")
    variables = {
        "tokens": variable(dims[:1], experts.tokens, "tokens"),
        "count": variable(dims, experts.counts, "tokens"),
        "frequency": variable(dims, experts.counts / experts.tokens[:, None, None].astype(np.float64), SHARE, "11"),
    }
    coords = instruction_coords(experts.ids, experts.categories) | layer_and_expert(experts.layer_ids, experts.experts)
    return dataset(variables, coords, choices=experts.choices, **measured_attrs(experts.rows, experts.token_facts))


def category_experts(means: CategoryExperts, *, intervals: MeanIntervals | None = None) -> xr.Dataset:
    """Equation 12 by category, and over all instructions."""
    by_category, overall = (None, None) if intervals is None else (intervals.by_category, intervals.overall)
    found = with_ends("frequency", variable(FREQUENCY, means.mean, SHARE, "12"), by_category)
    found |= with_ends("overall", variable(FREQUENCY[1:], means.overall, SHARE, "12"), overall)
    return dataset(found, expert_coords(means))


def top_experts(top: TopExperts) -> xr.Dataset:
    """Table 6: which experts have ranks 1, 2, … in each layer."""
    variables = {
        "top_expert": variable(RANKED, top.expert, "number of the expert"),
        "frequency": variable(RANKED, top.frequency, SHARE, "12"),
        "overall_top_expert": variable(RANKED[1:], top.overall_expert, "number of the expert"),
        "overall_frequency": variable(RANKED[1:], top.overall_frequency, SHARE, "12"),
    }
    return dataset(variables, rank_coords(top))


def expert_correlation(correlation: ExpertCorrelation, *, intervals: PairIntervals | None = None) -> xr.Dataset:
    """Equation 14 with and without pairs of an instruction with itself."""
    ends = (None, None) if intervals is None else (intervals.with_self, intervals.without_self)
    with_self = variable(CATEGORIES, correlation.matrix, PEARSON, "14")
    without_self = variable(CATEGORIES, correlation.without_self, PEARSON, "14")
    found = with_ends("correlation", with_self, ends[0]) | with_ends("without_self", without_self, ends[1])
    return dataset(found, pair_coords(correlation.categories), undefined=correlation.undefined)


def layer_and_expert(layer_ids: Sequence[int], experts: int) -> dict[str, object]:
    """The axes of experts by layer."""
    return {"layer": list(layer_ids), "expert": np.arange(experts)}


def expert_coords(means: CategoryExperts) -> dict[str, object]:
    """The axes of mean frequencies."""
    return {"category": list(means.categories)} | layer_and_expert(means.layer_ids, means.overall.shape[-1])


def rank_coords(top: TopExperts) -> dict[str, object]:
    """The axes of table 6."""
    ranks = np.arange(1, top.expert.shape[-1] + 1)
    return {"category": list(top.categories), "layer": list(top.layer_ids), "rank": ranks}


LABELLED: dict[type, Callable[..., xr.Dataset]] = {
    InstructionExperts: instruction_experts,
    CategoryExperts: category_experts,
    TopExperts: top_experts,
    ExpertCorrelation: expert_correlation,
}
