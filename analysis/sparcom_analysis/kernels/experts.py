"""The compiled loops over router choices: which are no valid choice, how often each expert is chosen, how often each of
its neurons is active.

They take raw arrays and know nothing of archives or instructions. Compiled code checks no bounds: whoever counts has
looked for invalid choices first, with `invalid_choice`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.kernels.compiled import MAX_BYTE_COUNT, MIN_SPLIT_BYTES, SPREAD, compiled, cores, parallel_for


@compiled
def _invalid(chosen: NDArray[np.uint16], experts: int) -> int:
    """Flat index of the first choice that is no expert or one that the same token and layer chose before; -1: none."""
    rows, layers, choices = chosen.shape
    for row in range(rows):
        for layer in range(layers):
            for choice in range(choices):
                expert = chosen[row, layer, choice]
                if expert >= experts:
                    return int((row * layers + layer) * choices + choice)
                for before in range(choice):
                    if chosen[row, layer, before] == expert:
                        return int((row * layers + layer) * choices + choice)
    return -1


@compiled
def _count_choices(chosen: NDArray[np.uint16], counts: NDArray[np.uint32]) -> None:
    rows, layers, choices = chosen.shape
    for row in range(rows):
        for layer in range(layers):
            for choice in range(choices):
                counts[layer, chosen[row, layer, choice]] += np.uint32(1)


@compiled
def _widen(lanes: NDArray[np.uint64], counts: NDArray[np.uint32], base: int) -> None:
    """Add eight byte counters a column to `counts` from `base` on."""
    for i in range(lanes.shape[0]):
        lane = lanes[i]
        if lane:
            at = base + i * 8
            for bit in range(8):
                counts[at + bit] += np.uint32((lane >> np.uint64(8 * bit)) & np.uint64(255))


@compiled
def _add_expert_bits(
    masks: NDArray[np.uint8],
    chosen: NDArray[np.uint16],
    counts: NDArray[np.uint32],
    spread: NDArray[np.uint64],
    first: int,
    last: int,
) -> None:
    """Add the bits of layers first..last to the counts of the expert that each mask belongs to.

    As for dense layers, bits are summed in byte lanes; an expert's lanes are widened when it was chosen 255 times.
    """
    rows, choices, width = masks.shape[0], masks.shape[2], masks.shape[3]
    experts = counts.shape[1] // (width * 8)
    lanes = np.empty((experts, width), dtype=np.uint64)
    seen = np.zeros(experts, dtype=np.int64)
    for layer in range(first, last):
        for row in range(rows):
            for choice in range(choices):
                expert = chosen[row, layer, choice]
                if seen[expert] == 0:
                    lanes[expert, :] = 0
                own, bits = lanes[expert], masks[row, layer, choice]
                for i in range(width):
                    own[i] += spread[bits[i]]
                seen[expert] += 1
                if seen[expert] == MAX_BYTE_COUNT:
                    _widen(lanes[expert], counts[layer], expert * width * 8)
                    seen[expert] = 0
        for expert in range(experts):
            if seen[expert]:
                _widen(lanes[expert], counts[layer], expert * width * 8)
                seen[expert] = 0


def invalid_choice(chosen: NDArray[np.uint16], experts: int) -> tuple[int, int, int] | None:
    """Row, layer and choice of the first entry that is none of 0..experts - 1, or that the same row and layer hold
    twice; None where all are valid.

    Args:
        chosen: uint16 (row, layer, choice), expert ids.
    """
    at = int(_invalid(chosen, experts))
    if at < 0:
        return None
    row, rest = divmod(at, chosen.shape[1] * chosen.shape[2])
    layer, choice = divmod(rest, chosen.shape[2])
    return row, layer, choice


def add_choice_counts(chosen: NDArray[np.uint16], counts: NDArray[np.uint32]) -> None:
    """Add to counts at how many rows each expert is chosen.

    Args:
        chosen: uint16 (row, layer, choice), valid expert ids, see `invalid_choice`.
        counts: uint32 (layer, expert), changed in place.
    """
    if chosen.dtype != np.uint16 or counts.dtype != np.uint32 or counts.shape[0] != chosen.shape[1]:
        raise ValueError(f"counts must be uint32 ({chosen.shape[1]}, experts) for {chosen.shape}; got {counts.shape}")
    _count_choices(chosen, counts)


def add_expert_bit_counts(masks: NDArray[np.uint8], chosen: NDArray[np.uint16], counts: NDArray[np.uint32]) -> None:
    """Add to counts at how many rows an expert is chosen and its neuron active: the sum of equation 8.

    Args:
        masks: uint8 (row, layer, choice, byte), bit-packed in little bit order, the neurons of the expert chosen there.
        chosen: uint16 (row, layer, choice), valid expert ids, see `invalid_choice`.
        counts: uint32 (layer, expert × byte × 8), changed in place; layers are spread over cores.
    """
    layers, step = masks.shape[1], masks.shape[3] * 8
    fits = masks.shape[:3] == chosen.shape and counts.shape[0] == layers and counts.shape[1] % step == 0
    if not fits or masks.dtype != np.uint8 or chosen.dtype != np.uint16 or counts.dtype != np.uint32:
        raise ValueError(
            f"masks uint8 {masks.shape}, choices uint16 {chosen.shape} and counts uint32 {counts.shape} must agree"
        )
    split = layers if max(masks.nbytes, counts.nbytes) < MIN_SPLIT_BYTES else -(-layers // cores())
    parallel_for(lambda a, b: _add_expert_bits(masks, chosen, counts, SPREAD, a, b), layers, max(1, split))
