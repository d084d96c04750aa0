"""Packed sets in memory and in an unnamed file."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import pickle
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparcom_analysis.kernels.bitsets import Bitsets
from sparcom_data.errors import StorageError


@settings(deadline=None, max_examples=30)
@given(
    count=st.integers(1, 20), words=st.integers(1, 9), memory_bytes=st.sampled_from([0, 200, 1 << 20]), data=st.data()
)
def test_rows_are_what_was_written(count: int, words: int, memory_bytes: int, data: st.DataObject) -> None:
    """Rows are read in any order, from memory or a file; unwritten rows are empty."""
    expected = np.zeros((count, words), dtype=np.uint64)
    sets = Bitsets(count, words, memory_bytes=memory_bytes)
    rng = np.random.default_rng(0)
    for k in data.draw(st.lists(st.integers(0, count - 1))):
        sets[k] = expected[k] = rng.integers(0, 2**64, size=words, dtype=np.uint64)
    first = data.draw(st.integers(0, count))
    last = data.draw(st.integers(first, count))
    assert (sets.rows(first, last) == expected[first:last]).all()
    assert (len(sets), sets.shape) == (count, (count, words))


def descriptors() -> set[str]:
    """Return the open files of this process, without the listing itself."""
    return {str(path.resolve()) + path.name for path in Path("/proc/self/fd").iterdir() if path.exists()}


def test_the_file_has_no_name_and_is_closed(tmp_path: Path) -> None:
    """The folder stays empty while the sets are in use; the descriptor is closed after use."""
    before = descriptors()
    sets = Bitsets(3, 5, tmp_path, memory_bytes=0)
    sets[1] = np.full(5, 7, dtype=np.uint64)
    assert list(tmp_path.iterdir()) == []
    assert (sets.rows(0, 3).sum(), len(descriptors() - before)) == (35, 1)
    del sets
    gc.collect()
    assert descriptors() <= before


def test_invalid_rows_are_refused(tmp_path: Path) -> None:
    """Sets of another width, missing sets, and rows past the end raise errors."""
    sets = Bitsets(3, 5, tmp_path, memory_bytes=0)
    for k, width in ((0, 4), (3, 5), (-1, 5)):
        with pytest.raises(ValueError, match="must be uint64"):
            sets[k] = np.zeros(width, dtype=np.uint64)
    for first, last in ((0, 4), (2, 1), (-1, 2)):
        with pytest.raises(IndexError, match="are not within 3"):
            sets.rows(first, last)


def test_the_error_names_the_folder(tmp_path: Path) -> None:
    """The error names the missing folder and the remedy."""
    with pytest.raises(StorageError, match=r"need a file in .*none.*Set TMPDIR"):
        Bitsets(3, 5, tmp_path / "none", memory_bytes=0)


COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),  # noqa: S301
    "pickle 2": lambda value: pickle.loads(pickle.dumps(value, protocol=2)),  # noqa: S301
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


def filled(folder: Path, memory_bytes: int) -> Bitsets:
    """Return three sets of five words: the numbers 0 to 14."""
    sets = Bitsets(3, 5, folder, memory_bytes)
    for k in range(3):
        sets[k] = np.arange(5 * k, 5 * k + 5, dtype=np.uint64)
    return sets


@pytest.mark.parametrize("method", COPIES)
def test_sets_in_a_file_refuse_copies_and_name_the_remedy(tmp_path: Path, method: str) -> None:
    """A copy would hold a descriptor number that may later belong to another file."""
    sets = filled(tmp_path, 0)
    with pytest.raises(TypeError, match=r"pickled or copied only up to 8 MiB; .* rows\(first, last\)"):
        COPIES[method](sets)
    assert sets.rows(0, 3).ravel().tolist() == list(range(15))


@pytest.mark.parametrize("method", COPIES)
def test_sets_in_memory_may_be_copied(tmp_path: Path, method: str) -> None:
    """In memory a copy has the same sets."""
    assert COPIES[method](filled(tmp_path, 1 << 20)).rows(0, 3).ravel().tolist() == list(range(15))


def _send_rows(sets: Bitsets, pipe: Connection) -> None:
    pipe.send(sets.rows(0, 3).ravel().tolist())


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # from Python 3.12 on, where there are threads
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_reads_the_same_sets_or_none(tmp_path: Path, method: str) -> None:
    """A forked process inherits the descriptor and reads the same file; a spawned one does not, and is refused."""
    context, sets = multiprocessing.get_context(method), filled(tmp_path, 0)
    ours, theirs = context.Pipe()
    child = context.Process(target=_send_rows, args=(sets, theirs))
    if method == "spawn":
        with pytest.raises(TypeError, match="pickled or copied"):
            child.start()
        return
    child.start()
    assert ours.recv() == list(range(15))
    child.join()
    assert child.exitcode == 0
