"""Sums of packed bits on the host: how many rows have each bit set."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Byte value ─▶ its eight bits, one in each byte of a uint64: sums of up to 255 rows then add in eight lanes at once.
_LANES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").view(np.uint64).reshape(256)
_MOST_ROWS = 255


def add_bits(masks: NDArray[np.uint8], counts: NDArray[np.uint32]) -> None:
    """Add the bits of rows of masks, uint8 (rows, layer, neuron_byte), to counts, uint32 (layer, neuron), in place."""
    for first in range(0, len(masks), _MOST_ROWS):
        lanes = _LANES[masks[first : first + _MOST_ROWS]].sum(axis=0, dtype=np.uint64)
        counts += lanes.view(np.uint8)[:, : counts.shape[1]]


def unpack_bits(mask: NDArray[np.uint8], neurons: int) -> NDArray[np.uint32]:
    """One packed mask (layer, neuron_byte) as 0 and 1: uint32 (layer, neurons)."""
    return np.unpackbits(mask, axis=-1, bitorder="little")[:, :neurons].astype(np.uint32)
