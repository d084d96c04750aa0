"""Puts general and unique components and LAPE into parts of `Metrics`; computes nothing but how far both agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.components.bootstrap import ComponentIntervals
from sparcom_analysis.components.chance import ComponentChance
from sparcom_analysis.components.draws import FIELDS, ComponentNumbers, component_numbers
from sparcom_analysis.components.general_unique import Components
from sparcom_analysis.components.lape import Lape
from sparcom_analysis.components.result import ComponentResult
from sparcom_analysis.schema import components as schema
from sparcom_analysis.summary.numbers import nulls
from sparcom_data.errors import InvalidInputError


def general_unique_part(results: Sequence[ComponentResult], top_experts: int) -> schema.GeneralUnique:
    """The part `general_unique`.

    Args:
        results: of each kind, computed with the same parameters.
        top_experts: k by which experts were selected.
    """
    intervals = next((one.intervals for one in results if one.intervals), None)
    chance = next((one.chance for one in results if one.chance), None)
    drawn = intervals or chance
    return schema.GeneralUnique(
        share=results[0].found.share,
        top_experts=top_experts,
        resamples=None if intervals is None else intervals.resamples,
        confidence=None if intervals is None else intervals.confidence,
        shuffles=None if chance is None else chance.shuffles,
        seed=None if drawn is None else drawn.seed,
        groups=[_group(one.found, one.intervals, one.chance) for one in results],
    )


def _group(
    found: Components, intervals: ComponentIntervals | None, chance: ComponentChance | None
) -> schema.ComponentGroups:
    own = component_numbers(found)
    missing = ComponentNumbers(**{name: np.full_like(getattr(own, name), np.nan) for name in FIELDS})
    low, high = (missing, missing) if intervals is None else (intervals.low, intervals.high)
    part = schema.ComponentGroups(
        component=found.component,
        categories=list(found.categories),
        layer_ids=list(found.layer_ids),
        per_layer=found.per_layer,
        instructions=found.instructions.tolist(),
        needed=found.needed.tolist(),
        reason=found.reason or None,
        belonging=_each(own.belonging, low.belonging, high.belonging),
        unique=_each(own.unique, low.unique, high.unique),
        shared=_curve(own.shared, low.shared, high.shared),
        general=_curve(own.general, low.general, high.general),
        general_chance=None if chance is None else chance.general,
        shared_chance=None if chance is None else chance.shared,
        unique_chance=None if chance is None else chance.unique.tolist(),
        unique_p=None if chance is None else chance.p.tolist(),
        general_share=nulls(own.general_share),
        general_share_low=nulls(low.general_share),
        general_share_high=nulls(high.general_share),
        unique_share=nulls(own.unique_share),
        unique_share_low=nulls(low.unique_share),
        unique_share_high=nulls(high.unique_share),
    )
    return part.model_copy(update=dict.fromkeys(_OF_SEVERAL)) if found.reason else part


_SHARES = tuple(f"{name}_share{end}" for name in ("general", "unique") for end in ("", "_low", "_high"))
_OF_SEVERAL = ("unique", "shared", "general", *_SHARES)


def _each(
    own: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> list[schema.ComponentNumbers]:
    """Of each category."""
    return [_curve(*both) for both in zip(own, low, high, strict=True)]


def _curve(own: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]) -> schema.ComponentNumbers:
    """Numbers by layer with their intervals; each array has the total after the last layer."""
    known, counts = not np.isnan(low).any(), own.astype(np.int64).tolist()
    return schema.ComponentNumbers(
        by_layer=counts[:-1],
        low=low[:-1].tolist() if known else None,
        high=high[:-1].tolist() if known else None,
        total=counts[-1],
        total_low=float(low[-1]) if known else None,
        total_high=float(high[-1]) if known else None,
    )


def lape_part(found: Sequence[Lape], others: Mapping[str, Components]) -> schema.LapeNeurons:
    """The part `lape`.

    Args:
        found: of each component with neurons, by the same rates.
        others: by component: general and unique neurons of the same archive, to compare with.
    """
    rates = found[0].rates
    return schema.LapeNeurons(
        top_rate=rates.top,
        filter_rate=rates.filter,
        bar_rate=rates.bar,
        groups=[_lape_group(one, others.get(one.population.component)) for one in found],
    )


def _lape_group(found: Lape, other: Components | None) -> schema.LapeGroup:
    known = not found.reason
    overlap = np.full(len(found.categories), np.nan) if other is None else unique_overlap(found, other)
    return schema.LapeGroup(
        component=found.population.component,
        categories=list(found.categories),
        layer_ids=list(found.population.layer_ids),
        reason=found.reason or None,
        tokens=found.tokens.tolist(),
        filter=found.filter if known else None,
        bar=found.bar if known else None,
        passed=found.passed,
        wanted=found.wanted,
        selected=len(found.neuron),
        total=found.specific.sum(axis=1).tolist(),
        by_layer=found.by_category().tolist(),
        unique_overlap=nulls(overlap),
    )


def unique_overlap(found: Lape, other: Components) -> NDArray[np.float64]:
    """Jaccard index of LAPE's neurons and those unique to the category: float64 (c,); NaN where both are empty.

    Raises:
        InvalidInputError: the two are not about the same categories and component.
    """
    if list(found.categories) != list(other.categories) or found.population.component != other.component:
        raise InvalidInputError(
            "LAPE is compared with components of the same archive and instructions; it has "
            f"{found.population.component} of {list(found.categories)}, the other {other.component} of "
            f"{list(other.categories)}. Compute both from one archive with the same rows"
        )
    overlap = np.full(len(found.categories), np.nan)
    for code in range(len(overlap)):
        left, right = found.mask(code), other.mask("unique", code)
        if union := int((left | right).sum()):
            overlap[code] = int((left & right).sum()) / union
    return overlap
