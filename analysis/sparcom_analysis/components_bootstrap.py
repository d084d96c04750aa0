"""How much the numbers of general and unique components would vary with other instructions of the same kind.

1. Draw each category's instructions anew, with replacement, as many as there are; find and count components; B times.
2. An interval is the number plus the percentiles of the draws' deviations from the draws' own mean, at least 0.

Why not the draws' percentiles themselves: who belongs is decided by a threshold, and draws with replacement carry more
components over it than they take away where few are above it. Measured on 120 instructions of a mixture of experts: 214
neurons shared by some categories, draws of 243 to 333, an interval without its own number. The spread of the draws is
kept, their shift is not. What is covered is the number that as many other instructions would give on average, not one
that infinitely many would give.

A component that is in so few instructions that it cannot come to the threshold is left out before drawing: by
Chernoff's bound, exp(−n · KL(needed/n ‖ count/n)) < 10⁻¹². Draws that count the rest are exact.

A category of one instruction has no spread to draw from: its own numbers, and those that it has a part in, have no
interval (NaN).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.components import Components
from sparcom_analysis.kernels import add_bit_counts
from sparcom_analysis.memberships import Memberships
from sparcom_data.errors import InvalidInputError

RESAMPLES = 200
CONFIDENCE = 0.95
NEGLIGIBLE = 1e-12  # chance of a draw that would count a component left out


@dataclass(frozen=True, slots=True)
class ComponentNumbers:
    """Numbers of components; the last entry of the layer axis is that of all layers together.

    belonging, unique: float64 (c, layer + 1). shared, general: float64 (layer + 1,).
    general_share, unique_share: float64 (c,), shares of a category's components; NaN where it has none.
    """

    belonging: NDArray[np.float64]
    unique: NDArray[np.float64]
    shared: NDArray[np.float64]
    general: NDArray[np.float64]
    general_share: NDArray[np.float64]
    unique_share: NDArray[np.float64]


FIELDS = tuple(ComponentNumbers.__slots__)


@dataclass(frozen=True, slots=True)
class ComponentIntervals:
    """Lower and upper ends, and how they were found."""

    low: ComponentNumbers
    high: ComponentNumbers
    resamples: int
    confidence: float
    seed: int


def component_numbers(found: Components) -> ComponentNumbers:
    """What was found, counted."""
    return _numbers(
        *(_with_total(found.by_category(kind)) for kind in ("belonging", "unique")),
        *(_with_total(found.counts(kind)) for kind in ("shared", "general")),
    )


def _with_total(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Counts by layer, and after the last layer their sum."""
    total: NDArray[np.int64] = counts.sum(axis=-1, keepdims=True)
    return np.concatenate([counts, total], axis=-1).astype(np.float64)


def _numbers(
    belonging: NDArray[np.float64],
    unique: NDArray[np.float64],
    shared: NDArray[np.float64],
    general: NDArray[np.float64],
) -> ComponentNumbers:
    own = np.where(belonging[:, -1] > 0, belonging[:, -1], np.nan)
    return ComponentNumbers(belonging, unique, shared, general, general[-1] / own, unique[:, -1] / own)


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
    draw = _Draws.of(members, found)
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn = []
    for done in range(resamples):
        drawn.append(draw.once(generator))
        if progress is not None:
            progress(done + 1, resamples)
    ends = _ends(component_numbers(found), drawn, confidence)
    low, high = (_only_with_spread(end, found.instructions > 1) for end in ends)
    return ComponentIntervals(low, high, resamples, confidence, seed)


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


@dataclass(frozen=True, slots=True)
class _Draws:
    """What a draw needs: the instructions of each category, how many of them a component needs, and the m components
    that can come to it, as bits: uint8 (n, byte); those of layer j lie at borders[j] to borders[j + 1]."""

    rows: Sequence[NDArray[np.intp]]
    needed: NDArray[np.int64]
    bits: NDArray[np.uint8]
    borders: NDArray[np.int64]

    @classmethod
    def of(cls, members: Memberships, found: Components) -> _Draws:
        rows = members.by_category()
        possible = np.zeros((len(members.layer_ids), members.columns), dtype=np.bool_)
        for some, needed in zip(rows, found.needed.tolist(), strict=True):
            possible |= members.counts(some) >= _least_that_counts(len(some), needed)
        borders = np.concatenate([[0], possible.sum(axis=1).cumsum()])
        where = np.flatnonzero(possible)
        bits = np.zeros((len(members.categories), -(-len(where) // 8)), dtype=np.uint8)
        for k in range(len(bits)):
            own = members.sets.rows(k, k + 1)[0].view(np.uint8)[: possible.size // 8]
            bits[k] = np.packbits(np.unpackbits(own, bitorder="little")[where], bitorder="little")
        return cls(rows, found.needed, bits, borders)

    def once(self, generator: np.random.Generator) -> ComponentNumbers:
        """Draw every category, in order, and count what is found."""
        width = int(self.borders[-1])
        belongs = np.empty((len(self.rows), width), dtype=np.bool_)
        for code, some in enumerate(self.rows):
            counts = np.zeros(self.bits.shape[1] * 8, dtype=np.uint32)
            add_bit_counts(self.bits[some[generator.integers(0, len(some), len(some))]], counts)
            belongs[code] = counts[:width] >= self.needed[code]
        times = belongs.sum(axis=0, dtype=np.int32)
        several = times > 1
        general = several & (times == len(belongs))
        unique = belongs & ~several if len(belongs) > 1 else np.zeros_like(belongs)
        return _numbers(*(self._by_layer(which) for which in (belongs, unique, several & ~general, general)))

    def _by_layer(self, which: NDArray[np.bool_]) -> NDArray[np.float64]:
        """How many there are in each layer and in all: float64 (…, layer + 1) of bool (…, m)."""
        before = np.zeros((*which.shape[:-1], which.shape[-1] + 1), dtype=np.int64)
        np.cumsum(which, axis=-1, out=before[..., 1:])
        return _with_total(np.diff(before[..., self.borders], axis=-1))


def _least_that_counts(instructions: int, needed: int) -> int:
    """The fewest of a category's instructions from which a draw comes to `needed` with a chance that is not negligible,
    at least 1: in none is in none of any draw."""
    return next(k for k in range(1, needed + 1) if _most_likely(instructions, k, needed) >= NEGLIGIBLE)


def _most_likely(n: int, count: int, needed: int) -> float:
    """Chernoff's bound of the chance that a binomial number of n draws with p = count / n is `needed` or more."""
    if count >= needed:
        return 1.0
    p, q = count / n, needed / n
    divergence = q * math.log(q / p) + ((1 - q) * math.log((1 - q) / (1 - p)) if q < 1 else 0.0)
    return math.exp(-n * divergence)
