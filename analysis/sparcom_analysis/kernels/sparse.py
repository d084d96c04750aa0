"""Intersections of sets that hold few of many elements: faster the fewer they are, whatever the sets share.

For up to 512 sets (a block) with each of others, by tiles of elements that stay in the second-level cache:

    the block's tile ─▶ holders: for every element 512 bits, which sets of the block hold it
    another's tile   ─▶ its elements' bits are added as hardware adds them: eight rows of 512 bits through seven full
                        adders into planes worth 1, 2 and 4, what is carried over into those worth 8, 16, …
    all tiles        ─▶ the planes of each other set are its 512 numbers

An element of a set costs some dozen instructions for 512 pairs, where `neurons.intersection_sizes` reads every word of
both sets of each pair. The numbers are the same. Knows nothing of what the elements are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.core.cgutils import ir  # llvmlite's, which comes with Numba
from numba.extending import intrinsic
from numpy.typing import NDArray

from sparcom_analysis.kernels.bit_counts import full_add
from sparcom_analysis.kernels.neurons import _popcount, compiled, cores, parallel_for

PARTS = 8  # words of a row of holders: a cache line, a vector or two
MOST_ROWS = 64 * PARTS  # sets of a block
GROUP = 8  # elements that the full adders take at once
SPARE = 2  # places past the last element that `_elements` may write
TILE_WORDS = 128  # words of sets handled at once: holders of 8,192 elements, 512 KiB; 64 and 256 were slower by a tenth
NOBODY = 64 * TILE_WORDS  # the row of holders that is always empty: fills up the last group
DENSE_FROM = 0.04  # share of elements from which reading all words is faster: as fast at 5 % of 352,256 (AVX-512)


@intrinsic  # type: ignore[untyped-decorator]
def _trailing_zeros(typing_context: Any, word: Any) -> Any:  # noqa: ARG001  (Numba's signature)
    """Zeros below the lowest bit set of a uint64; 64 for 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), generate


@compiled
def _elements(words: NDArray[np.uint64], found: NDArray[np.int32]) -> int:
    """Write the elements of a tile of a set, from 0, to `found`; how many they are.

    Two places are written for every word whatever it holds, and those too many are written over: a branch for each word
    is foretold wrongly every other time where half the words are 0, and took most of the time.
    """
    count = 0
    for at in range(words.shape[0]):
        word = words[at]
        end = count + int(_popcount(word))
        while True:
            found[count] = at * 64 + np.int64(_trailing_zeros(word))
            word &= word - np.uint64(1)
            found[count + 1] = at * 64 + np.int64(_trailing_zeros(word))
            word &= word - np.uint64(1)
            count += 2
            if count >= end:
                break
        count = int(end)
    return count


