"""General and unique experts: `components` for what the routers choose.

An expert is specific to an instruction (an ISE) where it is among the k most chosen of its layer, k = 5 or all experts
where a layer has fewer; those that tie with the k-th by count belong too, and an expert that is never chosen does not.
It belongs to a category where it is an ISE of at least a share s of the category's instructions. Which of several
tied experts a rank gets is no matter of its id here, other than in table 6, where a rank has room for one.

Where a layer has no more than k experts every chosen one is an ISE, and general says no more than: always chosen.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.categories import category_codes, category_labels
from sparcom_analysis.components import DEFAULT_SHARE, Components, needed_instructions, overlap
from sparcom_analysis.experts import TOP, InstructionExperts
from sparcom_analysis.sets import PackedSets
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
        raise InvalidInputError([f"the most chosen experts of a layer must be at least 1; top is {top}. Choose {TOP}"])
    experts = counts.shape[1]
    rank = experts - min(top, experts)
    least = np.maximum(np.partition(counts, rank, axis=1)[:, rank : rank + 1], 1)
    chosen: NDArray[np.bool_] = counts >= least
    return chosen


def expert_components(experts: InstructionExperts, share: float = DEFAULT_SHARE, top: int = TOP) -> Components:
    """General and unique experts: those among the `top` most chosen in at least a share of a category's instructions.

    Raises:
        InvalidInputError: the share is outside (0, 1], or `top` below 1.
    """
    labels, codes = category_labels(experts.categories), category_codes(experts.categories)
    instructions = np.bincount(codes, minlength=len(labels)).astype(np.int64)
    needed = needed_instructions(share, instructions)
    members = np.zeros((len(labels), *experts.counts.shape[1:]), dtype=np.int64)
    for code, counts in zip(codes.tolist(), experts.counts, strict=True):
        members[code] += specific_experts(counts, top)
    sets = _packed(members >= needed[:, None, None])
    everywhere, several = overlap(sets)
    return Components(
        component="expert",
        share=share,
        categories=labels,
        layer_ids=list(experts.layer_ids),
        experts=1,
        width=experts.experts,
        instructions=instructions,
        needed=needed,
        sets=sets,
        everywhere=everywhere,
        several=several,
    )


def _packed(belongs: NDArray[np.bool_]) -> PackedSets:
    """Sets of bool (c, layer, expert)."""
    packed = np.packbits(belongs, axis=2, bitorder="little").reshape(len(belongs), -1)
    sets = PackedSets(len(belongs), -(-packed.shape[1] // 8))
    words = np.zeros(sets.shape[1], dtype=np.uint64)
    for code, row in enumerate(packed):
        words.view(np.uint8)[: len(row)] = row
        sets[code] = words
    return sets
