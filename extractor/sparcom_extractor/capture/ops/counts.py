"""How rows are cut into pieces for the kernel that counts on a device, and the twin of that kernel.

It does not know requests or what a layer means. The kernel is in `count_kernel.py`; the host's own way is
`writer/counting.py`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

MOST_PIECE_ROWS = 256  # rows that one program of the device adds up; a long prompt is spread over several


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


def add_counts_twin(masks: torch.Tensor, pieces: torch.Tensor, counts: torch.Tensor) -> None:
    """What `count_kernel.add_counts` does, spelt out: counts int32 (slots, layers, neurons) += bits of the pieces."""
    bit = torch.arange(8, dtype=torch.uint8)
    for first, rows, slot in pieces.tolist():
        bits = (masks[first : first + rows, :, :, None] >> bit) & 1
        counts[slot] += bits.flatten(2).sum(dim=0, dtype=torch.int32)[:, : counts.shape[2]]
