"""Which components each instruction has: what general and unique components are found from.

The sets of n instructions as bits on the axes (layer, expert, id), of neurons the ISN sets themselves. They may lie in
a file and are counted in blocks. Does not know how they were selected.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.archive.categories import category_codes
from sparcom_analysis.isn import InstructionNeurons
from sparcom_analysis.kernels.bit_counts import add_bit_counts
from sparcom_analysis.kernels.bitsets import PackedSets

ComponentKind = Literal["neuron", "expert_neuron", "shared_expert_neuron", "expert"]

BLOCK_BYTES = 16 << 20  # sets counted at once; changes memory, never the result


@dataclass(frozen=True, slots=True)
class Memberships:
    """The components of n instructions.

    component: whose, a component's name in the archive, or "expert". categories: n strings. layer_ids: the model's
    number of each layer. experts: length of the expert axis, 1 where ids are of a layer. width: ids of a layer, or of
    one expert of it. sets: uint64 (n, word), one bit a component; its bytes are (layer, expert, byte), then zeros.
    """

    component: ComponentKind
    categories: Sequence[str]
    layer_ids: Sequence[int]
    experts: int
    width: int
    sets: PackedSets

    @property
    def columns(self) -> int:
        """Bits of a layer, spare ones included."""
        return self.experts * -(-self.width // 8) * 8

    def by_category(self) -> list[NDArray[np.intp]]:
        """The instructions of each category: c times intp (n_c,)."""
        codes = category_codes(self.categories)
        return [np.flatnonzero(codes == code) for code in range(int(codes.max(initial=-1)) + 1)]

    def counts(self, chosen: NDArray[np.intp]) -> NDArray[np.uint32]:
        """In how many of the chosen instructions each component is: uint32 (layer, column), spare columns 0."""
        counts = np.zeros(self.sets.shape[1] * 64, dtype=np.uint32)
        for block in _gather(self.sets, chosen):
            add_bit_counts(block.view(np.uint8), counts)
        return counts[: len(self.layer_ids) * self.columns].reshape(-1, self.columns)


def neuron_memberships(neurons: InstructionNeurons) -> Memberships:
    """The ISN sets of each instruction."""
    part = neurons.population
    return Memberships(part.component, neurons.categories, part.layer_ids, part.experts, part.neurons, neurons.sets)


def _gather(sets: PackedSets, chosen: NDArray[np.intp]) -> Iterator[NDArray[np.uint64]]:
    """The chosen sets in blocks of at most `BLOCK_BYTES`, at least one set."""
    at_once = max(1, min(len(chosen), BLOCK_BYTES // (8 * sets.shape[1])))
    block = np.empty((at_once, sets.shape[1]), dtype=np.uint64)
    for first in range(0, len(chosen), at_once):
        some = chosen[first : first + at_once].tolist()
        for place, k in enumerate(some):
            block[place] = sets.rows(k, k + 1)[0]
        yield block[: len(some)]
