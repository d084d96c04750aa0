"""General and unique experts: `general_unique` for what the routers choose.

An expert is specific to an instruction (an ISE) where it is among the k most chosen of its layer, k = 5 or all experts
where a layer has fewer; those that tie with the k-th by count belong too, and an expert that is never chosen does not.
(A rank of table 6 has room for one, so there the lower id decides.) It belongs to a category where it is an ISE of at
least a share s of the category's instructions.

Where a layer has no more than k experts, every expert that is ever chosen is an ISE.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.ise import TOP, InstructionExperts
from sparcom_analysis.kernels.bitsets import PackedSets
from sparcom_analysis.measures.general_unique.groups import DEFAULT_SHARE, Components, find_components
from sparcom_analysis.measures.general_unique.members import Memberships
from sparcom_data.errors import InvalidInputError


def specific_experts(counts: NDArray[np.uint32], top: int = TOP) -> NDArray[np.bool_]:
    """The ISEs of an instruction: bool (layer, expert).

    Args:
        counts: uint32 (layer, expert), tokens that choose each expert.
        top: k.

    Raises:
        InvalidInputError: k is below 1.
    """
    if top < 1:
        raise InvalidInputError(f"the most chosen experts of a layer must be at least 1; top is {top}. Choose {TOP}")
    experts = counts.shape[1]
    rank = experts - min(top, experts)
    least = np.maximum(np.partition(counts, rank, axis=1)[:, rank : rank + 1], 1)
    chosen: NDArray[np.bool_] = counts >= least
    return chosen


def expert_memberships(experts: InstructionExperts, top: int = TOP) -> Memberships:
    """The ISEs of every instruction; arguments and errors of `specific_experts`."""
    layers, row = len(experts.layer_ids), -(-experts.experts // 8)
    sets = PackedSets(len(experts), -(-layers * row // 8))
    words = np.zeros(sets.shape[1], dtype=np.uint64)
    packed = words.view(np.uint8)[: layers * row].reshape(layers, row)
    for k, counts in enumerate(experts.counts):
        packed[:] = np.packbits(specific_experts(counts, top), axis=1, bitorder="little")
        sets[k] = words
    return Memberships("expert", experts.categories, experts.layer_ids, 1, experts.experts, sets)


def expert_components(experts: InstructionExperts, share: float = DEFAULT_SHARE, top: int = TOP) -> Components:
    """General and unique experts: those among the `top` most chosen in at least a share of a category's instructions.

    Raises:
        InvalidInputError: the share is outside (0, 1], or `top` below 1.
    """
    return find_components(expert_memberships(experts, top), share)
