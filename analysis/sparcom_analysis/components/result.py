"""Everything about the general and unique components of one kind: found, with intervals, compared with chance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sparcom_analysis.components.bootstrap import CONFIDENCE, RESAMPLES, ComponentIntervals, component_intervals
from sparcom_analysis.components.chance import SHUFFLES, ComponentChance, component_chance
from sparcom_analysis.components.general_unique import DEFAULT_SHARE, Components, find_components
from sparcom_analysis.components.memberships import Memberships


@dataclass(frozen=True, slots=True)
class ComponentResult:
    """What was found, its intervals, and what chance gives; None for what was not computed."""

    found: Components
    intervals: ComponentIntervals | None = None
    chance: ComponentChance | None = None


def component_result(
    members: Memberships,
    share: float = DEFAULT_SHARE,
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    shuffles: int = SHUFFLES,
    seed: int = 0,
    scratch: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ComponentResult:
    """Find, draw and shuffle; arguments and errors of `find_components`, `component_intervals`, `component_chance`.

    Args:
        resamples, shuffles: 0 leaves intervals or the comparison with chance out.
        progress: called with draws and shuffles done and in all.
    """
    total = resamples + (shuffles if len(set(members.categories)) > 1 else 0)

    def shuffled(done: int, _: int) -> None:
        if progress is not None:
            progress(resamples + done, total)

    found = find_components(members, share, scratch=scratch)
    drawn = None if progress is None else (lambda done, _: progress(done, total))
    intervals = chance = None
    if resamples:
        intervals = component_intervals(
            members, found, resamples=resamples, confidence=confidence, seed=seed, progress=drawn
        )
    if shuffles:
        chance = component_chance(members, found, shuffles=shuffles, seed=seed, progress=shuffled)
    return ComponentResult(found, intervals, chance)
