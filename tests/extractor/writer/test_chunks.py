"""Rows in any order, in any pieces and repeated, end up correctly on disk, in whole chunks."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparcom_data.errors import StorageError
from sparcom_data.storage import write_durably
from sparcom_data.storage.encoding import CRC_BYTES
from sparcom_extractor.writer.chunks import IN_FLIGHT, ChunkWriter, buffers_for
from sparcom_extractor.writer.targets import ChunkTarget

ROW = (2, 3)  # layers, bytes
Delivery = tuple[int, int, int, list[tuple[int, int]]]


def random_rows(rows: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return rows that are never all zero."""
    return np.random.default_rng(seed).integers(1, 256, size=(rows, *ROW), dtype=np.uint8)


@st.composite
def deliveries(draw: st.DrawFn) -> Delivery:
    """Draw (rows, chunk rows, buffers, pieces [start, stop) that cover every row, some twice, in any order)."""
    rows = draw(st.integers(1, 24))
    cuts = sorted({0, rows, *draw(st.lists(st.integers(0, rows), max_size=8))})
    pieces = list(pairwise(cuts))
    again = draw(st.lists(st.sampled_from(pieces), max_size=4))
    return rows, draw(st.integers(1, rows)), draw(st.integers(1, 4)), draw(st.permutations(pieces + again))


@settings(max_examples=120, deadline=None)
@given(delivery=deliveries(), data=st.data())
def test_any_order_of_delivery_gives_the_truth(
    new_target: Any, writing: Any, read_array: Any, delivery: Delivery, data: st.DataObject
) -> None:
    """Random pieces, repeats and orders, one buffer or several: plain zarr reads exactly the rows written."""
    rows, chunk_rows, buffers, pieces = delivery
    truth = random_rows(rows)
    left = {piece: pieces.count(piece) for piece in pieces}
    waiting: list[tuple[int, int]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        writing(target := new_target(Path(folder), rows, chunk_rows), buffers=buffers) as writer,
    ):
        for piece in pieces:
            writer.write_from(piece[0], truth[slice(*piece)])
            left[piece] -= 1
            if not left[piece]:
                waiting.append(piece)
            while waiting and data.draw(st.booleans()):
                writer.mark_final(*waiting.pop(data.draw(st.integers(0, len(waiting) - 1))))
            assert_durable_is_true(writer, target, truth)
        for piece in waiting:
            writer.mark_final(*piece)
        wait_until_durable(writer, 0, rows)
        assert np.array_equal(read_array(target), truth)


