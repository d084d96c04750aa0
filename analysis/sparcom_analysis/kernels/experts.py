"""Loops over top-k experts: find invalid ids, count assignments per expert, and count active neurons per expert.

Compiled code does not check bounds. Call `invalid_expert` before counting.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.kernels.compiled import MAX_BYTE_COUNT, SPREAD, compiled, parallel_for, per_core, widen


@compiled
def _add_expert_bits(
    masks: NDArray[np.uint8],
    chosen: NDArray[np.uint16],
    counts: NDArray[np.uint32],
    spread: NDArray[np.uint64],
    first: int,
    last: int,
) -> None:
    """Add the bits of layers first..last to the counts of the expert that each mask belongs to."""
    rows, top_k, width = masks.shape[0], masks.shape[2], masks.shape[3]
    experts, step = counts.shape[1] // (width * 8), width * 8
    lanes = np.empty((experts, width), dtype=np.uint64)
    seen = np.zeros(experts, dtype=np.int64)
    for layer in range(first, last):
        for row in range(rows):
            for choice in range(top_k):
                expert = chosen[row, layer, choice]
                if seen[expert] == 0:
                    lanes[expert, :] = 0
                sums, bits = lanes[expert], masks[row, layer, choice]
                for i in range(width):
                    sums[i] += spread[bits[i]]
                seen[expert] += 1
                if seen[expert] == MAX_BYTE_COUNT:
                    at = np.int64(expert) * step
                    widen(lanes[expert], counts[layer, at : at + step])
                    seen[expert] = 0
        for left in range(experts):
            if seen[left]:
                widen(lanes[left], counts[layer, left * step : (left + 1) * step])
                seen[left] = 0


def invalid_expert(chosen: NDArray[np.uint16], experts: int) -> tuple[int, int, int] | None:
    """Return row, layer and choice of the first invalid entry; None if all are valid.

    An entry is invalid if it is outside 0..experts - 1, or repeats an earlier entry of the same row and layer.

    Args:
        chosen: uint16 (row, layer, choice), expert ids.
    """
    invalid = chosen >= experts
    for choice in range(1, chosen.shape[2]):
        for before in range(choice):
            invalid[:, :, choice] |= chosen[:, :, choice] == chosen[:, :, before]
    if not invalid.any():
        return None
    row, layer, choice = np.argwhere(invalid)[0].tolist()
    return row, layer, choice


def add_expert_counts(chosen: NDArray[np.uint16], counts: NDArray[np.uint32]) -> None:
    """Add to `counts` the number of rows assigned to each expert.

    Args:
        chosen: uint16 (row, layer, choice), valid expert ids; see `invalid_expert`.
        counts: uint32 (layer, expert), changed in place.
    """
    if chosen.dtype != np.uint16 or counts.dtype != np.uint32 or counts.shape[0] != chosen.shape[1]:
        raise ValueError(f"counts must be uint32 ({chosen.shape[1]}, experts) for {chosen.shape}; got {counts.shape}")
    layers, experts = counts.shape
    entries = chosen + np.arange(layers, dtype=np.int64)[:, None] * experts
    counts += np.bincount(entries.reshape(-1), minlength=counts.size).reshape(counts.shape).astype(np.uint32)


def add_expert_bit_counts(masks: NDArray[np.uint8], chosen: NDArray[np.uint16], counts: NDArray[np.uint32]) -> None:
    """Add to `counts` the rows in which a neuron is active and its expert is in the top k: the sum of equation 8.

    Args:
        masks: uint8 (row, layer, choice, byte), bit-packed in little bit order: neurons of the assigned expert.
        chosen: uint16 (row, layer, choice), valid expert ids; see `invalid_expert`.
        counts: uint32 (layer, expert × byte × 8), changed in place. Layers are distributed over cores.
    """
    layers, bits = masks.shape[1], masks.shape[3] * 8
    fits = masks.shape[:3] == chosen.shape and counts.shape[0] == layers and counts.shape[1] % bits == 0
    if not fits or masks.dtype != np.uint8 or chosen.dtype != np.uint16 or counts.dtype != np.uint32:
        raise ValueError(
            f"masks uint8 {masks.shape}, top-k uint16 {chosen.shape} and counts uint32 {counts.shape} must agree"
        )
    step = per_core(layers, max(masks.nbytes, counts.nbytes))
    parallel_for(lambda first, last: _add_expert_bits(masks, chosen, counts, SPREAD, first, last), layers, step)
