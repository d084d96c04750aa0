"""`state` is the commit: it is written last, and everything that it promises is already on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparcom_data import create, storage
from sparcom_data.archive import open_archive
from sparcom_data.commit import ArchiveCommitter, CompletedInstruction
from sparcom_data.create import InstructionColumns, create_archive
from sparcom_data.errors import StorageError
from sparcom_data.schema.layout import Layout, plan_layout
from sparcom_data.schema.metadata import Positions
from sparcom_data.testing import random_attributes

Columns = Callable[..., InstructionColumns]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Archive with chunks so small that every batch crosses their boundaries."""
    monkeypatch.setattr(create, "TOKEN_CHUNK", 8)
    monkeypatch.setattr(create, "INSTRUCTION_CHUNK", 3)
    monkeypatch.setattr(create, "STRING_CHUNK", 2)


def make(
    path: Path, columns: InstructionColumns, lengths: list[int], positions: Positions = "prompt", most: int = 0
) -> Layout:
    layout = plan_layout(lengths, positions, most)
    create_archive(path, random_attributes(1, 8, positions=positions, max_tokens=most), columns, layout)
    return layout


def item(layout: Layout, index: int, rows: int | None = None) -> CompletedInstruction:
    """Instruction `index`; the id in each row identifies its instruction."""
    rows = int(layout.capacity[index]) if rows is None else rows
    first = int(layout.first_position[index])
    positions = np.arange(first, first + rows, dtype=np.int32)
    return CompletedInstruction(
        index, int(layout.token_start[index]), 1000 * index + positions, positions, f"answer {index} ✓"
    )


def read(path: Path, name: str) -> Any:
    """Read values with plain zarr, bypassing any cache."""
    return zarr.open_array(path / name, mode="r")[:]


def test_states_are_written_last(tmp_path: Path, columns: Columns, small_chunks: None, writes: Any) -> None:
    """Every chunk of ids, positions, responses and lengths is durable before the first chunk of states."""
    layout = make(tmp_path / "a.zarr", columns(7), [5] * 7)
    committer = ArchiveCommitter(tmp_path / "a.zarr")
    writes.restart()
    committer.complete([item(layout, index) for index in range(7)])
    arrays = ["/".join(path.parts[-4:-2]) for path in writes.paths]
    others = {"token/id", "token/position", "instruction/response", "instruction/token_length"}
    states = arrays.count("instruction/state")
    assert states == 3
    assert arrays[-states:] == ["instruction/state"] * states
    assert set(arrays[:-states]) == others
    writes.restart()
    committer.fail({2: "broke"})
    assert [path.parts[-3] for path in writes.paths] == ["error", "state"], "the reason before the state"


def test_a_commit_that_fails_anywhere_promises_nothing_false(
    tmp_path: Path, columns: Columns, small_chunks: None, writes: Any
) -> None:
    """Whichever write fails, state 1 has all its values, earlier commits remain, and a retry completes the batch."""
    lengths = [3, 4, 5, 6, 2, 7]
    for step in range(99):
        path = tmp_path / f"{step}.zarr"
        writes.restart()
        layout = make(path, columns(6), lengths)
        committer = ArchiveCommitter(path)
        committer.complete([item(layout, 1)])
        batch = [item(layout, index) for index in (0, 2, 3, 5)]
        writes.restart(fail_at=step)
        with contextlib.suppress(StorageError):
            committer.complete(batch)
        failed = len(writes.paths) > step
        writes.restart()
        check_promises(path, layout)
        assert read(path, "instruction/state")[1] == 1
        if not failed:
            np.testing.assert_array_equal(read(path, "instruction/state"), [1, 1, 1, 1, 0, 1])
            break
        assert (read(path, "instruction/state") == 1).sum() < 5, "the commit raised an error"
        ArchiveCommitter(path).complete(batch)
        check_promises(path, layout)
        np.testing.assert_array_equal(read(path, "instruction/state"), [1, 1, 1, 1, 0, 1])
    assert 10 < step < 60, "every write fails once"


