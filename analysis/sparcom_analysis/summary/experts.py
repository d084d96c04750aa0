"""Puts the results about experts into the parts of `Metrics`; computes nothing but a sum over ranks."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.measures.correlation import ExpertCorrelation
from sparcom_analysis.results import ExpertResult
from sparcom_analysis.schema import experts as schema
from sparcom_analysis.statistics.bootstrap import Interval
from sparcom_analysis.summary.alteration import Intervals, ise_alteration_part
from sparcom_analysis.summary.chance import with_interval
from sparcom_analysis.summary.numbers import nulls
from sparcom_analysis.summary.twin import Archives
from sparcom_data.archive import Archive


def expert_parts(
    result: ExpertResult, archives: Archives | None = None, intervals: Intervals | None = None
) -> dict[str, Any]:
    """The parts of `Metrics` that are about experts, by name.

    Args:
        tuned: the archive of the tuned twin. intervals: of means over the instructions of both.
    """
    categories, layer_ids = list(result.means.categories), list(result.means.layer_ids)
    ends = None if result.mean_intervals is None else result.mean_intervals.by_category
    whole = None if result.mean_intervals is None else result.mean_intervals.overall
    cells = (None, None) if result.intervals is None else (result.intervals.with_self, result.intervals.without_self)
    return {
        "expert_frequency": schema.ExpertFrequencies(
            categories=categories,
            layer_ids=layer_ids,
            experts=result.experts.experts,
            experts_per_token=result.experts.choices,
            mean=result.means.mean.tolist(),
            overall=result.means.overall.tolist(),
            **_ends("mean", ends),
            **_ends("overall", whole),
        ),
        "ise_correlation": _correlation(result.correlation, result.correlation.matrix, cells[0]),
        "ise_correlation_without_self": _correlation(result.correlation, result.correlation.without_self, cells[1]),
        "top_experts": schema.TopExpertLists(
            categories=categories,
            layer_ids=layer_ids,
            expert=result.top.expert.tolist(),
            frequency=result.top.frequency.tolist(),
            overall_expert=result.top.overall_expert.tolist(),
            overall_frequency=result.top.overall_frequency.tolist(),
            **_ends("frequency", _of_top(ends, result.top.expert)),
            **_ends("overall_frequency", _of_top(whole, result.top.overall_expert)),
            share=(result.top.frequency.sum(axis=-1) / result.experts.choices).tolist(),
            **_ends("share", result.share_interval),
        ),
        "expert_shift": _shift(result, None if archives is None else archives[1]),
        "ise_alteration": None
        if result.altered is None or archives is None
        else ise_alteration_part(result.altered, archives, intervals),
    }


def _correlation(
    found: ExpertCorrelation, matrix: NDArray[np.float64], interval: Interval | None
) -> schema.CorrelationMatrix:
    """One of the two versions of equation 14."""
    part = schema.CorrelationMatrix(
        categories=list(found.categories), matrix=nulls(matrix), undefined_instructions=found.undefined
    )
    return part if interval is None else with_interval(part, interval)


def _ends(name: str, interval: Interval | None) -> dict[str, Any]:
    """The fields `NAME_low` and `NAME_high`, null without an interval."""
    if interval is None:
        return {f"{name}_low": None, f"{name}_high": None}
    return {f"{name}_low": nulls(interval.low), f"{name}_high": nulls(interval.high)}


def _of_top(interval: Interval | None, expert: NDArray[np.intp]) -> Interval | None:
    """Of intervals (…, expert) those of some experts (…, rank)."""
    if interval is None:
        return None
    low, high = (np.take_along_axis(end, expert, axis=-1) for end in (interval.low, interval.high))
    return Interval(low, high)


def _shift(result: ExpertResult, archive: Archive | None) -> schema.ExpertShifts | None:
    shift = result.shift
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
        moved=shift.moved.tolist(),
        **_ends("moved", result.moved_interval),
        top_base=shift.base_top.expert.tolist(),
        top_tuned=shift.tuned_top.expert.tolist(),
        top_kept=shift.kept.tolist(),
        overall_top_base=shift.base_top.overall_expert.tolist(),
        overall_top_tuned=shift.tuned_top.overall_expert.tolist(),
        overall_top_kept=shift.overall_kept.tolist(),
    )
