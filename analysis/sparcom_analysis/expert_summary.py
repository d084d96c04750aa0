"""Puts the results about experts into the parts of `Metrics`; computes nothing but sums of shifts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis import expert_schema as schema
from sparcom_analysis.correlation import ExpertCorrelation
from sparcom_analysis.experts import CategoryExperts, InstructionExperts, TopExperts
from sparcom_analysis.tuning import ExpertShift
from sparcom_data.archive import Archive


@dataclass(frozen=True, slots=True)
class ExpertResult:
    """What was computed about experts; `shift` and the archive it compares with where there is a tuned model."""

    experts: InstructionExperts
    means: CategoryExperts
    top: TopExperts
    correlation: ExpertCorrelation
    shift: ExpertShift | None = None
    tuned: Archive | None = None


def nullable(matrix: NDArray[np.float64]) -> list[list[float | None]]:
    """The matrix as lists, NaN as None."""
    return [[None if np.isnan(value) else float(value) for value in row] for row in matrix]


def expert_parts(result: ExpertResult) -> dict[str, Any]:
    """The parts of `Metrics` that are about experts, by name."""
    categories, layer_ids = list(result.means.categories), list(result.means.layer_ids)
    return {
        "expert_frequency": schema.ExpertFrequencies(
            categories=categories,
            layer_ids=layer_ids,
            experts=result.experts.experts,
            experts_per_token=result.experts.choices,
            mean=result.means.mean.tolist(),
            overall=result.means.overall.tolist(),
        ),
        "ise_correlation": schema.CorrelationMatrix(
            categories=list(result.correlation.categories),
            matrix=nullable(result.correlation.matrix),
            undefined_instructions=result.correlation.undefined,
        ),
        "top_experts": schema.TopExpertLists(
            categories=categories,
            layer_ids=layer_ids,
            expert=result.top.expert.tolist(),
            frequency=result.top.frequency.tolist(),
            overall_expert=result.top.overall_expert.tolist(),
            overall_frequency=result.top.overall_frequency.tolist(),
        ),
        "expert_shift": _shift(result),
    }


def _shift(result: ExpertResult) -> schema.ExpertShifts | None:
    shift, archive = result.shift, result.tuned
    if shift is None or archive is None:
        return None
    return schema.ExpertShifts(
        tuned_archive=PurePath(archive.path).name,
        tuned_model=archive.attributes.model.id,
        matched=shift.matched,
        only_base=shift.only_base,
        only_tuned=shift.only_tuned,
        different_rows=shift.different_rows,
        categories=list(shift.base.categories),
        layer_ids=list(shift.base.layer_ids),
        base=shift.base.mean.tolist(),
        tuned=shift.tuned.mean.tolist(),
        overall_base=shift.base.overall.tolist(),
        overall_tuned=shift.tuned.overall.tolist(),
        moved=(np.abs(shift.shift).sum(axis=-1) / 2).tolist(),
        top_base=shift.base_top.expert.tolist(),
        top_tuned=shift.tuned_top.expert.tolist(),
        top_kept=shift.kept.tolist(),
        overall_top_base=shift.base_top.overall_expert.tolist(),
        overall_top_tuned=shift.tuned_top.overall_expert.tolist(),
        overall_top_kept=shift.overall_kept.tolist(),
    )
