"""How many components would be general or unique by chance: the categories' names shuffled over the instructions.

1. Give the instructions of all categories to the categories anew, as many to each as it has; find and count; R times.
2. Chance is the mean of the counts. p of a category: (1 + shuffles with at least as many unique components) / (1 + R),
   corrected for as many tests as there are categories (Holm).

A threshold makes unique components out of nothing: one that half of all instructions have lands in some categories and
not in others. What categories have beyond that is theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.measures.general_unique.draws import Draws, least_that_counts
from sparcom_analysis.measures.general_unique.groups import Components
from sparcom_analysis.measures.general_unique.members import Memberships
from sparcom_data.errors import InvalidInputError

SHUFFLES = 500  # the least p of twelve categories is then 12 / 501 = 0.024


@dataclass(frozen=True, slots=True)
class ComponentChance:
    """What shuffled names give in all layers together, means over the shuffles, and how they were shuffled.

    general, shared: numbers of components. unique: float64 (c,), of each category. p: float64 (c,), corrected, that as
    many are unique to the category by chance.
    """

    general: float
    shared: float
    unique: NDArray[np.float64]
    p: NDArray[np.float64]
    shuffles: int
    seed: int


def component_chance(
    members: Memberships,
    found: Components,
    *,
    shuffles: int = SHUFFLES,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ComponentChance | None:
    """Numbers of general, shared and unique components with shuffled names; None with one category.

    Args:
        members: what `found` was found from.
        shuffles: R, at least 1.
        seed: of numpy's PCG64; the same seed gives the same bytes on any number of cores.
        progress: called with shuffles done and shuffles in all.

    Raises:
        InvalidInputError: there is no shuffle to be made.
    """
    if shuffles < 1:
        raise InvalidInputError(f"chance needs at least 1 shuffle; shuffles is {shuffles}. Choose {SHUFFLES}")
    if found.reason:
        return None
    draws = Draws.of(members, found.needed, _possible(members, found))
    generator, borders = np.random.Generator(np.random.PCG64(seed)), found.instructions.cumsum()[:-1]
    drawn = []
    for done in range(shuffles):
        drawn.append(draws.numbers(np.split(generator.permutation(len(members.categories)), borders)))
        if progress is not None:
            progress(done + 1, shuffles)
    unique = np.array([one.unique[:, -1] for one in drawn])
    reached = (unique >= found.by_category("unique").sum(axis=1)).sum(axis=0)
    return ComponentChance(
        general=float(np.mean([one.general[-1] for one in drawn])),
        shared=float(np.mean([one.shared[-1] for one in drawn])),
        unique=unique.mean(axis=0),
        p=holm((1 + reached) / (1 + shuffles)),
        shuffles=shuffles,
        seed=seed,
    )


def _possible(members: Memberships, found: Components) -> NDArray[np.bool_]:
    """Components that a shuffle may give to some category: bool (layer, column)."""
    total = len(members.categories)
    sizes = zip(found.instructions.tolist(), found.needed.tolist(), strict=True)
    least = min(least_that_counts(total, size, needed) for size, needed in sizes)
    return members.counts(np.arange(total)) >= least


def holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """p of m tests, corrected so that one false alarm among all is as rare as each says: the k-th smallest times
    m − k + 1, at most 1, none below a smaller one's."""
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return corrected
