"""Counts general and unique components many times over, for other choices of instructions: what intervals and the
comparison with chance are made of.

Most components are in so few instructions that no choice brings them to a category's threshold; they are left out once,
and the rest is packed again, so that a draw reads a fraction of the sets. A component is left out where the chance that
a draw would count it is below 10⁻¹² by Chernoff's bound, exp(−n · KL(needed/n ‖ p)), p the share of the instructions
that have it, which holds for draws with and without replacement. What is not left out is counted exactly.

Does not know how instructions are chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.kernels.bit_counts import add_bit_counts
from sparcom_analysis.kernels.compiled import pack_at_least
from sparcom_analysis.measures.general_unique.groups import Components, overlap
from sparcom_analysis.measures.general_unique.members import Memberships

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


@dataclass(frozen=True, slots=True)
class Draws:
    """The components that a draw may count, as bits: uint64 (n, word); those of layer j lie in words borders[j] to
    borders[j + 1]. needed: int64 (c,), instructions of each category that a component must be in."""

    needed: NDArray[np.int64]
    bits: NDArray[np.uint64]
    borders: NDArray[np.int64]

    @classmethod
    def of(cls, members: Memberships, needed: NDArray[np.int64], possible: NDArray[np.bool_]) -> Draws:
        """Keep the components that are possible: bool (layer, column)."""
        kept = possible.sum(axis=1)
        borders = np.concatenate([[0], (-(-kept // 64)).cumsum()]).astype(np.int64)
        where = np.flatnonzero(possible)
        place = np.concatenate([64 * first + np.arange(count) for first, count in zip(borders[:-1], kept, strict=True)])
        bits = np.zeros((len(members.categories), int(borders[-1])), dtype=np.uint64)
        spread = np.zeros(64 * int(borders[-1]), dtype=np.uint8)
        for k in range(len(bits)):
            own = members.sets.rows(k, k + 1)[0].view(np.uint8)[: possible.size // 8]
            spread[place] = np.unpackbits(own, bitorder="little")[where]
            bits[k] = np.packbits(spread, bitorder="little").view(np.uint64)
        return cls(needed, bits, borders)

    def numbers(self, rows: Sequence[NDArray[np.intp]]) -> ComponentNumbers:
        """Numbers of components where each category has these instructions, one that comes twice counted twice."""
        own = np.zeros((len(rows), self.bits.shape[1]), dtype=np.uint64)
        for code, some in enumerate(rows):
            counts = np.zeros(self.bits.shape[1] * 64, dtype=np.uint32)
            add_bit_counts(self.bits[some].view(np.uint8), counts)
            pack_at_least(
                counts[None], int(self.needed[code]), own[code : code + 1].view(np.uint8), np.zeros(1, np.int64)
            )
        general, several = overlap(own, own.shape[1])
        unique = own & ~several if len(own) > 1 else np.zeros_like(own)
        return _numbers(*(self._by_layer(which) for which in (own, unique, several & ~general, general)))

    def _by_layer(self, words: NDArray[np.uint64]) -> NDArray[np.float64]:
        """How many there are in each layer and in all: float64 (…, layer + 1) of uint64 (…, word)."""
        before = np.zeros((*words.shape[:-1], words.shape[-1] + 1), dtype=np.int64)
        np.cumsum(np.bitwise_count(words), axis=-1, out=before[..., 1:])
        return _with_total(np.diff(before[..., self.borders], axis=-1))


def least_that_counts(instructions: int, drawn: int, needed: int) -> int:
    """In how many of `instructions` a component must be, so that `needed` of as many as are `drawn` from them may have
    it with a chance that is not negligible. At least 1: what none has is in no draw."""
    bound = math.log(NEGLIGIBLE)
    return next(k for k in range(1, instructions + 1) if _exponent(drawn, k / instructions, needed) >= bound)


def _exponent(n: int, p: float, needed: int) -> float:
    """Logarithm of Chernoff's bound of the chance that `needed` or more of n draws have what a share p has."""
    q = needed / n
    if p >= q:
        return 0.0
    rest = (1 - q) * math.log((1 - q) / (1 - p)) if q < 1 else 0.0
    return -n * (q * math.log(q / p) + rest)
