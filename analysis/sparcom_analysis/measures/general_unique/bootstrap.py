"""How much the numbers of general and unique components would vary with other instructions of the same kind.

1. Draw each category's instructions anew, with replacement, as many as there are; find and count components; B times.
2. An interval is the number plus the percentiles of the draws' deviations from the draws' own mean, at least 0.

Why not the draws' percentiles themselves: who belongs is decided by a threshold, and draws with replacement carry more
components over it than they take away where few are above it. Measured on 120 instructions of a mixture of experts: 214
neurons shared by some categories, draws of 243 to 333, an interval without its own number. The spread of the draws is
kept, their shift is not. What is covered is the number that as many other instructions would give on average, not one
that infinitely many would give.

A category of one instruction has no spread to draw from: its own numbers, and those that it has a part in, have no
interval (NaN).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.measures.general_unique.draws import (
    FIELDS,
    ComponentNumbers,
    Draws,
    component_numbers,
    least_that_counts,
)
from sparcom_analysis.measures.general_unique.groups import Components
from sparcom_analysis.measures.general_unique.members import Memberships
from sparcom_data.errors import InvalidInputError

RESAMPLES = 200
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class ComponentIntervals:
    """Lower and upper ends, and how they were found."""

    low: ComponentNumbers
    high: ComponentNumbers
    resamples: int
    confidence: float
    seed: int


def component_intervals(
    members: Memberships,
    found: Components,
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ComponentIntervals:
    """Bootstrap intervals of the numbers of general, unique, shared and belonging components.

    Args:
        members: what `found` was found from.
        resamples: B, at least 2.
        confidence: share of draws between the ends, above 0 and below 1.
        seed: of numpy's PCG64; the same seed gives the same bytes on any number of cores.
        progress: called with draws done and draws in all.

    Raises:
        InvalidInputError: resamples or confidence are out of range.
    """
    _check(resamples, confidence)
    rows = members.by_category()
    draws = Draws.of(members, found.needed, _possible(members, rows, found.needed))
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn = []
    for done in range(resamples):
        drawn.append(draws.numbers([some[generator.integers(0, len(some), len(some))] for some in rows]))
        if progress is not None:
            progress(done + 1, resamples)
    ends = _ends(component_numbers(found), drawn, confidence)
    low, high = (_only_with_spread(end, found.instructions > 1) for end in ends)
    return ComponentIntervals(low, high, resamples, confidence, seed)


def _possible(members: Memberships, rows: Sequence[NDArray[np.intp]], needed: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Components that a draw of some category may count: bool (layer, column)."""
    possible = np.zeros((len(members.layer_ids), members.columns), dtype=np.bool_)
    for some, least in zip(rows, needed.tolist(), strict=True):
        possible |= members.counts(some) >= least_that_counts(len(some), len(some), least)
    return possible


def _check(resamples: int, confidence: float) -> None:
    problems = []
    if resamples < 2:
        problems.append(f"a bootstrap needs at least 2 resamples; resamples is {resamples}. Choose {RESAMPLES}")
    if not 0 < confidence < 1:
        problems.append(f"confidence must be above 0 and below 1; it is {confidence}. Choose {CONFIDENCE}")
    if problems:
        raise InvalidInputError(problems)


def _ends(
    estimate: ComponentNumbers, drawn: Sequence[ComponentNumbers], confidence: float
) -> tuple[ComponentNumbers, ComponentNumbers]:
    """Lower and upper end of every number."""
    tail = (1 - confidence) / 2
    low, high = {}, {}
    for name in FIELDS:
        own = getattr(estimate, name)
        values = np.array([getattr(one, name) for one in drawn])
        below, above = np.quantile(values - values.mean(axis=0), [tail, 1 - tail], axis=0)
        low[name] = np.maximum(own + np.minimum(below, 0), 0)
        high[name] = np.minimum(own + np.maximum(above, 0), 1 if name.endswith("share") else np.inf)
    return ComponentNumbers(**low), ComponentNumbers(**high)


def _only_with_spread(ends: ComponentNumbers, several: NDArray[np.bool_]) -> ComponentNumbers:
    """NaN where a category of one instruction has a part in the number; several: bool (c,), more than one."""
    every = bool(several.all())
    blank = {name: np.where(every, getattr(ends, name), np.nan) for name in FIELDS}
    blank["belonging"] = np.where(several[:, None], ends.belonging, np.nan)
    return ComponentNumbers(**blank)