@compiled
def _transpose(
    block: NDArray[np.uint64], begin: int, end: int, holders: NDArray[np.uint64], found: NDArray[np.int32]
) -> None:
    """Write which sets of the block hold each element of words begin..end: bit i % 64 of holders[e, i // 64]."""
    holders[:] = 0
    for i in range(block.shape[0]):
        part, bit = np.uint64(i // 64), np.uint64(1) << np.uint64(i % 64)
        for k in range(_elements(block[i, begin:end], found)):
            holders[np.uint64(found[k]), part] |= bit


@compiled
def _add_group(holders: NDArray[np.uint64], found: NDArray[np.int32], k: int, planes: NDArray[np.uint64]) -> None:
    """Add the holders of elements found[k..k + 8] to planes (bit, part), whose last one holds what is carried."""
    a, b, c, d = np.uint64(found[k]), np.uint64(found[k + 1]), np.uint64(found[k + 2]), np.uint64(found[k + 3])
    e, f, g, h = np.uint64(found[k + 4]), np.uint64(found[k + 5]), np.uint64(found[k + 6]), np.uint64(found[k + 7])
    last, left = np.uint64(planes.shape[0] - 1), np.uint64(0)
    for number in range(PARTS):
        part = np.uint64(number)  # a signed index would be looked at for being negative
        one, two_a = full_add(planes[0, part], holders[a, part], holders[b, part])
        one, two_b = full_add(one, holders[c, part], holders[d, part])
        one, two_c = full_add(one, holders[e, part], holders[f, part])
        planes[0, part], two_d = full_add(one, holders[g, part], holders[h, part])
        two, four_a = full_add(planes[1, part], two_a, two_b)
        planes[1, part], four_b = full_add(two, two_c, two_d)
        planes[2, part], eight = full_add(planes[2, part], four_a, four_b)
        planes[last, part] = eight
        left |= eight
    bit = np.uint64(3)
    while left:
        left = np.uint64(0)
        for number in range(PARTS):
            part = np.uint64(number)
            held, carried = planes[bit, part], planes[last, part]
            planes[bit, part] = held ^ carried
            planes[last, part] = held & carried
            left |= held & carried
        bit += np.uint64(1)


@compiled
def _add_planes(planes: NDArray[np.uint64], totals: NDArray[np.int32]) -> None:
    """totals[i] += the number whose bits are bit i % 64 of planes[:, i // 64]."""
    for bit in range(planes.shape[0] - 1):
        for part in range(PARTS):
            word = planes[bit, part]
            if word:
                for i in range(64):
                    totals[part * 64 + i] += np.int32(((word >> np.uint64(i)) & np.uint64(1)) << np.uint64(bit))


@compiled
def _count(
    block: NDArray[np.uint64], sets: NDArray[np.uint64], shared: NDArray[np.int32], first: int, last: int
) -> None:
    """shared[j, i] += elements in words first..last that sets[j] and set i of the block hold."""
    bits = 1
    while (last - first) * 64 >> bits:
        bits += 1
    planes = np.zeros((sets.shape[0], bits + 1, PARTS), dtype=np.uint64)
    holders = np.empty((NOBODY + 1, PARTS), dtype=np.uint64)
    found = np.empty(NOBODY + GROUP + SPARE, dtype=np.int32)
    for begin in range(first, last, TILE_WORDS):
        end = min(begin + TILE_WORDS, last)
        _transpose(block, begin, end, holders, found)
        for j in range(sets.shape[0]):
            count = _elements(sets[j, begin:end], found)
            found[count : count + GROUP] = NOBODY
            for k in range(0, count, GROUP):
                _add_group(holders, found, k, planes[j])
    for j in range(sets.shape[0]):
        _add_planes(planes[j], shared[j])


def sparse_intersection_sizes(block: NDArray[np.uint64], sets: NDArray[np.uint64]) -> NDArray[np.int32]:
    """How many elements each set of a block shares with each of other sets, on all cores.

    Args:
        block: uint64 (a, word), one bit an element; a is at most 512. sets: uint64 (b, word), the others.

    Returns:
        int32 (a, b), the numbers of `neurons.intersection_sizes`.
    """
    words = block.shape[1]
    if len(block) > MOST_ROWS or sets.shape[1] != words:
        raise ValueError(f"up to {MOST_ROWS} sets and others must be equally wide; got {block.shape}, {sets.shape}")
    found: list[NDArray[np.int32]] = []

    def count(first: int, last: int) -> None:
        shared = np.zeros((len(sets), MOST_ROWS), dtype=np.int32)
        _count(block, sets, shared, first, last)
        found.append(shared)

    tiles = -(-words // TILE_WORDS)
    parallel_for(count, words, max(1, -(-tiles // cores())) * TILE_WORDS)
    total = np.zeros((len(sets), MOST_ROWS), dtype=np.int32)
    for shared in found:
        total += shared
    return total[:, : len(block)].T


def is_sparse(elements: int, shape: tuple[int, int]) -> bool:
    """Whether sets of (set, word) with so many elements in all are better compared by elements than by words."""
    return elements < DENSE_FROM * 64 * shape[0] * shape[1]