def test_late_chunks_of_a_failed_commit_do_not_overwrite_the_next(
    tmp_path: Path, columns: Columns, small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One chunk of a block fails while another is slow; then the block is committed again with other values."""
    path = tmp_path / "a.zarr"
    layout = make(path, columns(1), [40])
    committer, real, slow = ArchiveCommitter(path), storage.write_durably, [True]

    def write(to: Path, parts: Any) -> None:
        if slow and to.parts[-3:] == ("id", "c", "0"):
            raise StorageError("No space left on device")
        if slow and to.parts[-3:-1] == ("id", "c"):
            time.sleep(0.2)
        real(to, parts)

    monkeypatch.setattr(storage, "write_durably", write)
    wrong = dataclasses.replace(item(layout, 0), ids=np.full(40, -1, dtype=np.int32))
    with pytest.raises(StorageError, match="No space left on device"):
        committer.complete([wrong])
    slow.clear()
    committer.complete([item(layout, 0)])
    time.sleep(0.5)
    np.testing.assert_array_equal(read(path, "token/id"), np.arange(40))


def check_promises(path: Path, layout: Layout) -> None:
    """Assert that each instruction in state 1 has its length, ids, positions and response."""
    ids, positions = read(path, "token/id"), read(path, "token/position")
    lengths, responses = read(path, "instruction/token_length"), read(path, "instruction/response")
    for index in np.flatnonzero(read(path, "instruction/state") == 1):
        expected = item(layout, int(index))
        rows = slice(expected.row, expected.row + lengths[index])
        np.testing.assert_array_equal(ids[rows], expected.ids)
        np.testing.assert_array_equal(positions[rows], expected.positions)
        assert responses[index] == expected.response


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_batches_in_any_order_give_the_same_archive(
    tmp_path_factory: pytest.TempPathFactory, small_chunks: None, columns: Columns, data: st.DataObject
) -> None:
    """In any batching and order, each instruction gets its own values, and unwritten rows stay -1."""
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=9))
    order = data.draw(st.permutations(range(len(lengths))))[: data.draw(st.integers(1, len(lengths)))]
    path = tmp_path_factory.mktemp("order") / "a.zarr"
    layout = make(path, columns(len(lengths)), lengths, "all", 3)
    items = [item(layout, index, lengths[index] + data.draw(st.integers(0, 3))) for index in order]
    committer = ArchiveCommitter(path)
    ids, positions = np.full(layout.tokens, -1), np.full(layout.tokens, -1)
    done: list[int] = []
    while len(done) < len(items):
        batch = items[len(done) : len(done) + data.draw(st.integers(1, 4))]
        committer.complete(batch)
        for one in batch:
            rows = slice(one.row, one.row + len(one.ids))
            ids[rows], positions[rows] = one.ids, one.positions
            done.append(one.index)
        np.testing.assert_array_equal(np.flatnonzero(read(path, "instruction/state") == 1), sorted(done))
    np.testing.assert_array_equal(read(path, "token/id"), ids)
    np.testing.assert_array_equal(read(path, "token/position"), positions)


def test_a_batch_across_the_border_of_a_real_chunk(tmp_path: Path, columns: Columns) -> None:
    """A batch has rows on both sides of row 65,536, and instructions outside the batch lie between them."""
    lengths = [65_530, 3, 20, 70_000, 5]
    layout = make(tmp_path / "a.zarr", columns(5), lengths)
    committer = ArchiveCommitter(tmp_path / "a.zarr")
    committer.complete([item(layout, 1)])
    committer.complete([item(layout, 4), item(layout, 2)])
    expected = np.full(layout.tokens, -1)
    for index in (1, 2, 4):
        done = item(layout, index)
        expected[done.row : done.row + len(done.ids)] = done.ids
    np.testing.assert_array_equal(read(tmp_path / "a.zarr", "token/id"), expected)
    np.testing.assert_array_equal(read(tmp_path / "a.zarr", "instruction/state"), [0, 1, 1, 0, 1])


def test_instructions_without_a_row_are_not_damage(tmp_path: Path, columns: Columns) -> None:
    """One generated token has no row: lengths that are all 0 are stored, whereas plain zarr removes the chunk."""
    layout = make(tmp_path / "a.zarr", columns(2), [3, 4], "response", 1)
    committer = ArchiveCommitter(tmp_path / "a.zarr")
    committer.complete([item(layout, 0, 0), item(layout, 1, 0)])
    committer.close()
    table = open_archive(tmp_path / "a.zarr").instructions
    np.testing.assert_array_equal(table.token_length, [0, 0])
    np.testing.assert_array_equal(table.complete, [0, 1])


def test_failed_and_cancelled_keep_their_reasons(tmp_path: Path, columns: Columns) -> None:
    """`fail` and `cancel` change only the instructions they name; an empty call writes nothing."""
    layout = make(tmp_path / "a.zarr", columns(6), [2] * 6)
    committer = ArchiveCommitter(tmp_path / "a.zarr")
    committer.complete([item(layout, 2)])
    committer.fail({1: "zu groß", 4: "engine: 落ちた"})
    committer.cancel([5, 3])
    committer.complete([])
    committer.fail({})
    committer.cancel([])
    np.testing.assert_array_equal(read(tmp_path / "a.zarr", "instruction/state"), [0, 2, 1, 3, 2, 3])
    assert list(read(tmp_path / "a.zarr", "instruction/error")) == ["", "zu groß", "", "", "engine: 落ちた", ""]
    np.testing.assert_array_equal(read(tmp_path / "a.zarr", "instruction/token_length"), [0, 0, 2, 0, 0, 0])


def test_closing_changes_only_the_state(tmp_path: Path, columns: Columns) -> None:
    """Closing changes `state` in the root's metadata and adds facts about the engine; a reader that holds the archive
    open goes on, and readers that cannot list still find every array."""
    make(tmp_path / "a.zarr", columns(2), [2, 3])
    before = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())
    reader = open_archive(tmp_path / "a.zarr")
    assert reader.attributes.state == "open"
    ArchiveCommitter(tmp_path / "a.zarr").close(read_backs=3)
    reader.require_same()
    after = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())
    assert open_archive(tmp_path / "a.zarr").attributes.state == "complete"
    assert len(after["consolidated_metadata"]["metadata"]) >= 13
    before["attributes"]["sparcom"]["state"] = "complete"
    before["attributes"]["sparcom"]["engine"]["read_backs"] = 3
    assert after == before
    zarr.open_consolidated(tmp_path / "a.zarr")


def test_a_failing_close_is_an_error(tmp_path: Path, columns: Columns, writes: Any) -> None:
    """If the archive's state cannot be written, the archive stays open and the caller gets the error."""
    make(tmp_path / "a.zarr", columns(1), [2])
    committer = ArchiveCommitter(tmp_path / "a.zarr")
    writes.restart(fail_at=0)
    with pytest.raises(StorageError, match="No space left"):
        committer.close()
    assert open_archive(tmp_path / "a.zarr").attributes.state == "open"


@pytest.mark.parametrize("name", ["instruction/state", "token/id", "zarr.json"])
def test_an_archive_that_is_being_removed_is_an_error(tmp_path: Path, columns: Columns, name: str) -> None:
    """A removal takes the files one by one. Whichever is gone first, the next commit tells that it was removed."""
    layout = make(tmp_path / "a.zarr", columns(3), [2, 2, 2])
    committer = ArchiveCommitter(tmp_path / "a.zarr")
    gone = tmp_path / "a.zarr" / name
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(StorageError, match="was removed"):
        committer.complete([item(layout, 0)])
    assert not gone.exists()
