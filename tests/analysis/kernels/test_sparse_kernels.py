"""Intersections of sparse sets against numpy and against the loop over all words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparcom_analysis.kernels import neurons as kernels
from sparcom_analysis.kernels import sparse as sparse_kernels
from sparcom_analysis.kernels.sparse import MOST_ROWS, sparse_intersection_sizes
from sparcom_analysis.measures import intersections, pairs
from sparcom_analysis.measures.selection import instruction_specific_neurons
from sparcom_analysis.measures.sets import PackedSets
from sparcom_analysis.measures.similarity import jaccard_blocks
from sparcom_data.archive import open_archive
from sparcom_data.testing import write_random_archive


def packed(rng: np.random.Generator, sets: int, words: int, rate: float) -> NDArray[np.uint64]:
    """Random sets: uint64 (set, word), each element in a set with probability `rate`."""
    bits = rng.random((sets, words * 64)) < rate
    return np.packbits(bits, axis=1, bitorder="little").view(np.uint64)


@settings(deadline=None, max_examples=60)
@given(
    left=st.sampled_from([1, 2, 63, 64, 65, 130, 512]),
    right=st.sampled_from([0, 1, 15, 17, 40]),
    words=st.sampled_from([1, 5, 127, 128, 129, 513]),
    rate=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    seed=st.integers(0, 9),
)
def test_sparse_intersections_equal_those_of_all_words(
    left: int, right: int, words: int, rate: float, seed: int
) -> None:
    """Every pair has the number that the loop over all words finds, past 64 sets and tile borders."""
    rng = np.random.default_rng(seed)
    one, other = packed(rng, left, words, rate), packed(rng, right, words, rate)
    found = sparse_intersection_sizes(one, other)
    assert found.shape == (left, right)
    assert (found == kernels.intersection_sizes(one, other)).all()


@settings(deadline=None, max_examples=40)
@given(sets=st.sampled_from([1, 3, 64, 70]), words=st.integers(1, 9), rate=st.floats(0, 1), seed=st.integers(0, 9))
def test_sparse_intersections_equal_those_of_python_sets(sets: int, words: int, rate: float, seed: int) -> None:
    """Every pair has as many elements in common as the Python sets of their elements."""
    block = packed(np.random.default_rng(seed), sets, words, rate)
    bits = np.unpackbits(block.view(np.uint8), axis=1, bitorder="little")
    elements = [set(np.flatnonzero(row).tolist()) for row in bits]
    expected = [[len(a & b) for b in elements] for a in elements]
    assert sparse_intersection_sizes(block, block).tolist() == expected


def test_sparse_intersections_are_the_same_on_one_core_and_on_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splitting sets and words over threads changes nothing."""
    block = packed(np.random.default_rng(0), 100, 1500, 0.05)
    results = []
    for cores in (1, 2, 7):
        monkeypatch.setattr(kernels, "cores", lambda cores=cores: cores)
        monkeypatch.setattr(sparse_kernels, "cores", lambda cores=cores: cores)
        results.append(sparse_intersection_sizes(block, block))
    assert (results[0] == results[1]).all()
    assert (results[0] == results[2]).all()
    assert (results[0] == kernels.intersection_sizes(block, block)).all()


def test_sparse_intersections_refuse_what_they_would_read_past() -> None:
    """Compiled code does not check bounds, so its caller must."""
    for block, others in (((3, 4), (2, 5)), ((MOST_ROWS + 1, 4), (2, 4))):
        with pytest.raises(ValueError, match="up to 512 sets and others must be equally wide"):
            sparse_intersection_sizes(np.zeros(block, np.uint64), np.zeros(others, np.uint64))


@pytest.mark.parametrize("most_bytes", [0, intersections.MOST_BYTES])
@pytest.mark.parametrize("limit", [0.0, 1.1])
def test_blocks_of_pairs_are_those_of_all_words(limit: float, most_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either way, and however many sets are compared at once, every pair of a set and a later one is right."""
    monkeypatch.setattr(sparse_kernels, "DENSE_FROM", limit)
    monkeypatch.setattr(intersections, "MOST_BYTES", most_bytes)
    monkeypatch.setattr(pairs, "PAIRED", 48)
    words = packed(np.random.default_rng(3), 1100, 20, 0.1)
    sets = PackedSets(*words.shape)
    for k, row in enumerate(words):
        sets[k] = row
    expected, found = kernels.intersection_sizes(words, words), np.zeros((1100, 1100), dtype=np.int64)
    order = []
    for rows, columns, shared in intersections.shared_blocks(sets, int(np.bitwise_count(words).sum())):
        found[rows, columns] = shared
        order.append((rows, columns))
    assert order == list(pairs.pair_blocks(1100))
    assert (np.triu(found) == np.triu(expected)).all()


def test_similarities_have_the_same_bits_either_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How pairs are counted changes no bit of a Jaccard index, over several blocks of instructions."""
    write_random_archive(tmp_path / "a.zarr", per_category=70, neurons=200)
    neurons = instruction_specific_neurons(open_archive(tmp_path / "a.zarr"), epsilon=0.02)
    found = []
    for limit in (0.0, 1.1):
        monkeypatch.setattr(sparse_kernels, "DENSE_FROM", limit)
        assert sparse_kernels.is_sparse(int(neurons.sizes.sum()), neurons.sets.shape) == (limit > 0)
        found.append([np.triu(block).tobytes() for _, _, block in jaccard_blocks(neurons)])
    assert found[0] == found[1]
    assert len(found[0]) == 3
