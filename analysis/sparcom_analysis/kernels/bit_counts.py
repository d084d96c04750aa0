"""Count the rows with each bit set, with full adders over 64-bit words (a carry-save adder).

A row of words is a plane of bits of weight 1. A full adder takes three planes of equal weight and returns two: the sum
bits, and the carries of twice the weight. Per tile of columns and at most 248 rows, seven full adders add eight rows at
a time to the planes of weight 1, 2 and 4; carries go to planes of weight 8, 16, … A table then spreads each byte of the
planes, and of up to seven remaining rows, over eight one-byte counters. These are widened and added to the counts.

Full adders need a few instructions per word. Spreading every byte needs one look-up per byte and is 2.5 times slower.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.kernels.compiled import MAX_BYTE_COUNT, SPREAD, compiled, parallel_for, per_core, widen

TILE_WORDS = 256  # words of a row per tile; their byte counters, 16 KiB, stay in L1 cache
GROUP = 8  # rows per step of the full adders
PLANES = 8  # bits of the largest sum of one tile
MAX_ROWS = MAX_BYTE_COUNT // GROUP * GROUP


@compiled
def full_add(a: np.uint64, b: np.uint64, c: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Return sum and carry of three bits, in each of 64 columns."""
    half = a ^ b
    return half ^ c, (a & b) | (half & c)


@compiled
def _add_group(rows: NDArray[np.uint64], planes: NDArray[np.uint64], carried: NDArray[np.uint64]) -> None:
    """Add eight rows (8, word) to planes (bit, word), which must hold the largest sum. `carried` is scratch memory."""
    a, b, c, d, e, f, g, h = rows[0], rows[1], rows[2], rows[3], rows[4], rows[5], rows[6], rows[7]
    ones, twos, fours = planes[0], planes[1], planes[2]
    for i in range(ones.shape[0]):
        one, two_a = full_add(ones[i], a[i], b[i])
        one, two_b = full_add(one, c[i], d[i])
        one, two_c = full_add(one, e[i], f[i])
        ones[i], two_d = full_add(one, g[i], h[i])
        two, four_a = full_add(twos[i], two_a, two_b)
        twos[i], four_b = full_add(two, two_c, two_d)
        fours[i], carried[i] = full_add(fours[i], four_a, four_b)
    for bit in range(3, planes.shape[0]):
        plane = planes[bit]
        for i in range(plane.shape[0]):
            held = plane[i]
            plane[i] = held ^ carried[i]
            carried[i] &= held


@compiled
def _spread_planes(planes: NDArray[np.uint64], lanes: NDArray[np.uint64], spread: NDArray[np.uint64]) -> None:
    """Write the sums of the planes into lanes (byte,) of eight byte counters."""
    octets = planes.view(np.uint8)
    for i in range(octets.shape[1]):
        lane = np.uint64(0)
        for bit in range(octets.shape[0]):
            lane += spread[octets[bit, i]] << np.uint64(bit)
        lanes[i] = lane


@compiled
def _add_words(
    words: NDArray[np.uint64], counts: NDArray[np.uint32], spread: NDArray[np.uint64], first: int, last: int
) -> None:
    """Add the bits of words first..last of every row (row, word) to counts (64 × word,)."""
    lanes = np.empty(8 * TILE_WORDS, dtype=np.uint64)
    memory = np.empty(PLANES * TILE_WORDS, dtype=np.uint64)
    spare = np.empty(TILE_WORDS, dtype=np.uint64)
    for left in range(first, last, TILE_WORDS):
        right = min(left + TILE_WORDS, last)
        width = right - left
        for top in range(0, words.shape[0], MAX_ROWS):
            bottom = min(top + MAX_ROWS, words.shape[0])
            whole = (bottom - top) // GROUP * GROUP
            depth = 0
            while whole >> depth:
                depth += 1
            planes = memory[: depth * width].reshape((depth, width))
            planes[:] = 0
            for row in range(top, top + whole, GROUP):
                _add_group(words[row : row + GROUP, left:right], planes, spare[:width])
            _spread_planes(planes, lanes[: 8 * width], spread)
            for row in range(top + whole, bottom):
                octets = words[row, left:right].view(np.uint8)
                for i in range(octets.shape[0]):
                    lanes[i] += spread[octets[i]]
            widen(lanes[: 8 * width], counts[64 * left : 64 * right])


def add_bit_counts(rows: NDArray[np.uint8], counts: NDArray[np.uint32]) -> None:
    """Add to `counts` the number of rows with each bit set; distribute columns over cores.

    Args:
        rows: uint8 (row, byte), bit-packed in little bit order.
        counts: uint32 (8 × byte,), changed in place; entry 8·b + k belongs to bit k of byte b.
    """
    columns = rows.shape[1]
    if counts.shape != (columns * 8,) or counts.dtype != np.uint32 or rows.dtype != np.uint8:
        raise ValueError(f"counts must be uint32 ({columns * 8},) for uint8 rows {rows.shape}; got {counts.shape}")
    words = _as_words(rows)
    width = words.shape[1]
    total = counts if width * 8 == columns else np.zeros(width * 64, dtype=np.uint32)
    step = -(-per_core(width, rows.nbytes) // TILE_WORDS) * TILE_WORDS
    parallel_for(lambda first, last: _add_words(words, total, SPREAD, first, last), width, step)
    if total is not counts:
        counts += total[: columns * 8]


def _as_words(rows: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return rows as uint64 (row, word): a view of whole, aligned words, or a copy padded with zero bytes."""
    height, columns = rows.shape
    if rows.flags.c_contiguous and columns % 8 == 0 and rows.ctypes.data % 8 == 0:
        return rows.view(np.uint64)
    padded = np.zeros((height, -(-columns // 8) * 8), dtype=np.uint8)
    padded[:, :columns] = rows
    return padded.view(np.uint64)
