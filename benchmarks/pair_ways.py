"""Ways to compare all pairs of sets: ours, and those that others would write, each giving intersections of pairs.

    ours      `sparcom_analysis.jaccard_blocks`, over all cores, with the indices
    numpy     packed sets, AND and bitwise_count, a row with all later ones; or a product of rows of float32
    scipy     a product of sparse matrices, one row a set
    numba     the plain loop over pairs and words, compiled, one thread
    python    sets of integers, on some pairs, scaled

Every way gives the sum of all intersections of pairs i ≤ j, so that a wrong one is seen.
"""

from __future__ import annotations

import time
from typing import Any, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.sparse import csr_array

from sparcom_analysis.measures.selection import InstructionNeurons
from sparcom_analysis.measures.sets import PackedSets
from sparcom_analysis.measures.similarity import jaccard_blocks

SETS = 1200
ELEMENTS = 32 * 11_008  # neurons of LLaMA-2-7B
SHARE = 0.01
CATEGORIES = 6
PYTHON_PAIRS = 1000
FLOAT_COLUMNS = 16_384  # elements unpacked at once for the product: 75 MiB

Words = NDArray[np.uint64]


class Sets:
    """What `jaccard_blocks` reads of instructions' sets."""

    def __init__(self, words: Words) -> None:
        self.sets = PackedSets(*words.shape, memory_bytes=words.nbytes)
        for k, row in enumerate(words):
            self.sets[k] = row
        self.sizes = np.bitwise_count(words).sum(axis=1).astype(np.int64)

    def __len__(self) -> int:
        return len(self.sets)


def random_sets(overlapping: bool) -> Words:
    """uint64 (1,200, word): 1 % of the neurons each; independent ones, or half from what
    their category uses and half from what all use."""
    rng = np.random.default_rng(0)
    wanted = round(SHARE * ELEMENTS)
    groups = np.array([rng.permutation(ELEMENTS)[:wanted] for _ in range(CATEGORIES + 1)])  # the last: of all
    words = np.zeros((SETS, ELEMENTS // 64), dtype=np.uint64)
    for k in range(SETS):
        pool = np.union1d(groups[k % CATEGORIES], groups[-1]) if overlapping else np.arange(ELEMENTS)
        mask = np.zeros(ELEMENTS, dtype=np.uint8)
        mask[rng.choice(pool, wanted, replace=False)] = 1
        words[k] = np.packbits(mask, bitorder="little").view(np.uint64)
    return words


def ours(words: Words) -> tuple[float, int]:
    """Seconds for the Jaccard index of every pair, and the sum of all intersections."""
    sets = Sets(words)
    begin = time.perf_counter()
    blocks = list(jaccard_blocks(cast(InstructionNeurons, sets)))
    seconds = time.perf_counter() - begin
    total = 0
    for rows, columns, block in blocks:
        shared = block / (1 + block) * (sets.sizes[rows, None] + sets.sizes[None, columns])  # of J = s / (a + b - s)
        total += int(np.rint(np.triu(shared) if rows == columns else shared).sum())
    return seconds, total


def numpy_bits(words: Words) -> tuple[float, int]:
    begin = time.perf_counter()
    total = sum(int(np.bitwise_count(words[k] & words[k:]).sum(axis=1, dtype=np.int64).sum()) for k in range(SETS))
    return time.perf_counter() - begin, total


def numpy_product(words: Words) -> tuple[float, int]:
    begin = time.perf_counter()
    shared = np.zeros((SETS, SETS), dtype=np.float32)  # whole numbers below 2^24 are exact
    packed = words.view(np.uint8)
    for first in range(0, ELEMENTS, FLOAT_COLUMNS):
        part = packed[:, first // 8 : (first + FLOAT_COLUMNS) // 8]
        rows = np.unpackbits(part, axis=1, bitorder="little").astype(np.float32)
        shared += rows @ rows.T
    seconds = time.perf_counter() - begin
    return seconds, int(np.triu(shared).sum(dtype=np.float64))


def scipy_product(words: Words) -> tuple[float, int]:
    begin = time.perf_counter()
    bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
    rows, columns = np.nonzero(bits)
    sets = csr_array((np.ones(len(rows), dtype=np.int32), (rows, columns)), shape=bits.shape)
    shared = (sets @ sets.T).toarray()
    seconds = time.perf_counter() - begin
    return seconds, int(np.triu(shared).sum(dtype=np.int64))


@njit(cache=True)  # type: ignore[untyped-decorator]
def _popcount(word: Any) -> Any:
    word -= (word >> np.uint64(1)) & np.uint64(0x5555555555555555)
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (word * np.uint64(0x0101010101010101)) >> np.uint64(56)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _plain_loop(words: Any, shared: Any) -> None:
    for i in range(words.shape[0]):
        for j in range(i, words.shape[0]):
            total = np.uint64(0)
            for k in range(words.shape[1]):
                total += _popcount(words[i, k] & words[j, k])
            shared[i, j] = total


def numba_loop(words: Words) -> tuple[float, int]:
    shared = np.zeros((SETS, SETS), dtype=np.int64)
    _plain_loop(words[:2, :8], shared)
    begin = time.perf_counter()
    _plain_loop(words, shared)
    return time.perf_counter() - begin, int(shared.sum())


def python_sets(words: Words) -> tuple[float, int]:
    """Seconds for all pairs, from those of a sample; the sum is not that of all."""
    bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
    sets = [set(np.flatnonzero(row).tolist()) for row in bits]
    pairs = np.random.default_rng(1).integers(0, SETS, (PYTHON_PAIRS, 2)).tolist()
    begin = time.perf_counter()
    for i, j in pairs:
        shared = len(sets[i] & sets[j])
        shared / (len(sets[i]) + len(sets[j]) - shared)
    seconds = time.perf_counter() - begin
    return seconds / PYTHON_PAIRS * (SETS * (SETS + 1) // 2), -1


WAYS = {
    "ours": ours,
    "numpy, bits": numpy_bits,
    "numpy, float32 product": numpy_product,
    "scipy, sparse product": scipy_product,
    "numba, plain loop": numba_loop,
    "python sets": python_sets,
}
