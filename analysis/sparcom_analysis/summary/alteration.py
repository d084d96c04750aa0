"""Makes the parts of metrics.json about a fine-tuned twin from what was computed, with intervals if wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.schema.alteration import (
    IseAlteration,
    IseAlterationOverall,
    IsnAlteration,
    IsnAlterationOverall,
    IsnVenn,
    VennInstruction,
)
from sparcom_analysis.summary.numbers import nulls
from sparcom_analysis.summary.twin import Archives, twin_facts
from sparcom_analysis.tuned.alteration import ExpertAlteration, NeuronAlteration
from sparcom_analysis.tuned.venn import venn_by_layer


class Bounds(Protocol):
    """Both ends of an interval, float64, shaped as what they are about; NaN where there is none."""

    @property
    def low(self) -> NDArray[np.float64]: ...

    @property
    def high(self) -> NDArray[np.float64]: ...


class MeanBounds(Protocol):
    """Intervals of means by category, (c, …), and over all, (…): what `bootstrap.mean_intervals` gives."""

    @property
    def by_category(self) -> Bounds: ...

    @property
    def overall(self) -> Bounds: ...


Intervals = Callable[[NDArray[np.float64]], MeanBounds]
"""Called with values of the matched instructions, float64 (m, …), NaN where one has none."""


def isn_alteration_part(
    altered: NeuronAlteration, archives: Archives, intervals: Intervals | None = None
) -> IsnAlteration:
    """Equation 15 by category and layer, and figure 5 of both models."""
    means, layers = altered.by_category(altered.alteration), altered.by_category(altered.layer_alteration)
    overlap = altered.by_category(altered.overlap)
    base, after = altered.by_category(altered.base_counts), altered.by_category(altered.tuned_counts)
    sizes = [altered.by_category(counts.sum(axis=1)) for counts in (altered.base_counts, altered.tuned_counts)]
    low, high, whole_low, whole_high = _ends(intervals, altered.alteration, means.mean.shape)
    layer_low, layer_high, all_low, all_high = _ends(intervals, altered.layer_alteration, layers.mean.shape)
    by_layer, every_layer = _layer_ends(altered, intervals, base.mean.shape)
    return IsnAlteration(
        component=altered.population.component,
        twin=twin_facts(altered.twins, archives),
        categories=means.categories,
        layer_ids=list(altered.population.layer_ids),
        instructions=means.counted.tolist(),
        undefined=means.undefined.tolist(),
        overlap=nulls(overlap.mean),
        overlap_low=nulls(1 - high),
        overlap_high=nulls(1 - low),
        alteration=nulls(means.mean),
        low=nulls(low),
        high=nulls(high),
        base_isn=sizes[0].mean.tolist(),
        tuned_isn=sizes[1].mean.tolist(),
        layer_alteration=nulls(layers.mean),
        layer_low=nulls(layer_low),
        layer_high=nulls(layer_high),
        base_by_layer=base.mean.tolist(),
        tuned_by_layer=after.mean.tolist(),
        **by_layer,
        overall=IsnAlterationOverall(
            instructions=int(means.counted.sum()),
            undefined=int(means.undefined.sum()),
            overlap=nulls(overlap.overall),
            overlap_low=nulls(1 - whole_high),
            overlap_high=nulls(1 - whole_low),
            alteration=nulls(means.overall),
            low=nulls(whole_low),
            high=nulls(whole_high),
            base_isn=float(sizes[0].overall),
            tuned_isn=float(sizes[1].overall),
            layer_alteration=nulls(layers.overall),
            layer_low=nulls(all_low),
            layer_high=nulls(all_high),
            base_by_layer=base.overall.tolist(),
            tuned_by_layer=after.overall.tolist(),
            **every_layer,
        ),
    )


def ise_alteration_part(
    altered: ExpertAlteration, archives: Archives, intervals: Intervals | None = None
) -> IseAlteration:
    """Equation 16 by category."""
    means, correlation = altered.by_category(altered.alteration), altered.by_category(altered.correlation)
    low, high, whole_low, whole_high = _ends(intervals, altered.alteration, means.mean.shape)
    return IseAlteration(
        twin=twin_facts(altered.twins, archives),
        categories=means.categories,
        instructions=means.counted.tolist(),
        undefined=means.undefined.tolist(),
        correlation=nulls(correlation.mean),
        correlation_low=nulls(1 - high),
        correlation_high=nulls(1 - low),
        alteration=nulls(means.mean),
        low=nulls(low),
        high=nulls(high),
        overall=IseAlterationOverall(
            instructions=int(means.counted.sum()),
            undefined=int(means.undefined.sum()),
            correlation=nulls(correlation.overall),
            correlation_low=nulls(1 - whole_high),
            correlation_high=nulls(1 - whole_low),
            alteration=nulls(means.overall),
            low=nulls(whole_low),
            high=nulls(whole_high),
        ),
    )


def isn_venn_part(altered: NeuronAlteration, archives: Archives, ids: Sequence[str] | None = None) -> IsnVenn:
    """Figure 6 of these instructions, or of a typical one of each category."""
    return IsnVenn(
        component=altered.population.component,
        tuned_name=twin_facts(altered.twins, archives).model_name,
        layer_ids=list(altered.population.layer_ids),
        typical=ids is None,
        instructions=[
            VennInstruction(
                id=shown.id,
                category=shown.category,
                alteration=nulls(np.float64(shown.alteration)),
                only_base=shown.only_base.tolist(),
                both=shown.both.tolist(),
                only_tuned=shown.only_tuned.tolist(),
            )
            for shown in venn_by_layer(altered, ids)
        ],
    )


def _layer_ends(
    altered: NeuronAlteration, intervals: Intervals | None, shape: tuple[int, ...]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both models' intervals of ISNs by layer as fields: by category, and over all."""
    by_category: dict[str, Any] = {}
    overall: dict[str, Any] = {}
    for name, counts in (("base", altered.base_counts), ("tuned", altered.tuned_counts)):
        low, high, whole_low, whole_high = map(nulls, _ends(intervals, counts.astype(np.float64), shape))
        by_category |= {f"{name}_by_layer_low": low, f"{name}_by_layer_high": high}
        overall |= {f"{name}_by_layer_low": whole_low, f"{name}_by_layer_high": whole_high}
    return by_category, overall


def _ends(
    intervals: Intervals | None, values: NDArray[np.float64], shape: tuple[int, ...]
) -> tuple[NDArray[np.float64], ...]:
    """Low and high by category, then over all; NaN where none are wanted."""
    if intervals is None:
        return tuple(np.full(size, np.nan) for size in (shape, shape, shape[1:], shape[1:]))
    found = intervals(values)
    return found.by_category.low, found.by_category.high, found.overall.low, found.overall.high
