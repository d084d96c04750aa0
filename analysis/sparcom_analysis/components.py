"""General and unique components: which neurons belong to every category of instructions, and which to one alone.

    ISN sets ─▶ per category and neuron, in how many of the category's instructions it is ─▶ at least a share s of them?
             ─▶ general: belongs to all categories; unique to c: to c and no other; shared: to several, not to all

The paper's text speaks of general and unique components without an equation for when a component is a category's; the
share s (by default a half) is our reading. It is compared exactly, count ≥ ⌈s · n⌉ with s as the decimal number that
was written, so that no rounding decides who belongs.

One category has none to be told from: general and unique components are then empty, and `reason` says so.

Works on sets packed as bits, a category's at a time, which may lie in a file: beside the results it holds one counter a
neuron and 16 MiB of sets. Does not know how sets were selected; experts are in `expert_components`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.categories import category_codes, category_labels
from sparcom_analysis.kernels import add_bit_counts, pack_at_least
from sparcom_analysis.selection import InstructionNeurons
from sparcom_analysis.sets import PackedSets
from sparcom_data.errors import InvalidInputError

DEFAULT_SHARE = 0.5
BLOCK_BYTES = 16 << 20  # sets counted at once; changes memory, never the result
ONE_CATEGORY = "one category has no other that its components could be shared with or told from"

Kind = Literal["belonging", "unique", "shared", "general"]


@dataclass(frozen=True, slots=True)
class Components:
    """Which components of a model belong to which of c categories.

    component: whose: "neuron", "expert_neuron", "shared_expert_neuron", or "expert" for the experts themselves.
    share: s. categories: c names, in order of first appearance. layer_ids: the model's number of each layer.
    experts: length of the expert axis, 1 where ids are of a layer. width: ids of a layer, or of one expert of it.
    instructions: int64 (c,), n of each category. needed: int64 (c,), ⌈s · n⌉.
    sets: uint64 (c, word), one bit a component; its bytes are (layer, expert, byte), then zeros.
    everywhere, several: uint64 (word,), components of all categories, and of two or more; empty with one category.
    """

    component: str
    share: float
    categories: Sequence[str]
    layer_ids: Sequence[int]
    experts: int
    width: int
    instructions: NDArray[np.int64]
    needed: NDArray[np.int64]
    sets: PackedSets
    everywhere: NDArray[np.uint64]
    several: NDArray[np.uint64]

    @property
    def reason(self) -> str:
        """Why nothing is general or unique here; empty where categories can be compared."""
        return "" if len(self.categories) > 1 else ONE_CATEGORY

    @property
    def routed(self) -> bool:
        """Whether an id is one within an expert, so that it takes two numbers to name it."""
        return self.component == "expert_neuron"

    @property
    def per_layer(self) -> int:
        """Components of one layer, over all its experts."""
        return self.experts * self.width

    def words(self, kind: Kind, category: int = 0) -> NDArray[np.uint64]:
        """The components of this kind as bits: uint64 (word,); `category` is for belonging and unique."""
        if kind == "general":
            return self.everywhere
        if kind == "shared":
            return self.several & ~self.everywhere
        own: NDArray[np.uint64] = self.sets.rows(category, category + 1)[0]
        if kind == "belonging":
            return own
        return own & ~self.several if not self.reason else np.zeros_like(own)

    def mask(self, kind: Kind, category: int = 0) -> NDArray[np.bool_]:
        """The same as bool (layer, id), of routed experts' neurons (layer, expert, neuron)."""
        bits = np.unpackbits(self._bytes(self.words(kind, category)), axis=2, count=self.width, bitorder="little")
        mask = bits.astype(np.bool_)
        return mask if self.routed else mask[:, 0]

    def ids(self, kind: Kind, category: int = 0) -> list[NDArray[np.int64]]:
        """The same as ascending ids of each layer: int64 (k,); of routed experts' neurons expert · width + neuron."""
        return [np.flatnonzero(layer).astype(np.int64) for layer in self.mask(kind, category)]

    def counts(self, kind: Kind, category: int = 0) -> NDArray[np.int64]:
        """int64 (layer,): how many there are in each layer."""
        bits = np.bitwise_count(self._bytes(self.words(kind, category)))
        counts: NDArray[np.int64] = bits.sum(axis=(1, 2), dtype=np.int64)
        return counts

    def by_category(self, kind: Kind) -> NDArray[np.int64]:
        """int64 (c, layer): `counts` of every category."""
        return np.array([self.counts(kind, code) for code in range(len(self.categories))])

    def _bytes(self, words: NDArray[np.uint64]) -> NDArray[np.uint8]:
        shape = (len(self.layer_ids), self.experts, -(-self.width // 8))
        return words.view(np.uint8)[: math.prod(shape)].reshape(shape)


def needed_instructions(share: float, instructions: NDArray[np.int64]) -> NDArray[np.int64]:
    """⌈s · n⌉ of each category's n instructions, int64 (c,), s as the decimal number that was written.

    Raises:
        InvalidInputError: s is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise InvalidInputError(
            [f"the share of a category's instructions must be above 0 and at most 1; it is {share}. Choose 0.5"]
        )
    exact = Fraction(repr(float(share)))
    return np.array([math.ceil(exact * int(n)) for n in instructions], dtype=np.int64)


def overlap(sets: PackedSets) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Elements of all sets, and of two or more: uint64 (word,) each; empty where there is one set alone."""
    once = np.zeros(sets.shape[1], dtype=np.uint64)
    several, everywhere = once.copy(), ~once
    for k in range(len(sets)):
        (own,) = sets.rows(k, k + 1)
        several |= once & own
        once |= own
        everywhere &= own
    return everywhere & several, several


def neuron_components(
    neurons: InstructionNeurons, share: float = DEFAULT_SHARE, *, scratch: Path | None = None
) -> Components:
    """General and unique neurons: those in the ISN sets of at least a share of a category's instructions.

    Args:
        neurons: ISN sets of one component.
        share: s, above 0 and at most 1; a category of n instructions needs ⌈s · n⌉ of them.
        scratch: folder for a temporary file of the categories' sets, where they are too many for memory.

    Raises:
        InvalidInputError: the share is outside (0, 1].
    """
    labels, codes = category_labels(neurons.categories), category_codes(neurons.categories)
    instructions = np.bincount(codes, minlength=len(labels)).astype(np.int64)
    needed = needed_instructions(share, instructions)
    sets = _category_sets(neurons, codes, needed, scratch)
    everywhere, several = overlap(sets)
    part = neurons.population
    return Components(
        component=part.component,
        share=share,
        categories=labels,
        layer_ids=list(part.layer_ids),
        experts=part.experts,
        width=part.neurons,
        instructions=instructions,
        needed=needed,
        sets=sets,
        everywhere=everywhere,
        several=several,
    )


def _category_sets(
    neurons: InstructionNeurons, codes: NDArray[np.intp], needed: NDArray[np.int64], scratch: Path | None
) -> PackedSets:
    """The neurons of each category: uint64 (c, word)."""
    part, sets = neurons.population, PackedSets(len(needed), neurons.sets.shape[1], scratch)
    sizes = np.zeros(part.layers, dtype=np.int64)
    words = np.zeros(sets.shape[1], dtype=np.uint64)
    packed = words.view(np.uint8)[: part.layers * part.columns // 8].reshape(part.layers, -1)
    for code, least in enumerate(needed.tolist()):
        counts = count_members(neurons.sets, np.flatnonzero(codes == code))
        pack_at_least(counts[: packed.size * 8].reshape(part.layers, -1), least, packed, sizes)
        sets[code] = words
    return sets


def count_members(sets: PackedSets, chosen: NDArray[np.int64]) -> NDArray[np.uint32]:
    """In how many of the chosen sets each element is, one that is chosen twice counted twice: uint32 (word × 64,)."""
    counts = np.zeros(sets.shape[1] * 64, dtype=np.uint32)
    for block in _gather(sets, chosen):
        add_bit_counts(block.view(np.uint8), counts)
    return counts


def _gather(sets: PackedSets, chosen: NDArray[np.int64]) -> Iterator[NDArray[np.uint64]]:
    """The chosen sets in blocks of at most `BLOCK_BYTES`, at least one set."""
    at_once = max(1, min(len(chosen), BLOCK_BYTES // (8 * sets.shape[1])))
    block = np.empty((at_once, sets.shape[1]), dtype=np.uint64)
    for first in range(0, len(chosen), at_once):
        some = chosen[first : first + at_once].tolist()
        for place, k in enumerate(some):
            block[place] = sets.rows(k, k + 1)[0]
        yield block[: len(some)]
