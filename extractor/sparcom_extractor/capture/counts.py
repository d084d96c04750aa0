"""How often each neuron is active, from packed masks: the host's fast way, the twin, and how rows are cut for a device.

The host's way adds rows as hardware adds bits. A row is a plane of bits, each worth 1. A full adder takes three planes
of one worth and gives two, their sum of the same worth and their carry of twice that; so n planes become log2(n) in n
steps of five bitwise operations on whole rows, and only those few are spread into a number for each neuron.

It does not know requests, layers' meaning or devices: `count_kernel.py` does the same on a GPU.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

MOST_PIECE_ROWS = 256  # rows that one program of the device adds up; a long prompt is spread over several
_FEW_ROWS = 10  # below this the plain sum is as fast: 67 µs against 75 for 8 rows of SmolLM2, 392 against 155 for 50


def cut_pieces(first: NDArray[np.int64], rows: NDArray[np.int64], slot: NDArray[np.int64]) -> NDArray[np.int32]:
    """Runs of rows as pieces of at most 256 rows.

    Args:
        first: (runs,), each run's first row in the masks. rows: (runs,), how many it has. slot: (runs,), the counter
            it is added to.

    Returns:
        int32 (pieces, 3): first row, rows, slot. Runs without rows have no piece.
    """
    pieces = -(-rows // MOST_PIECE_ROWS)
    run = np.repeat(np.arange(len(rows)), pieces)
    before = (np.arange(len(run)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * MOST_PIECE_ROWS
    cut = np.stack([first[run] + before, np.minimum(rows[run] - before, MOST_PIECE_ROWS), slot[run]], axis=1)
    return cut.astype(np.int32)


def check_pieces(pieces: NDArray[np.int32], rows: int, slots: int) -> None:
    """Hold that pieces lie within `rows` rows and `slots` counters; a device would write elsewhere unseen.

    Raises:
        ValueError: one does not.
    """
    first, count, slot = pieces.T
    wrong = (
        (first < 0) | (count < 1) | (count > MOST_PIECE_ROWS) | (first + count > rows) | (slot < 0) | (slot >= slots)
    )
    if wrong.any():
        raise ValueError(
            f"a piece (first row, rows, slot) lies within {rows} rows and {slots} slots and has 1 to "
            f"{MOST_PIECE_ROWS} rows; one is {pieces[wrong.argmax()].tolist()}. The step's plan is wrong"
        )


def add_counts_host(masks: NDArray[np.uint8], counts: NDArray[np.uint32]) -> None:
    """Add the bits of rows to their counters.

    Args:
        masks: uint8 (rows, layers, ⌈neurons / 8⌉), little bit order; need not be contiguous.
        counts: uint32 (layers, neurons), added to in place.
    """
    rows, layers, width = masks.shape
    if rows < _FEW_ROWS:
        bits = np.unpackbits(masks, axis=2, bitorder="little")[:, :, : counts.shape[1]]
        counts += bits.sum(axis=0, dtype=np.uint32)
        return
    words = -(-layers * width // 8)
    packed = np.zeros((rows, words * 8), dtype=np.uint8)
    packed[:, : layers * width].reshape(rows, layers, width)[...] = masks
    for worth, plane in enumerate(_add_planes(packed.view(np.uint64))):
        bits = np.unpackbits(plane.view(np.uint8)[: layers * width].reshape(layers, width), axis=1, bitorder="little")
        counts += bits[:, : counts.shape[1]].astype(np.uint32) << np.uint32(worth)


def _add_planes(planes: NDArray[np.uint64]) -> list[NDArray[np.uint64]]:
    """The sum of bit planes (planes, words) in binary: entry i holds bit i of every position's sum, (words,)."""
    digits = []
    while len(planes):
        carries = []
        while len(planes) > 1:
            third, rest = divmod(len(planes), 3)
            if third == 0:  # two planes: a half adder
                carries.append(planes[:1] & planes[1:])
                planes = planes[:1] ^ planes[1:]
                continue
            one, two, three = planes[:third], planes[third : 2 * third], planes[2 * third : 3 * third]
            either = one ^ two
            carries.append((one & two) | (either & three))
            planes = np.concatenate([either ^ three, planes[3 * third :]]) if rest else either ^ three
        digits.append(planes[0])
        planes = np.concatenate(carries) if carries else planes[:0]
    return digits


def add_counts_twin(masks: torch.Tensor, pieces: torch.Tensor, counts: torch.Tensor) -> None:
    """What `count_kernel.add_counts` does, spelt out: counts int32 (slots, layers, neurons) += bits of the pieces."""
    bit = torch.arange(8, dtype=torch.uint8)
    for first, rows, slot in pieces.tolist():
        bits = (masks[first : first + rows, :, :, None] >> bit) & 1
        counts[slot] += bits.flatten(2).sum(dim=0, dtype=torch.int32)[:, : counts.shape[2]]
