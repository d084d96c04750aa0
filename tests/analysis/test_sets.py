"""Packed sets in memory and in a file without a name."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparcom_analysis.measures.sets import PackedSets
from sparcom_data.errors import StorageError


@settings(deadline=None, max_examples=30)
@given(
    count=st.integers(1, 20), words=st.integers(1, 9), memory_bytes=st.sampled_from([0, 200, 1 << 20]), data=st.data()
)
def test_rows_are_what_was_written(count: int, words: int, memory_bytes: int, data: st.DataObject) -> None:
    """In any order, in memory or in a file, what was not written is empty."""
    expected = np.zeros((count, words), dtype=np.uint64)
    sets = PackedSets(count, words, memory_bytes=memory_bytes)
    rng = np.random.default_rng(0)
    for k in data.draw(st.lists(st.integers(0, count - 1))):
        sets[k] = expected[k] = rng.integers(0, 2**64, size=words, dtype=np.uint64)
    first = data.draw(st.integers(0, count))
    last = data.draw(st.integers(first, count))
    assert (sets.rows(first, last) == expected[first:last]).all()
    assert (len(sets), sets.shape) == (count, (count, words))


def descriptors() -> set[str]:
    """Files that this process has open, but for the one that lists them."""
    return {str(path.resolve()) + path.name for path in Path("/proc/self/fd").iterdir() if path.exists()}


def test_the_file_has_no_name_and_is_closed(tmp_path: Path) -> None:
    """Nothing is left in the folder while the sets are in use, and no descriptor after them."""
    before = descriptors()
    sets = PackedSets(3, 5, tmp_path, memory_bytes=0)
    sets[1] = np.full(5, 7, dtype=np.uint64)
    assert list(tmp_path.iterdir()) == []
    assert (sets.rows(0, 3).sum(), len(descriptors() - before)) == (35, 1)
    del sets
    gc.collect()
    assert descriptors() <= before


def test_wrong_places_are_refused(tmp_path: Path) -> None:
    """A set of another width, a set that is not there, rows past the end."""
    sets = PackedSets(3, 5, tmp_path, memory_bytes=0)
    for k, width in ((0, 4), (3, 5), (-1, 5)):
        with pytest.raises(ValueError, match="must be uint64"):
            sets[k] = np.zeros(width, dtype=np.uint64)
    for first, last in ((0, 4), (2, 1), (-1, 2)):
        with pytest.raises(IndexError, match="are not within 3"):
            sets.rows(first, last)


def test_a_file_that_cannot_be_made_says_where(tmp_path: Path) -> None:
    """A folder that is not there is named, with what to do."""
    with pytest.raises(StorageError, match=r"need a file in .*none.*Set TMPDIR"):
        PackedSets(3, 5, tmp_path / "none", memory_bytes=0)
