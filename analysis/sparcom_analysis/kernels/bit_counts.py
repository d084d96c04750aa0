"""How many rows have each bit set: rows added as hardware adds bits.

A row of 64-bit words is a plane of bits, each worth 1. A full adder takes three planes of one worth and gives the two
bits of their sum: one plane of that worth, one of twice it. In each tile of columns, for at most 248 rows:

    eight rows ─▶ seven full adders into the planes worth 1, 2 and 4; what is carried over into those worth 8, 16, …
    planes     ─▶ each byte spread by a table over eight counters of one byte, times its worth
    rows left  ─▶ up to seven, spread over the same counters one by one
    counters   ─▶ widened and added to the counts

So a row costs a few instructions a word, where spreading each of its bytes costs a look-up a byte; that plain way stays
for what is no row of aligned words. Knows nothing of archives, instructions or neurons.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.kernels.compiled import MAX_BYTE_COUNT, MIN_SPLIT_BYTES, SPREAD, compiled, cores, parallel_for

TILE_BYTES = 2048  # packed bytes of a row handled at once: their byte counters, 16 KiB, stay in the first-level cache
TILE_WORDS = TILE_BYTES // 8  # 64 were slower by an eighth, 128 by a twelfth
GROUP = 8  # rows that the full adders take at once
PLANES = 8  # bits of the largest sum of one tile
MAX_ROWS = MAX_BYTE_COUNT // GROUP * GROUP


@compiled
def full_add(a: np.uint64, b: np.uint64, c: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Sum and carry of three bits in each place."""
    half = a ^ b
    return half ^ c, (a & b) | (half & c)


@compiled
def _add_eight(
    a: NDArray[np.uint64],
    b: NDArray[np.uint64],
    c: NDArray[np.uint64],
    d: NDArray[np.uint64],
    e: NDArray[np.uint64],
    f: NDArray[np.uint64],
    g: NDArray[np.uint64],
    h: NDArray[np.uint64],
    planes: NDArray[np.uint64],
    carried: NDArray[np.uint64],
) -> None:
    """Add eight rows (word,) to the planes worth 1, 2 and 4; carried: written, the plane worth 8 that is left over."""
    ones, twos, fours = planes[0], planes[1], planes[2]
    for i in range(ones.shape[0]):
        one, two_a = full_add(ones[i], a[i], b[i])
        one, two_b = full_add(one, c[i], d[i])
        one, two_c = full_add(one, e[i], f[i])
        ones[i], two_d = full_add(one, g[i], h[i])
        two, four_a = full_add(twos[i], two_a, two_b)
        twos[i], four_b = full_add(two, two_c, two_d)
        fours[i], carried[i] = full_add(fours[i], four_a, four_b)


@compiled
def _carry(plane: NDArray[np.uint64], carried: NDArray[np.uint64]) -> None:
    """Add what is carried to a plane; what that carries over is left."""
    for i in range(plane.shape[0]):
        held = plane[i]
        plane[i] = held ^ carried[i]
        carried[i] &= held


@compiled
def _sum_groups(rows: NDArray[np.uint64], planes: NDArray[np.uint64], carried: NDArray[np.uint64]) -> None:
    """Add rows (8 × group, word) to planes (bit, word), which must have a bit for every sum."""
    for top in range(0, rows.shape[0], GROUP):
        a, b, c, d = rows[top], rows[top + 1], rows[top + 2], rows[top + 3]
        e, f, g, h = rows[top + 4], rows[top + 5], rows[top + 6], rows[top + 7]
        _add_eight(a, b, c, d, e, f, g, h, planes, carried)
        for bit in range(3, planes.shape[0]):
            _carry(planes[bit], carried)


