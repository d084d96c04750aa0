# ruff: noqa: N803  (Triton's constants are capitals)
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, import-untyped"
"""Triton kernels that count active neurons on the device, so that no mask leaves it, and their CPU references.

    add_counts     masks of tiles of rows ─▶ counts, int32 (slots, layers, neurons)
    add_packed     masks of tiles of a few rows ─▶ packed, uint8 (slots, layers, 2, neuron_bytes, 4)
    flush_packed   packed ─▶ counts; packed becomes 0

A row of a decode step adds 0 or 1 to each counter. 8-bit counters need a quarter of the memory traffic and of the
atomic additions: a word holds the four counters of half a mask byte. Neuron i is packed[slot, layer, i % 8 // 4,
i // 8, i % 4]. The caller flushes a slot before it has more than MAX_PACKED rows (`DeviceCounters`).

One program per tile of rows, layer and block of bytes spreads the bits of a byte over eight 8-bit sums. After at most
128 rows `add_counts` widens them. Additions are atomic, because tiles share slots.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

MAX_PACKED = 255  # rows that a packed counter can hold
MAX_TILE_ROWS = 256  # rows per program; a long prompt is split into tiles
_BYTES = 128  # per program: a thread holds the eight counters of one byte
_ROWS_8_BIT = 128  # rows that an 8-bit counter can hold; divides MAX_TILE_ROWS


def split_runs(first: NDArray[np.int64], rows: NDArray[np.int64], slot: NDArray[np.int64]) -> NDArray[np.int32]:
    """Split runs of rows into tiles of at most 256 rows: int32 (tiles, 3), first row, rows, slot.
    first, rows, slot: int64 (runs,), each run's first row in the masks, number of rows, and index in the counts."""
    tiles = -(-rows // MAX_TILE_ROWS)
    run = np.repeat(np.arange(len(rows)), tiles)
    before = (np.arange(len(run)) - np.repeat(np.cumsum(tiles) - tiles, tiles)) * MAX_TILE_ROWS
    split = np.stack([first[run] + before, np.minimum(rows[run] - before, MAX_TILE_ROWS), slot[run]], axis=1)
    return split.astype(np.int32)


def check_tiles(tiles: NDArray[np.int32], rows: int, slots: int) -> None:
    """Raise ValueError unless tiles lie within `rows` rows and `slots` slots: a device would write out of bounds."""
    first, count, slot = tiles.T
    wrong = (first < 0) | (count < 1) | (count > MAX_TILE_ROWS) | (first + count > rows) | (slot < 0) | (slot >= slots)
    if wrong.any():
        raise ValueError(
            f"a tile (first row, rows, slot) must lie within {rows} rows and {slots} slots and have 1 to "
            f"{MAX_TILE_ROWS} rows; one is {tiles[wrong.argmax()].tolist()}. The step's plan is wrong: report it"
        )


def add_counts_reference(masks: torch.Tensor, tiles: torch.Tensor, counts: torch.Tensor) -> None:
    """Add the bits of tiles to their counters on the CPU; the reference of `add_counts`."""
    bit = torch.arange(8, dtype=torch.uint8)
    for first, rows, slot in tiles.tolist():
        bits = (masks[first : first + rows, :, :, None] >> bit) & 1
        counts[slot] += bits.flatten(2).sum(dim=0, dtype=torch.int32)[:, : counts.shape[2]]


def add_packed_reference(masks: torch.Tensor, tiles: torch.Tensor, packed: torch.Tensor) -> None:
    """Add the bits of tiles to their packed counters on the CPU; the reference of `add_packed`."""
    bit = torch.arange(8, dtype=torch.uint8)
    for first, rows, slot in tiles.tolist():
        bits = (masks[first : first + rows, :, :, None] >> bit) & 1
        packed[slot] += bits.sum(dim=0, dtype=torch.uint8).unflatten(2, (2, 4)).transpose(1, 2)


def flush_packed_reference(packed: torch.Tensor, counts: torch.Tensor, slots: torch.Tensor) -> None:
    """Move the packed counters of slots to `counts` on the CPU; the reference of `flush_packed`."""
    for slot in slots.tolist():
        counts[slot] += packed[slot].transpose(1, 2).flatten(1)[:, : counts.shape[2]]
        packed[slot] = 0


@triton.jit
def _add_counts_kernel(
    masks, tiles, counts, neurons, mask_stride, slot_stride,
    BYTES: tl.constexpr, ROWS_8_BIT: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Count one tile. PACKED: `counts` holds a word for each half of a byte."""
    tile, layer = tl.program_id(0), tl.program_id(1)
    first = tl.load(tiles + tile * 3).to(tl.int64)
    rows = tl.load(tiles + tile * 3 + 1)
    slot = tl.load(tiles + tile * 3 + 2).to(tl.int64)
    neuron_bytes = (neurons + 7) // 8
    byte = tl.program_id(2) * BYTES + tl.arange(0, BYTES)
    source = masks + first * mask_stride + layer * neuron_bytes + byte
    shift = tl.arange(0, 4)[None, :] * 8
    low, high = tl.zeros((BYTES, 4), dtype=tl.int32), tl.zeros((BYTES, 4), dtype=tl.int32)
    for start in range(0, rows, ROWS_8_BIT):
        low_words, high_words = tl.zeros((BYTES,), dtype=tl.int32), tl.zeros((BYTES,), dtype=tl.int32)
        for _ in range(start, min(start + ROWS_8_BIT, rows)):
            packed = tl.load(source, mask=byte < neuron_bytes, other=0).to(tl.int32)
            source += mask_stride
            low_words += ((packed & 15) * 0x00204081) & 0x01010101
            high_words += ((packed >> 4) * 0x00204081) & 0x01010101
        if PACKED:
            target = counts + slot * slot_stride + layer * 2 * neuron_bytes + byte
            tl.atomic_add(target, low_words, mask=byte < neuron_bytes, sem="relaxed")
            tl.atomic_add(target + neuron_bytes, high_words, mask=byte < neuron_bytes, sem="relaxed")
        else:
            low += (low_words[:, None] >> shift) & 255
            high += (high_words[:, None] >> shift) & 255
    if not PACKED:
        target = counts + slot * slot_stride + layer * neurons
        neuron = byte[:, None] * 8 + tl.arange(0, 4)[None, :]
        tl.atomic_add(target + neuron, low, mask=neuron < neurons, sem="relaxed")
        tl.atomic_add(target + neuron + 4, high, mask=neuron + 4 < neurons, sem="relaxed")


@triton.jit
def _flush_kernel(packed, counts, slots, neurons, packed_stride, slot_stride, BYTES: tl.constexpr):
    slot, layer = tl.load(slots + tl.program_id(0)).to(tl.int64), tl.program_id(1)
    neuron_bytes = (neurons + 7) // 8
    byte = tl.program_id(2) * BYTES + tl.arange(0, BYTES)
    words = packed + slot * packed_stride + layer * 2 * neuron_bytes + byte
    shift = tl.arange(0, 4)[None, :] * 8
    for half in tl.static_range(2):
        word = tl.load(words + half * neuron_bytes, mask=byte < neuron_bytes, other=0)
        tl.store(words + half * neuron_bytes, word * 0, mask=byte < neuron_bytes)
        neuron = byte[:, None] * 8 + half * 4 + tl.arange(0, 4)[None, :]
        target = counts + slot * slot_stride + layer * neurons + neuron
        count = tl.load(target, mask=neuron < neurons, other=0)
        tl.store(target, count + ((word[:, None] >> shift) & 255), mask=neuron < neurons)


def add_counts(masks: torch.Tensor, tiles: torch.Tensor, counts: torch.Tensor) -> None:
    """Add the bits of tiles of rows to their counters, on the current stream and without waiting.
    masks: uint8 (rows, layers, ⌈neurons / 8⌉). tiles: see `split_runs`; the host has called `check_tiles`.
    counts: int32 (slots, layers, neurons), added to in place. All contiguous."""
    _launch_add(masks, tiles, counts, counts.shape[2], packed=False)


def add_packed(masks: torch.Tensor, tiles: torch.Tensor, packed: torch.Tensor) -> None:
    """Add the bits of tiles of rows to their packed counters, as `add_counts` does.
    tiles: at most 255 rows per slot since its last flush. packed: uint8 (slots, layers, 2, neuron_bytes, 4),
    contiguous."""
    _launch_add(masks, tiles, packed.view(torch.int32)[..., 0], 8 * masks.shape[2], packed=True)


def _launch_add(masks: torch.Tensor, tiles: torch.Tensor, counts: torch.Tensor, neurons: int, *, packed: bool) -> None:
    if len(tiles):
        _add_counts_kernel[(len(tiles), masks.shape[1], triton.cdiv(masks.shape[2], _BYTES))](
            *(masks, tiles, counts, neurons, masks.stride(0), counts.stride(0)),
            BYTES=_BYTES,
            ROWS_8_BIT=_ROWS_8_BIT,
            PACKED=packed,
            enable_fp_fusion=False,  # nothing to fuse; Triton 3.9 warns if unset
        )


def flush_packed(packed: torch.Tensor, counts: torch.Tensor, slots: torch.Tensor) -> None:
    """Add the packed counters of slots to `counts` and zero them, on the current stream and without waiting.
    slots: int64 (n,), each once. packed, counts: see `add_packed`, `add_counts`."""
    if len(slots):
        _flush_kernel[(len(slots), counts.shape[1], triton.cdiv(packed.shape[3], _BYTES))](
            *(packed.view(torch.int32), counts, slots, counts.shape[2], packed.stride(0) // 4, counts.stride(0)),
            BYTES=_BYTES,
            enable_fp_fusion=False,
        )


class CountKernels(NamedTuple):
    """Functions that count: see `add_counts`, `add_packed` and `flush_packed`."""

    add: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]
    add_packed: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]
    flush: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


DEVICE = CountKernels(add_counts, add_packed, flush_packed)
REFERENCE = CountKernels(add_counts_reference, add_packed_reference, flush_packed_reference)
