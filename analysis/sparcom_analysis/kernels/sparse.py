"""Intersections of sets that hold few of many elements: faster the fewer they are, whatever the sets share.

    a block of sets ─▶ transpose_sets: for every element one bit a set, which sets hold it
    another set     ─▶ intersections: for each of its elements add those bits to byte counters, 64 sets in one
                       instruction; widen the counters before they can overflow

A pair costs a share of an instruction for each element of one set, where `neurons.intersection_sizes` reads every word
of both. The numbers are the same. Knows nothing of what the elements are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.core.cgutils import ir  # llvmlite's, which comes with Numba
from numba.extending import intrinsic
from numpy.typing import NDArray

from sparcom_analysis.kernels.neurons import _popcount, compiled, cores, intersection_sizes, parallel_for

LANES = 64  # sets whose counters one word of bits is added to
SPARE = 2  # places past the last element that `_elements` may write
BATCH = 252  # elements counted in bytes: a multiple of four below 256
DENSE_FROM = 0.04  # share of elements from which reading all words is faster: as fast at 5 % of 352,256 (AVX-512)
TILE_WORDS = 512  # words of sets transposed at once: 32,768 elements, 512 KiB for 128 sets, in the second-level cache


@intrinsic  # type: ignore[untyped-decorator]
def _trailing_zeros(typing_context: Any, word: Any) -> Any:  # noqa: ARG001  (Numba's signature)
    """Zeros below the lowest bit set of a uint64; 64 for 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _add_lanes(typing_context: Any, lanes: Any, part: Any, a: Any, b: Any, c: Any, d: Any) -> Any:  # noqa: ARG001
    """lanes[part, k] += bit k of each of four words, for 64 uint8 at once; written out, LLVM makes 256 additions.

    Four words at a time: counters wait until their last sum is stored, and four bits wait together.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        vector = ir.VectorType(ir.IntType(8), LANES)
        place = builder.gep(builder.bitcast(array.data, vector.as_pointer()), [arguments[1]])
        bits = [builder.bitcast(word, ir.VectorType(ir.IntType(1), LANES)) for word in arguments[2:]]
        ones = [builder.zext(each, vector) for each in bits]
        four = builder.add(builder.add(ones[0], ones[1]), builder.add(ones[2], ones[3]))
        builder.store(builder.add(builder.load(place, align=1), four), place, align=1)
        return context.get_dummy_value()

    word = types.uint64
    return types.void(lanes, types.uint64, word, word, word, word), generate


@compiled
def _elements(words: NDArray[np.uint64], first: int, last: int, found: NDArray[np.int32]) -> int:
    """Write the elements of words first..last of a set to `found`; how many they are.

    Two places are written for every word whatever it holds, and those too many are written over: a branch for each word
    is foretold wrongly every other time where half the words are 0, and took most of the time.
    """
    count = 0
    for at in range(first, last):
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
def _transpose(sets: NDArray[np.uint64], holders: NDArray[np.uint64], first: int, last: int) -> None:
    """Set bit i % 64 of holders[e, i // 64] for every element e of set i within words first..last."""
    found = np.empty((last - first) * 64 + SPARE, dtype=np.int32)
    for i in range(sets.shape[0]):
        part, bit = np.uint64(i // 64), np.uint64(1) << np.uint64(i % 64)
        for k in range(_elements(sets[i], first, last, found)):
            holders[np.uint64(found[k]), part] |= bit


@compiled
def _count(
    holders: NDArray[np.uint64], sets: NDArray[np.uint64], shared: NDArray[np.int64], first: int, last: int
) -> None:
    """shared[j, i] += elements of sets[j] that set i of the block holds, for j in first..last; by tiles of words."""
    lanes = np.zeros((holders.shape[1], LANES), dtype=np.uint8)
    found = np.empty(TILE_WORDS * 64 + SPARE, dtype=np.int32)
    for begin in range(0, sets.shape[1], TILE_WORDS):
        for j in range(first, last):
            count = _elements(sets[j], begin, min(begin + TILE_WORDS, sets.shape[1]), found)
            for start in range(0, count, BATCH):
                _add_batch(holders, found[start : min(start + BATCH, count)], lanes, shared[j])


@compiled
def _add_batch(
    holders: NDArray[np.uint64], batch: NDArray[np.int32], lanes: NDArray[np.uint8], totals: NDArray[np.int64]
) -> None:
    """totals[i] += elements of the batch that set i holds; lanes are byte counters, 0 before and after."""
    fours = len(batch) // 4 * 4
    nothing = np.uint64(0)
    for k in range(0, fours, 4):
        a, b = np.uint64(batch[k]), np.uint64(batch[k + 1])
        c, d = np.uint64(batch[k + 2]), np.uint64(batch[k + 3])
        for part in range(np.uint64(holders.shape[1])):
            _add_lanes(lanes, part, holders[a, part], holders[b, part], holders[c, part], holders[d, part])
    for k in range(fours, len(batch)):
        for part in range(np.uint64(holders.shape[1])):
            _add_lanes(lanes, part, holders[np.uint64(batch[k]), part], nothing, nothing, nothing)
    counters = lanes.reshape(-1)
    for i in range(totals.shape[0]):
        totals[i] += counters[i]
    lanes[:] = 0


def transpose_sets(sets: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Which sets hold each element.

    Args:
        sets: uint64 (set, word), one bit an element.

    Returns:
        uint64 (64 × word, ⌈set / 64⌉): bit i % 64 of [e, i // 64] says whether set i holds element e.
    """
    holders = np.zeros((64 * sets.shape[1], -(-len(sets) // 64)), dtype=np.uint64)
    parallel_for(lambda first, last: _transpose(sets, holders, first, last), sets.shape[1], TILE_WORDS)
    return holders


def sparse_intersection_sizes(holders: NDArray[np.uint64], count: int, sets: NDArray[np.uint64]) -> NDArray[np.int64]:
    """How many elements each set of a block shares with each of other sets.

    Args:
        holders: the block as `transpose_sets` gives it. count: a, its sets.
        sets: uint64 (b, word), the others.

    Returns:
        int64 (a, b), as `neurons.intersection_sizes`.
    """
    if holders.shape != (64 * sets.shape[1], -(-count // 64)):
        raise ValueError(f"sets of {sets.shape[1]} words cannot be compared with {count} in {holders.shape}")
    shared = np.zeros((len(sets), count), dtype=np.int64)
    step = max(1, -(-len(sets) // cores()))
    parallel_for(lambda first, last: _count(holders, sets, shared, first, last), len(sets), step)
    return shared.T


def is_sparse(elements: int, shape: tuple[int, int]) -> bool:
    """Whether sets of (set, word) with so many elements in all are better compared by elements than by words."""
    return elements < DENSE_FROM * 64 * shape[0] * shape[1]


class BlockOfSets:
    """Sets, uint64 (a, word), that are compared with blocks of others."""

    def __init__(self, sets: NDArray[np.uint64], sparse: bool) -> None:
        self._sets = sets
        self._holders = transpose_sets(sets) if sparse else None

    def shared_with(self, others: NDArray[np.uint64] | None) -> NDArray[np.int64]:
        """Elements that each set shares with each of others: int64 (a, b). others: uint64 (b, word); None: the sets
        themselves, of which only pairs of a set with itself or a later one are wanted; what is not is 0 or right."""
        right = self._sets if others is None else others
        if self._holders is None:
            return intersection_sizes(self._sets, right, later_only=others is None)
        return sparse_intersection_sizes(self._holders, len(self._sets), right)