@compiled
def _spread_planes(planes: NDArray[np.uint64], lanes: NDArray[np.uint64], spread: NDArray[np.uint64]) -> None:
    """Write what the planes say into eight byte counters a byte."""
    octets = planes.view(np.uint8)
    for i in range(octets.shape[1]):
        lane = np.uint64(0)
        for bit in range(octets.shape[0]):
            lane += spread[octets[bit, i]] << np.uint64(bit)
        lanes[i] = lane


@compiled
def _spread_rows(rows: NDArray[np.uint8], lanes: NDArray[np.uint64], spread: NDArray[np.uint64]) -> None:
    """Add rows (row, byte) to eight byte counters a byte."""
    for row in range(rows.shape[0]):
        for i in range(rows.shape[1]):
            lanes[i] += spread[rows[row, i]]


@compiled
def _widen(lanes: NDArray[np.uint64], counts: NDArray[np.uint32]) -> None:
    """Add eight byte counters a byte, (byte,), to counts (8 × byte,)."""
    for i in range(lanes.shape[0]):
        lane = lanes[i]
        for bit in range(8):
            counts[i * 8 + bit] += np.uint32((lane >> np.uint64(8 * bit)) & np.uint64(255))


@compiled
def _add_words(
    words: NDArray[np.uint64],
    rows: NDArray[np.uint8],
    counts: NDArray[np.uint32],
    spread: NDArray[np.uint64],
    first: int,
    last: int,
) -> None:
    """Add the bits of words first..last of every row; `rows` are the same as bytes."""
    lanes = np.empty(TILE_BYTES, dtype=np.uint64)
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
            _sum_groups(words[top : top + whole, left:right], planes, spare[:width])
            _spread_planes(planes, lanes[: 8 * width], spread)
            _spread_rows(rows[top + whole : bottom, 8 * left : 8 * right], lanes[: 8 * width], spread)
            _widen(lanes[: 8 * width], counts[64 * left : 64 * right])


@compiled
def _add_bytes(
    rows: NDArray[np.uint8], counts: NDArray[np.uint32], spread: NDArray[np.uint64], first: int, last: int
) -> None:
    """Add the bits of columns first..last of every row, byte by byte."""
    lanes = np.empty(TILE_BYTES, dtype=np.uint64)
    for left in range(first, last, TILE_BYTES):
        right = min(left + TILE_BYTES, last)
        for top in range(0, rows.shape[0], MAX_BYTE_COUNT):
            lanes[: right - left] = 0
            _spread_rows(rows[top : top + MAX_BYTE_COUNT, left:right], lanes, spread)
            _widen(lanes[: right - left], counts[8 * left : 8 * right])


def add_bit_counts(rows: NDArray[np.uint8], counts: NDArray[np.uint32]) -> None:
    """Add to counts how many rows have each bit set.

    Args:
        rows: uint8 (row, byte), bit-packed in little bit order.
        counts: uint32 (byte × 8,), changed in place; entry 8·b + k belongs to bit k of byte b.
    """
    columns = rows.shape[1]
    if counts.shape != (columns * 8,) or counts.dtype != np.uint32 or rows.dtype != np.uint8:
        raise ValueError(f"counts must be uint32 ({columns * 8},) for uint8 rows {rows.shape}; got {counts.shape}")
    split = columns if rows.nbytes < MIN_SPLIT_BYTES else -(-columns // cores())
    step = -(-max(split, 1) // TILE_BYTES) * TILE_BYTES
    if not _are_words(rows):
        parallel_for(lambda first, last: _add_bytes(rows, counts, SPREAD, first, last), columns, step)
        return
    words = rows.view(np.uint64)
    parallel_for(lambda first, last: _add_words(words, rows, counts, SPREAD, first, last), columns // 8, step // 8)


def _are_words(rows: NDArray[np.uint8]) -> bool:
    """Whether a row is whole words of 64 bits, each at an address that is a multiple of eight."""
    row_stride, stride = rows.strides
    return stride == 1 and rows.shape[1] % 8 == 0 and row_stride % 8 == 0 and rows.ctypes.data % 8 == 0
