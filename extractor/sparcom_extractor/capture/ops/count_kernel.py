# ruff: noqa: N803  (Triton's constants are capitals, to be told from what a device holds)
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, import-untyped"
"""The Triton kernel that counts packed signs where they were made, so that no mask leaves the device.

A program for every piece of rows, layer and block of bytes:

    1. spread the eight bits of a byte over the eight bytes of two words, each a counter, and add up to 128 rows so;
    2. widen the counters to 32 bits and begin again, until the piece is done;
    3. add them to the slot's counters atomically: several pieces may share a slot. Whole numbers add up to the same in
       any order.

It does not know requests: pieces say which rows are added to which slot (`counts.cut_pieces`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BYTES = 128  # of a program: a thread holds one byte's eight counters
_LANE_ROWS = 128  # rows that a counter of 8 bits can take, and a whole part of a piece


@triton.jit
def _add_counts_kernel(
    masks, pieces, counts,
    neurons, mask_stride, slot_stride,
    BYTES: tl.constexpr, LANE_ROWS: tl.constexpr,
):  # fmt: skip
    piece, layer = tl.program_id(0), tl.program_id(1)
    first = tl.load(pieces + piece * 3).to(tl.int64)
    rows = tl.load(pieces + piece * 3 + 1)
    slot = tl.load(pieces + piece * 3 + 2).to(tl.int64)
    neuron_bytes = (neurons + 7) // 8
    byte = tl.program_id(2) * BYTES + tl.arange(0, BYTES)
    source = masks + first * mask_stride + layer * neuron_bytes + byte
    lane = tl.arange(0, 4)[None, :] * 8
    low, high = tl.zeros((BYTES, 4), dtype=tl.int32), tl.zeros((BYTES, 4), dtype=tl.int32)
    for start in range(0, rows, LANE_ROWS):
        low_lanes, high_lanes = tl.zeros((BYTES,), dtype=tl.int32), tl.zeros((BYTES,), dtype=tl.int32)
        for _ in range(start, min(start + LANE_ROWS, rows)):
            packed = tl.load(source, mask=byte < neuron_bytes, other=0).to(tl.int32)
            source += mask_stride
            low_lanes += ((packed & 15) * 0x00204081) & 0x01010101
            high_lanes += ((packed >> 4) * 0x00204081) & 0x01010101
        low += (low_lanes[:, None] >> lane) & 255
        high += (high_lanes[:, None] >> lane) & 255
    target = counts + slot * slot_stride + layer * neurons
    neuron = byte[:, None] * 8 + tl.arange(0, 4)[None, :]
    tl.atomic_add(target + neuron, low, mask=neuron < neurons, sem="relaxed")
    tl.atomic_add(target + neuron + 4, high, mask=neuron + 4 < neurons, sem="relaxed")


def add_counts(masks: torch.Tensor, pieces: torch.Tensor, counts: torch.Tensor) -> None:
    """Add the bits of pieces of rows to their counters, on the current stream and without waiting.

    Args:
        masks: uint8 (rows, layers, ⌈neurons / 8⌉), contiguous, on the device.
        pieces: int32 (pieces, 3), contiguous: first row, rows (at most 256), slot; checked on the host before by
            `counts.check_pieces`.
        counts: int32 (slots, layers, neurons), contiguous, added to in place.
    """
    if not len(pieces):
        return
    layers, neurons = counts.shape[1:]
    _add_counts_kernel[(len(pieces), layers, triton.cdiv(masks.shape[2], _BYTES))](
        masks,
        pieces,
        counts,
        neurons,
        masks.stride(0),
        counts.stride(0),
        BYTES=_BYTES,
        LANE_ROWS=_LANE_ROWS,
        enable_fp_fusion=False,  # nothing to fuse; Triton 3.9 warns of the choice left open
    )