def assert_durable_is_true(writer: ChunkWriter, target: ChunkTarget, truth: NDArray[np.uint8]) -> None:
    """Check that every chunk reported durable is in its file, whole and right."""
    for start in range(0, target.rows, target.chunk_shape[0]):
        stop = min(start + target.chunk_shape[0], target.rows)
        if writer.is_durable(start, stop):
            held = target.read_chunk(start // target.chunk_shape[0])
            assert np.array_equal(held[: stop - start], truth[start:stop])


def wait_until_durable(writer: ChunkWriter, start: int, stop: int) -> None:
    for _ in range(2000):
        if writer.is_durable(start, stop):
            return
        time.sleep(0.001)
    raise AssertionError("never durable")


class Disk:
    """Writes files and records them.

    gate: if set, each write waits for a permit.
    """

    def __init__(self, *, gated: bool = False) -> None:
        self.gate = threading.Semaphore(0) if gated else None
        self.paths: list[Path] = []
        self.addresses: set[int] = set()

    def write(self, path: Path, parts: Any) -> None:
        assert self.gate is None or self.gate.acquire(timeout=30)
        self.paths.append(path)
        self.addresses.add(np.frombuffer(parts[0], dtype=np.uint8).ctypes.data)
        write_durably(path, parts)

    def permit(self, writes: int, after: float) -> None:
        assert self.gate is not None
        threading.Timer(after, self.gate.release, args=(writes,)).start()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the chunks that were read back, in order."""
    found: list[int] = []
    read = ChunkTarget.read_chunk
    monkeypatch.setattr(ChunkTarget, "read_chunk", lambda self, chunk: found.append(chunk) or read(self, chunk))
    return found


def test_a_final_chunk_is_written_before_the_rest(new_target: Any, writing: Any, tmp_path: Path) -> None:
    """The last final row of a chunk writes it; a neighboring chunk with a missing row stays in memory."""
    target, truth = new_target(tmp_path, 8, 4), random_rows(8)
    with writing(target) as writer:
        writer.write_from(0, truth[:3])  # the fourth row never arrives
        writer.write_from(4, truth[4:7])
        writer.mark_final(0, 7)
        wait_until_durable(writer, 0, 4)
        assert target.path(0).exists()
        assert not target.path(1).exists()
        assert not writer.is_durable(4, 5)
        writer.mark_final(7, 8)
        wait_until_durable(writer, 0, 8)


def test_a_full_chunk_is_written_before_it_is_final(new_target: Any, writing: Any, tmp_path: Path) -> None:
    """It is durable only once it is final. If its rows come again, it is written once more when it is final."""
    disk, target, truth = Disk(), new_target(tmp_path, 8, 4), random_rows(8)
    with writing(target, write=disk.write) as writer:
        writer.write_from(0, truth[:3])
        assert disk.paths == []
        writer.write_from(3, truth[3:5])
        wait_for(lambda: disk.paths == [target.path(0)])
        assert not writer.is_durable(0, 4)
        writer.write_from(0, truth[:4])  # recomputed after a preemption
        writer.write_from(0, truth[:2])
        writer.write_from(5, truth[5:])
        writer.mark_final(0, 8)
        wait_until_durable(writer, 0, 8)
    assert sorted(disk.paths) == [target.path(0), target.path(0), target.path(1)]
    assert np.array_equal(target.read_chunk(0), truth[:4])


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_the_last_chunk_may_be_shorter(new_target: Any, writing: Any, read_array: Any, tmp_path: Path) -> None:
    """If the token axis is not divisible by the chunk, the last chunk is final with the rows that it has."""
    target, truth = new_target(tmp_path, 5, 4), random_rows(5)
    with writing(target) as writer:
        writer.write_from(4, truth[4:])
        writer.mark_final(4, 5)
        wait_until_durable(writer, 4, 5)
        assert target.path(1).stat().st_size == target.chunk_bytes + CRC_BYTES
        assert np.array_equal(read_array(target)[4], truth[4])


def test_an_old_open_chunk_makes_room_and_is_read_back(
    new_target: Any, writing: Any, read_array: Any, tmp_path: Path, reads: list[int]
) -> None:
    """If every buffer is in use and nothing is final, the oldest chunk is written as it is; later rows are added to
    it.
    """
    target, truth = new_target(tmp_path, 12, 4), random_rows(12)
    with writing(target, buffers=2) as writer:
        for row in (0, 4, 8):  # three chunks, two buffers
            writer.write_from(row, truth[row : row + 2])
        assert target.path(0).exists(), "the oldest chunk is not on disk"
        assert not writer.is_durable(0, 1), "an unfinished chunk is not durable"
        for row in (2, 6, 10):
            writer.write_from(row, truth[row : row + 2])
        assert 0 in reads
        writer.flush_chunks()
        assert np.array_equal(read_array(target), truth)


def test_buffers_are_bounded(new_target: Any, writing: Any, read_array: Any, tmp_path: Path) -> None:
    """Any number of open chunks is written from the three initial buffers, and no row is lost."""
    disk, target, truth = Disk(), new_target(tmp_path, 60, 2), random_rows(60)
    with writing(target, buffers=3, write=disk.write) as writer:
        for row in [*range(0, 60, 2), *range(1, 60, 2)]:
            writer.write_from(row, truth[row : row + 1])
        writer.flush_chunks()
    assert len(disk.paths) >= 30
    assert len(disk.addresses) == 3
    assert np.array_equal(read_array(target), truth)


def test_rows_that_were_not_written_are_zero(new_target: Any, writing: Any, read_array: Any, tmp_path: Path) -> None:
    """A buffer that held another chunk's rows is cleared before it is used again."""
    target = new_target(tmp_path, 4, 2)
    with writing(target, buffers=1) as writer:
        writer.write_from(0, random_rows(2))
        writer.mark_final(0, 2)
        writer.write_from(2, random_rows(1))
        writer.mark_final(2, 4)
        wait_until_durable(writer, 0, 4)
    assert not read_array(target)[3].any()


def test_a_failed_write_is_never_forgotten(new_target: Any, writing: Any, tmp_path: Path) -> None:
    """`is_durable` raises the write's error every time; the lost chunk is never durable."""

    def refuse(path: Path, parts: Any) -> None:
        raise StorageError("no space left")

    with writing(new_target(tmp_path, 4, 2), write=refuse) as writer:
        writer.write_from(0, random_rows(2))
        writer.mark_final(0, 2)
        for _ in range(3):
            with pytest.raises(StorageError, match="no space left"):
                wait_until_durable(writer, 0, 2)
        with pytest.raises(StorageError, match="no space left"):
            writer.write_from(2, random_rows(2))


def test_a_write_that_succeeds_hides_no_failure(new_target: Any, writing: Any, tmp_path: Path) -> None:
    """One of two writes fails and the other succeeds later; the lost chunk is still not durable."""
    target, fail, succeed = new_target(tmp_path, 4, 2), threading.Event(), threading.Event()

    def write(path: Path, parts: Any) -> None:
        if path == target.path(0):
            assert fail.wait(20)
            raise StorageError("no space left")
        assert succeed.wait(20)
        write_durably(path, parts)

    with writing(target, write=write) as writer:
        writer.write_from(0, random_rows(4))
        writer.mark_final(0, 4)
        fail.set()
        with pytest.raises(StorageError, match="no space left"):
            wait_until_durable(writer, 0, 2)
        succeed.set()
        with pytest.raises(StorageError, match="no space left"):
            writer.flush_chunks()
        with pytest.raises(StorageError, match="no space left"):
            writer.is_durable(0, 2)


def test_write_rows_waits_for_the_disk(new_target: Any, writing: Any, read_array: Any, tmp_path: Path) -> None:
    """While every buffer waits for a stalled disk, write_rows blocks; it returns once the disk moves."""
    disk, target, truth = Disk(gated=True), new_target(tmp_path, 6, 2), random_rows(6)
    with writing(target, buffers=2, threads=1, write=disk.write) as writer:
        for row in (0, 2):
            writer.write_from(row, truth[row : row + 2])
            writer.mark_final(row, row + 2)
        started = time.monotonic()
        disk.permit(3, after=0.2)
        writer.write_from(4, truth[4:])
        assert time.monotonic() - started > 0.1
        writer.flush_chunks()
        assert np.array_equal(read_array(target), truth)


def test_at_most_two_chunks_per_thread_are_in_flight(
    new_target: Any, writing: Any, read_array: Any, tmp_path: Path
) -> None:
    """A stalled disk takes no more memory than that, for any number of buffers."""
    disk, target, truth, started = Disk(gated=True), new_target(tmp_path, 40, 2), random_rows(40), list[int]()
    with writing(target, buffers=20, threads=2, write=disk.write) as writer:

        def write_all() -> None:
            for row in range(0, 40, 2):
                writer.write_from(row, truth[row : row + 2])
                writer.mark_final(row, row + 2)
                started.append(row)

        thread = threading.Thread(target=write_all)
        thread.start()
        wait_for(lambda: len(started) == 2 * IN_FLIGHT)
        time.sleep(0.1)
        assert len(started) == 2 * IN_FLIGHT, "one more chunk is full, and waits"
        disk.permit(20, after=0)
        thread.join()
        writer.flush_chunks()
        assert np.array_equal(read_array(target), truth)


def decode_load(writer: Any, requests: int, count: int, prompt: int, response: int) -> None:
    """Write `count` responses, `requests` at a time, as a server does: ended ones make room for new ones."""
    capacity = prompt + response - 1
    running: dict[int, int] = {}  # next row, per request
    begun = 0
    while running or begun < count:
        for number in [number for number, row in running.items() if row == capacity]:
            writer.mark_final(number * capacity, running.pop(number) + number * capacity)
        new = range(begun, min(count, begun + max(1, requests // response), begun + requests - len(running)))
        begun += len(new)
        rows = [number * capacity + row for number, row in running.items()]
        rows += [number * capacity + row for number in new for row in range(prompt)]
        running = {number: row + 1 for number, row in running.items()} | dict.fromkeys(new, prompt)
        numbers = np.array(rows, dtype=np.int64)
        writer.write_rows(numbers, np.full((len(rows), *writer._values.shape[2:]), 1, dtype=np.uint8))


LOADS = [(256, 512, 32, 192, 128), (32, 96, 32, 192, 128), (64, 192, 5, 11, 7), (1024, 1100, 32, 192, 128)]


@pytest.mark.parametrize(("requests", "count", "prompt", "response", "chunk_rows"), LOADS)
def test_no_chunk_is_read_back(
    writing: Any, tmp_path: Path, requests: int, count: int, prompt: int, response: int, chunk_rows: int
) -> None:
    """Responses that grow one row per step write each chunk once; the first load is the self-test's."""
    target = ChunkTarget(tmp_path, count * (prompt + response - 1), (chunk_rows, 1))
    written: list[Path] = []
    sizes: list[int] = []

    def write(path: Path, parts: Any) -> None:
        written.append(path)
        sizes.append(len(b"".join(parts)))

    buffers = buffers_for(requests, 8)
    with writing(target, buffers=buffers, threads=8, write=write) as writer:
        decode_load(writer, requests, count, prompt, response)
        writer.flush_chunks()
        assert writer.read_backs == 0
        assert writer.written_bytes == sum(sizes) > 0
    assert len(written) == len(set(written)) == -(-target.rows // chunk_rows)


def test_too_few_buffers_read_chunks_back(writing: Any, read_array: Any, new_target: Any, tmp_path: Path) -> None:
    """With one buffer per request, chunks with parts of two responses are written twice; they hold the right rows."""
    target = new_target(tmp_path, 20 * 15, 7)
    with writing(target, buffers=10, threads=1) as writer:
        decode_load(writer, 10, 20, 5, 11)
        writer.flush_chunks()
        assert writer.read_backs > 0
    assert (read_array(target) == 1).all()


@settings(max_examples=60, deadline=None)
@given(delivery=deliveries(), top=st.sampled_from([2, 300, 2**32]))
def test_counts_are_what_zarr_reads(
    new_target: Any, writing: Any, read_array: Any, delivery: Delivery, top: int
) -> None:
    """uint32 counts arrive in any order, with too few buffers; plain zarr-python reads the rows written."""
    rows, chunk_rows, buffers, pieces = delivery
    truth = np.random.default_rng(rows).integers(0, top, size=(rows, *ROW), dtype=np.uint32)
    with (
        tempfile.TemporaryDirectory() as folder,
        writing(target := new_target(Path(folder), rows, chunk_rows, counts=True), buffers=buffers) as writer,
    ):
        for start, stop in pieces:
            writer.write_from(start, truth[start:stop])
        writer.flush_chunks()
        assert np.array_equal(read_array(target), truth)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (np.full((1, *ROW), 256, dtype=np.uint32), TypeError, "must be uint8; got uint32"),
        (np.full((1, 1, 3), 1, dtype=np.uint8), ValueError, r"have shape \(2, 3\); got \(1, 3\)"),
    ],
)
def test_values_of_another_type_or_shape_are_refused(
    new_target: Any, writing: Any, tmp_path: Path, values: Any, error: type[Exception], message: str
) -> None:
    """A count of 256 would become 0 in a mask array, and one layer would fill all; NumPy would not complain."""
    with writing(new_target(tmp_path, 4, 2)) as writer, pytest.raises(error, match=message):
        writer.write_from(0, values)


def test_a_writer_without_buffers_is_refused(writing: Any, tmp_path: Path) -> None:
    """A writer needs at least one buffer."""
    with (
        pytest.raises(ValueError, match="at least one buffer; got 0"),
        writing(ChunkTarget(tmp_path, 4, (2, 3)), buffers=0),
    ):
        pass
