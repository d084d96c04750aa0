"""Find the members of each category: neurons or experts in at least a fraction s of its instructions.

A member of all categories is *general*, of only one *unique*, else *common*. The threshold (ours) is exact:
count ≥ ⌈s · n⌉, with s taken as a decimal number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.ise import ExpertCounts
from sparcom_analysis.isn import IsnSets
from sparcom_analysis.kernels.bit_counts import add_bit_counts
from sparcom_analysis.kernels.bitsets import Bitsets
from sparcom_analysis.options import ceil_of

KINDS = ("unique", "common", "general")
NEGLIGIBLE = 1e-12  # bound on the probability that a draw makes a member that is not `possible`
BATCH_SETS = 64  # sets counted at once; affects memory only


@dataclass(frozen=True, slots=True, eq=False)
class Membership:
    """Neurons or experts of n instructions, as bits.

    Attributes:
        codes: intp (n,), category index of each instruction.
        layers, experts, width: shape of one set; `experts` is 1 if there is no expert axis.
        sets: n bitsets; each has bytes (layer, expert, byte), padded with zeros.
    """

    codes: NDArray[np.intp]
    layers: int
    experts: int
    width: int
    sets: Bitsets

    @property
    def rows(self) -> list[NDArray[np.intp]]:
        """Instructions of each category: c times intp (n_c,)."""
        return [np.flatnonzero(self.codes == code) for code in range(int(self.codes.max(initial=-1)) + 1)]

    def counts(self, chosen: NDArray[np.intp]) -> NDArray[np.uint32]:
        """Count the chosen instructions that contain each id: uint32 (layer, expert × 8 × byte)."""
        counts = np.zeros(self.sets.shape[1] * 64, dtype=np.uint32)
        for first in range(0, len(chosen), BATCH_SETS):
            block = np.concatenate([self.sets.rows(k, k + 1) for k in chosen[first : first + BATCH_SETS].tolist()])
            add_bit_counts(block.view(np.uint8), counts)
        columns = self.experts * -(-self.width // 8) * 8
        return counts[: self.layers * columns].reshape(self.layers, columns)


def membership_of(subject: IsnSets | ExpertCounts, most_used: bool = False) -> Membership:
    """Return ISN sets unchanged, or activated experts (with `most_used`, only the most used ones) as bits."""
    if isinstance(subject, IsnSets):
        part = subject.population
        return Membership(subject.codes, part.layers, part.experts, part.neurons, subject.sets)
    chosen = subject.most_used() if most_used else subject.activated
    packed = np.packbits(chosen, axis=2, bitorder="little").reshape(len(chosen), -1)
    words = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8))).view(np.uint64)
    sets = Bitsets(*words.shape)
    for k, row in enumerate(words):
        sets[k] = row
    return Membership(subject.codes, len(subject.layer_ids), 1, subject.experts, sets)


@dataclass(frozen=True, slots=True, eq=False)
class Members:
    """Members of c categories, one entry per category and member, ordered by category, layer and id.

    Attributes:
        needed: int64 (c,), ⌈s · n⌉ of each category's n instructions.
        category, layer, expert, neuron: int64 (m,), indices; `expert` is 0 without an expert axis.
        kind: intp (m,), index into `KINDS`; −1 with one category.
        possible: bool (2, layer, expert × 8 × byte), ids that resamples and permutations may make members.
    """

    needed: NDArray[np.int64]
    category: NDArray[np.int64]
    layer: NDArray[np.int64]
    expert: NDArray[np.int64]
    neuron: NDArray[np.int64]
    kind: NDArray[np.intp]
    possible: NDArray[np.bool_]


def find_members(membership: Membership, min_share: float) -> Members:
    """Return the members of each category: ids in at least `min_share` of its instructions."""
    rows, n = membership.rows, len(membership.codes)
    needed = [ceil_of(min_share, len(some)) for some in rows]
    possible: NDArray[np.bool_] = np.zeros(1, dtype=np.bool_)
    total, found = np.zeros(1, dtype=np.uint32), []
    for some, least in zip(rows, needed, strict=True):
        counts = membership.counts(some)
        total, possible = total + counts, possible | (counts >= least_that_counts(len(some), len(some), least))
        found.append(np.flatnonzero(counts >= least))
    permuted = total >= min(least_that_counts(n, len(some), least) for some, least in zip(rows, needed, strict=True))
    flat = np.concatenate(found)
    _, inverse, times = np.unique(flat, return_inverse=True, return_counts=True)
    kind = np.select([times == 1, times < len(rows)], [0, 1], 2) if len(rows) > 1 else np.full(len(times), -1)
    shape = (membership.layers, membership.experts, -(-membership.width // 8) * 8)
    layer, expert, neuron = np.unravel_index(flat, shape)
    category = np.repeat(np.arange(len(rows)), [len(own) for own in found])
    return Members(np.array(needed), category, layer, expert, neuron, kind[inverse], np.stack([possible, permuted]))


def least_that_counts(instructions: int, drawn: int, needed: int) -> int:
    """Return the smallest k ≥ 1 such that an id in k of `instructions` may become a member when `drawn` are drawn.

    A member must be in `needed` of the drawn instructions. Below k, the probability of that is under `NEGLIGIBLE` by
    Chernoff's bound exp(−n · KL(needed/n ‖ p)), n = drawn, with or without replacement.
    """

    def exponent(p: float) -> float:
        q = needed / drawn
        if p >= q:
            return 0.0
        return -drawn * (q * math.log(q / p) + ((1 - q) * math.log((1 - q) / (1 - p)) if q < 1 else 0.0))

    return next(k for k in range(1, instructions + 1) if exponent(k / instructions) >= math.log(NEGLIGIBLE))
