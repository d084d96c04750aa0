"""General and unique components: which neurons or experts belong to every category of instructions, which to one alone.

    memberships ─▶ in how many of a category's instructions each component is ─▶ at least a share s of them: its own
                ─▶ general: belongs to all categories; unique to c: to c and no other; shared: to several, not to all

The paper's text speaks of general and unique components without an equation for when a component is a category's; the
share s (by default a half) is our reading. It is compared exactly, count ≥ ⌈s · n⌉ with s as the decimal number that
was written, so that no rounding decides who belongs.

One category has none to be told from: general and unique components are then empty, and `reason` says so.

A category is handled at a time: beside the results there is one counter a component and a block of sets. Does not know
how an instruction's components were selected; see `memberships` and `experts`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.archive.categories import category_labels
from sparcom_analysis.isn import InstructionNeurons
from sparcom_analysis.kernels.bitsets import PackedSets
from sparcom_analysis.kernels.compiled import pack_at_least
from sparcom_analysis.measures.general_unique.members import ComponentKind, Memberships, neuron_memberships
from sparcom_data.errors import InvalidInputError

DEFAULT_SHARE = 0.5
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

    component: ComponentKind
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

    def __post_init__(self) -> None:
        if self.experts != 1 and not self.routed:
            raise ValueError(
                f"only ids of routed experts' neurons take two numbers; {self.component} has {self.experts}"
            )

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
            f"the share of a category's instructions must be above 0 and at most 1; it is {share}. Choose 0.5"
        )
    exact = Fraction(repr(float(share)))
    return np.array([math.ceil(exact * int(n)) for n in instructions], dtype=np.int64)


def overlap(sets: Iterable[NDArray[np.uint64]], words: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Elements of all sets, and of two or more: uint64 (word,) each; empty where there is one set alone.

    Args:
        sets: each uint64 (word,). words: their width.
    """
    once = np.zeros(words, dtype=np.uint64)
    several, everywhere = once.copy(), ~once
    for own in sets:
        several |= once & own
        once |= own
        everywhere &= own
    return everywhere & several, several


def find_components(members: Memberships, share: float = DEFAULT_SHARE, *, scratch: Path | None = None) -> Components:
    """General and unique components: those of at least a share of a category's instructions.

    Args:
        members: components of each instruction.
        share: s, above 0 and at most 1; a category of n instructions needs ⌈s · n⌉ of them.
        scratch: folder for a temporary file of the categories' sets, where they are too many for memory.

    Raises:
        InvalidInputError: the share is outside (0, 1].
    """
    rows = members.by_category()
    instructions = np.array([len(some) for some in rows], dtype=np.int64)
    needed = needed_instructions(share, instructions)
    sets = _category_sets(members, rows, needed, scratch)
    everywhere, several = overlap((sets.rows(k, k + 1)[0] for k in range(len(sets))), sets.shape[1])
    return Components(
        component=members.component,
        share=share,
        categories=category_labels(members.categories),
        layer_ids=list(members.layer_ids),
        experts=members.experts,
        width=members.width,
        instructions=instructions,
        needed=needed,
        sets=sets,
        everywhere=everywhere,
        several=several,
    )


def _category_sets(
    members: Memberships, rows: Sequence[NDArray[np.intp]], needed: NDArray[np.int64], scratch: Path | None
) -> PackedSets:
    """The components of each category: uint64 (c, word)."""
    layers, sets = len(members.layer_ids), PackedSets(len(rows), members.sets.shape[1], scratch)
    sizes = np.zeros(layers, dtype=np.int64)
    words = np.zeros(sets.shape[1], dtype=np.uint64)
    packed = words.view(np.uint8)[: layers * members.columns // 8].reshape(layers, -1)
    for code, least in enumerate(needed.tolist()):
        pack_at_least(members.counts(rows[code]), least, packed, sizes)
        sets[code] = words
    return sets


def neuron_components(
    neurons: InstructionNeurons, share: float = DEFAULT_SHARE, *, scratch: Path | None = None
) -> Components:
    """General and unique neurons, of the ISN sets of one component; arguments and errors of `find_components`."""
    return find_components(neuron_memberships(neurons), share, scratch=scratch)
