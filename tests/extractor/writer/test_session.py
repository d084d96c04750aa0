"""A session: rows of steps in any order in, whole instructions on disk out, each reported once and never too early."""

from __future__ import annotations

import errno
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from sparcom_data.storage import storage_error
from sparcom_extractor.protocol import FinishedRequest, PollReply, SessionError
from sparcom_extractor.writer import chunks
from sparcom_extractor.writer.chunks import ChunkTarget, read_chunk
from sparcom_extractor.writer.session import CaptureSession, StepRows
from sparcom_extractor.writer.sinks import RowRange
from sparcom_extractor.writer.targets import ArrayPart

ROW = (2, 3)  # layers, bytes
GARBAGE = 255  # in rows that must not be seen
SECONDS = 20.0

real_write = chunks.write_durably


@dataclass(frozen=True)
class Planned:
    """An instruction: `length` rows of `capacity` hold data; -1: it is dropped."""

    index: int
    row: int
    capacity: int
    length: int

    @property
    def finished(self) -> FinishedRequest:
        return FinishedRequest(self.index, self.row, self.capacity, self.length)


def plan(sizes: Sequence[tuple[int, int]]) -> list[Planned]:
    """Instructions of (capacity, length), one after the other on the token axis."""
    starts = np.cumsum([0, *(capacity for capacity, _ in sizes)]).tolist()
    return [Planned(index, starts[index], *size) for index, size in enumerate(sizes)]


class Archive:
    """The masks of an archive being written, and what they must be: never all zero in a row that holds data."""

    def __init__(self, folder: Path, instructions: Sequence[Planned], chunk_rows: int) -> None:
        self.instructions = instructions
        self.rows = sum(item.capacity for item in instructions)
        array = zarr.create_array(
            folder / "a",
            shape=(self.rows, *ROW),
            chunks=(chunk_rows, *ROW),
            dtype="uint8",
            compressors=[Crc32cCodec()],
            fill_value=0,
            chunk_key_encoding={"name": "default", "separator": "."},
        )
        self.target = ChunkTarget(folder / "a", self.rows, tuple(array.chunks))
        self.parts = [ArrayPart("a", self.target, ROW)]
        self.masks = np.random.default_rng(1).integers(1, GARBAGE, size=(self.rows, *ROW), dtype=np.uint8)
        self.ids = np.arange(1000, 1000 + self.rows, dtype=np.int32)

    def piece(self, item: Planned, offset: int, rows: int) -> StepRows:
        """A step that holds rows of one instruction; what lies past its end is garbage."""
        take = slice(item.row + offset, item.row + offset + rows)
        masks = self.masks[take].copy()
        masks[max(0, item.length - offset) :] = GARBAGE
        return StepRows(
            [RowRange(item.index, item.row, item.capacity, 0, rows, offset)],
            {"a": masks},
            self.ids[take],
            np.arange(offset, offset + rows),
        )

    def read(self) -> NDArray[np.uint8]:
        return np.asarray(zarr.open_array(self.target.folder, mode="r")[:])  # type: ignore[arg-type]

    def assert_right(self) -> None:
        """Plain zarr reads the truth in every row that counts and zeros in reserved rows."""
        found = self.read()
        for item in self.instructions:
            if item.length >= 0:
                end = item.row + item.length
                assert np.array_equal(found[item.row : end], self.masks[item.row : end]), item
                assert not found[end : item.row + item.capacity].any(), item

    def assert_on_disk(self, item: Planned) -> None:
        """Every chunk under an instruction's rows is a whole file and holds them, read without the writer's help."""
        for row in range(item.row, item.row + item.length):
            chunk, offset = divmod(row, self.target.chunk_rows)
            held = read_chunk(self.target.path(chunk), self.target.chunk_shape)
            assert np.array_equal(held[offset], self.masks[row]), (item, row)


def together(steps: Sequence[StepRows]) -> StepRows:
    """Several requests' rows in one step, with a row of somebody else's between them."""
    segments, masks, ids, positions, source = [], [], [], [], 0
    for step in steps:
        (only,) = step.segments
        segments.append(RowRange(only.index, only.row, only.capacity, source, only.rows, only.offset))
        masks += [step.arrays["a"], np.full((1, *ROW), GARBAGE, dtype=np.uint8)]
        ids += [step.ids, np.full(1, 77, dtype=np.int32)]
        positions += [step.positions, np.zeros(1, dtype=np.int64)]
        source += only.rows + 1
    return StepRows(segments, {"a": np.concatenate(masks)}, np.concatenate(ids), np.concatenate(positions))


@contextmanager
def session_of(archive: Archive, **bounds: int) -> Iterator[CaptureSession]:
    session = CaptureSession(archive.parts, len(archive.instructions), **bounds)
    try:
        yield session
    finally:
        session.close()


class Heard:
    """What polls reported, checked as it comes in."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.completed: dict[int, tuple[list[int], list[int]]] = {}
        self.failed: dict[int, str] = {}
        self.last = PollReply()

    def poll(self, session: CaptureSession) -> PollReply:
        assert not self.last.drained or self.last.error, "there is nothing to hear after the end"
        self.last = session.poll()
        for item in self.last.completed:
            index, ids, positions = item.index, item.ids, item.positions
            assert index not in self.completed, "reported twice"
            assert index not in self.failed
            self.archive.assert_on_disk(self.archive.instructions[index])
            self.completed[index] = (
                np.frombuffer(ids, dtype=np.int32).tolist(),
                np.frombuffer(positions, dtype=np.int32).tolist(),
            )
        for failure in self.last.failed:
            assert failure.index not in self.completed
            assert failure.index not in self.failed, "reported twice"
            self.failed[failure.index] = failure.reason
        return self.last

    def until(self, session: CaptureSession, done: Callable[[PollReply], Any]) -> PollReply:
        end = time.monotonic() + SECONDS
        while not done(answer := self.poll(session)):
            assert time.monotonic() < end, answer
            time.sleep(0.001)
        return answer


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Planned], int, int]:
    """Instructions (some dropped, some shorter than their room, some without a row), chunk rows, a seed."""
    capacities = draw(st.lists(st.integers(0, 9), min_size=1, max_size=9).filter(any))
    sizes = [(capacity, draw(st.integers(-1, capacity))) for capacity in capacities]
    return plan(sizes), draw(st.integers(1, 8)), draw(st.integers(0, 2**32))


def pieces_of(archive: Archive, item: Planned, chance: random.Random) -> list[StepRows]:
    """All rows of an instruction in random pieces, some twice, and now and then rows past its end."""
    reach = item.capacity if chance.random() < 0.5 else max(item.length, 0)
    cuts = sorted({0, reach, *(chance.randint(0, reach) for _ in range(chance.randint(0, 3)))})
    pieces = [archive.piece(item, start, stop - start) for start, stop in pairwise(cuts)]
    pieces += chance.sample(pieces, chance.randint(0, len(pieces)))
    chance.shuffle(pieces)
    if item.length < 0:
        pieces = pieces[: chance.randint(0, len(pieces))]
    return pieces


@settings(max_examples=150, deadline=None)
@given(history=histories())
def test_any_history_gives_the_truth(history: tuple[list[Planned], int, int]) -> None:
    """Random pieces, interleavings, repeats, drops and late rows: what is reported is right, once, and never early."""
    instructions, chunk_rows, seed = history
    chance = random.Random(seed)  # noqa: S311
    with tempfile.TemporaryDirectory() as folder:
        archive = Archive(Path(folder), instructions, chunk_rows)
        with session_of(archive, buffer_bytes=0, queue_bytes=40, threads=2) as session:
            heard = Heard(archive)
            left = {item: pieces_of(archive, item, chance) for item in instructions}
            settled: list[Planned] = []
            while left:
                chosen = chance.sample(list(left), chance.randint(1, min(3, len(left))))
                if steps := [left[item].pop() for item in chosen if left[item]]:
                    session.append_rows(together(steps))
                for item in [item for item in chosen if not left[item]]:
                    session.finish_requests([item.finished])
                    settled.append(item)
                    del left[item]
                if settled and chance.random() < 0.4:  # the scheduler ran one step past an instruction's end
                    late = chance.choice(settled)
                    if late.capacity:
                        step = archive.piece(late, 0, late.capacity)
                        step.arrays["a"][:] = GARBAGE
                        session.append_rows(step)
                if chance.random() < 0.5:
                    heard.poll(session)
            session.end_input()
            answer = heard.until(session, lambda answer: answer.drained)
        assert answer.error is None
        assert heard.failed == {}
        assert heard.completed == {
            item.index: (archive.ids[item.row : item.row + item.length].tolist(), list(range(item.length)))
            for item in instructions
            if item.length >= 0
        }
        archive.assert_right()


def test_an_instruction_is_reported_without_a_further_word(tmp_path: Path) -> None:
    """A whole chunk that is settled is reported as soon as it is on disk, before anything else comes."""
    archive = Archive(tmp_path, plan([(4, 4), (4, 4)]), 4)
    with session_of(archive) as session:
        heard = Heard(archive)
        session.append_rows(archive.piece(archive.instructions[0], 0, 4))
        session.finish_requests([archive.instructions[0].finished])
        heard.until(session, lambda answer: answer.completed)
        assert list(heard.completed) == [0]


def test_nothing_is_reported_before_its_chunk_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the write has not ended the instruction is not complete; `drained` waits for it too."""
    gate = threading.Event()
    started = threading.Event()

    def held(path: Path, parts: Any) -> None:
        started.set()
        gate.wait(SECONDS)
        real_write(path, parts)

    monkeypatch.setattr(chunks, "write_durably", held)
    archive = Archive(tmp_path, plan([(4, 4)]), 4)
    with session_of(archive) as session:
        heard = Heard(archive)
        session.append_rows(archive.piece(archive.instructions[0], 0, 4))
        session.finish_requests([archive.instructions[0].finished])
        session.end_input()
        assert started.wait(SECONDS)
        time.sleep(0.05)
        answer = heard.poll(session)
        assert (answer.completed, answer.drained) == ((), False)
        gate.set()
        heard.until(session, lambda answer: answer.drained)
        assert list(heard.completed) == [0]


def test_a_chunk_waits_for_all_its_instructions(tmp_path: Path) -> None:
    """An instruction that shares its chunk with one that still runs is not complete until the chunk is written."""
    archive = Archive(tmp_path, plan([(2, 2), (2, 2)]), 4)
    one, other = archive.instructions
    with session_of(archive) as session:
        heard = Heard(archive)
        session.append_rows(together([archive.piece(one, 0, 2), archive.piece(other, 0, 1)]))
        session.finish_requests([one.finished])
        time.sleep(0.1)
        assert heard.poll(session).completed == ()
        session.append_rows(archive.piece(other, 1, 1))
        session.finish_requests([other.finished])
        heard.until(session, lambda _: len(heard.completed) == 2)


def test_finish_writes_what_is_open(tmp_path: Path) -> None:
    """At the end a chunk of which some rows were never settled is written as it is, and its instructions reported."""
    archive = Archive(tmp_path, plan([(2, 2), (2, -1)]), 4)
    with session_of(archive) as session:
        heard = Heard(archive)
        session.append_rows(together([archive.piece(item, 0, 2) for item in archive.instructions]))
        session.finish_requests([archive.instructions[0].finished])
        session.end_input()
        heard.until(session, lambda answer: answer.drained)
        assert list(heard.completed) == [0]


@pytest.mark.parametrize(("offset", "rows", "first"), [(0, 3, 3), (1, 3, 0), (0, 0, 0)])
def test_a_row_that_no_step_wrote_fails_the_instruction(tmp_path: Path, offset: int, rows: int, first: int) -> None:
    """A hole is found with its row; the instruction fails and the others stay right."""
    archive = Archive(tmp_path, plan([(4, 4), (4, 4)]), 4)
    broken, whole = archive.instructions
    with session_of(archive) as session:
        heard = Heard(archive)
        if rows:
            session.append_rows(archive.piece(broken, offset, rows))
        session.append_rows(archive.piece(whole, 0, 4))
        session.finish_requests([broken.finished, whole.finished])
        session.end_input()
        assert heard.until(session, lambda answer: answer.drained).error is None
    assert list(heard.completed) == [1]
    assert f"{4 - rows} were not, the first is row {first}. Run the instruction again" in heard.failed[0]


def test_settling_twice_is_harmless(tmp_path: Path) -> None:
    """A second settlement of an instruction does not settle its neighbour's chunk or report it again."""
    archive = Archive(tmp_path, plan([(2, 2), (2, 2)]), 4)
    with session_of(archive) as session:
        heard = Heard(archive)
        session.append_rows(archive.piece(archive.instructions[0], 0, 2))
        session.finish_requests([archive.instructions[0].finished] * 2)
        time.sleep(0.1)
        assert heard.poll(session).completed == ()
        session.append_rows(archive.piece(archive.instructions[1], 0, 2))
        session.finish_requests([archive.instructions[1].finished])
        session.end_input()
        heard.until(session, lambda answer: answer.drained)
    assert sorted(heard.completed) == [0, 1]
    archive.assert_right()


def full_disk(allowed: int) -> Callable[[Path, Any], None]:
    """A disk that takes so many chunks and no more."""
    written = []

    def write(path: Path, parts: Any) -> None:
        if len(written) >= allowed:
            raise storage_error(path, OSError(errno.ENOSPC, "No space left on device"))
        written.append(path)
        real_write(path, parts)

    return write


def test_a_full_disk_ends_the_session_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every poll reports the storage error, put never blocks again, and nothing more is called complete."""
    monkeypatch.setattr(chunks, "write_durably", full_disk(2))
    archive = Archive(tmp_path, plan([(4, 4)] * 40), 4)
    with session_of(archive, buffer_bytes=0, queue_bytes=50, threads=1) as session:
        heard = Heard(archive)
        for item in archive.instructions:
            session.append_rows(archive.piece(item, 0, 4))
            session.finish_requests([item.finished])
        answer = heard.until(session, lambda answer: answer.error)
        assert answer.error.kind == "storage"
        assert "No space left on device (errno 28)" in answer.error.reason
        started = time.monotonic()
        for item in archive.instructions:
            session.append_rows(archive.piece(item, 0, 4))
        session.end_input()
        assert time.monotonic() - started < 1
        assert heard.until(session, lambda answer: answer.drained).error == answer.error
    assert len(heard.completed) <= 2  # and Heard looked at each on disk
    assert heard.failed == {}


def test_a_put_that_waits_is_let_go_by_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step's thread stands in put while the disk fills up: it goes on, and the engine with it."""
    gate = threading.Event()

    def write(path: Path, parts: Any) -> None:
        gate.wait(SECONDS)
        full_disk(0)(path, parts)

    monkeypatch.setattr(chunks, "write_durably", write)
    archive = Archive(tmp_path, plan([(4, 4)] * 40), 4)
    with session_of(archive, buffer_bytes=0, queue_bytes=50) as session:
        threading.Timer(0.1, gate.set).start()
        for item in archive.instructions:
            session.append_rows(archive.piece(item, 0, 4))
            session.finish_requests([item.finished])
        assert Heard(archive).until(session, lambda answer: answer.error).error.kind == "storage"


def test_slow_storage_makes_steps_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the writer is slower than the steps put waits, the seconds are counted, and memory stays bounded."""

    def slow(path: Path, parts: Any) -> None:
        time.sleep(0.01)
        real_write(path, parts)

    monkeypatch.setattr(chunks, "write_durably", slow)
    archive = Archive(tmp_path, plan([(4, 4)] * 40), 4)
    bound = 3 * archive.piece(archive.instructions[0], 0, 4).nbytes
    most = 0
    with session_of(archive, buffer_bytes=0, queue_bytes=bound, threads=1) as session:
        heard = Heard(archive)
        started = time.monotonic()
        for item in archive.instructions:
            session.append_rows(archive.piece(item, 0, 4))
            session.finish_requests([item.finished])
            most = max(most, session._queued_bytes)
        elapsed = time.monotonic() - started
        session.end_input()
        answer = heard.until(session, lambda answer: answer.drained)
        ((_, writer),) = session._sink._parts
        buffers = len(writer._free) + len(writer._open) + len(writer._writing)
    assert most <= bound
    assert buffers == 4
    assert 0.1 < answer.backpressure_seconds <= elapsed
    assert len(heard.completed) == 40
    assert answer.rows == 160
    archive.assert_right()


def test_a_step_larger_than_the_bound_goes_through(tmp_path: Path) -> None:
    """One step may be more than the queue's bound: it waits for an empty queue, not for ever."""
    archive = Archive(tmp_path, plan([(8, 8)] * 3), 4)
    with session_of(archive, queue_bytes=1) as session:
        heard = Heard(archive)
        for item in archive.instructions:
            session.append_rows(archive.piece(item, 0, 8))
            session.finish_requests([item.finished])
        session.end_input()
        heard.until(session, lambda answer: answer.drained)
    assert len(heard.completed) == 3


def test_rows_after_the_end_neither_block_nor_pile_up(tmp_path: Path) -> None:
    """Requests that were cancelled may run on for some steps after `finish`: nobody takes their rows any more."""
    archive = Archive(tmp_path, plan([(4, -1), (4, 4)]), 4)
    cancelled, whole = archive.instructions
    with session_of(archive, queue_bytes=50) as session:
        heard = Heard(archive)
        session.append_rows(archive.piece(whole, 0, 4))
        session.finish_requests([cancelled.finished, whole.finished])
        session.end_input()
        heard.until(session, lambda answer: answer.drained)
        late = threading.Thread(
            target=lambda: [session.append_rows(archive.piece(cancelled, 0, 4)) for _ in range(100)], daemon=True
        )
        late.start()
        late.join(timeout=5)
        assert not late.is_alive(), "put waits for a thread that has ended"
        assert session._queued_bytes == 0
    assert list(heard.completed) == [1]


def test_a_session_told_to_fail_says_so(tmp_path: Path) -> None:
    """A step that cannot be trusted: the first reason stays, later rows and settlements change nothing on disk."""
    archive = Archive(tmp_path, plan([(4, 4)]), 4)
    with session_of(archive) as session:
        session.fail("rows cannot be trusted")
        session.fail("something later")
        session.append_rows(archive.piece(archive.instructions[0], 0, 4))
        session.finish_requests([archive.instructions[0].finished])
        session.end_input()
        answer = Heard(archive).until(session, lambda answer: answer.drained)
    assert answer.error == SessionError("capture", "rows cannot be trusted")
    assert answer.completed == ()
    assert not archive.target.path(0).exists()


def test_an_error_of_our_own_is_told_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever breaks the assembling thread is reported with its name, logged, and ends the session."""
    archive = Archive(tmp_path, plan([(4, 4)]), 4)
    with session_of(archive) as session:
        session.append_rows(StepRows([RowRange(7, 0, 4, 0, 4, 0)], {"a": archive.masks}, archive.ids, np.arange(4)))
        answer = Heard(archive).until(session, lambda answer: answer.error)
    assert answer.error.kind == "capture"
    assert "writing the archive broke: IndexError" in answer.error.reason
    assert "the capture session broke" in caplog.text


def test_threads_end_with_the_session(tmp_path: Path) -> None:
    """Closing joins the assembler and the writers, with or without a finish before."""
    before = set(threading.enumerate())
    archive = Archive(tmp_path, plan([(4, 4)]), 4)
    with session_of(archive) as session:
        session.append_rows(archive.piece(archive.instructions[0], 0, 4))
        assert set(threading.enumerate()) - before
    assert set(threading.enumerate()) <= before


def test_as_many_requests_as_run_at_once_have_a_chunk_each(tmp_path: Path) -> None:
    """Requests that grow a row a step, each in its own chunk, are held in memory: nothing is written and read back."""
    archive = Archive(tmp_path, plan([(8, 8)] * 40), 8)
    session = CaptureSession(archive.parts, 40, requests=40, buffer_bytes=0)
    for offset in range(7):
        for item in archive.instructions:
            session.append_rows(archive.piece(item, offset, 1))
    session.finish_requests([])
    deadline = time.monotonic() + SECONDS
    while session._queued_bytes and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not list((tmp_path / "a").glob("c.*")), "an unfinished chunk was put aside"
    session.close()


def test_a_session_that_is_closed_early_does_not_hold_the_engine_up(tmp_path: Path) -> None:
    """Rows that nobody will commit are dropped: nothing is written at the close."""
    archive = Archive(tmp_path, plan([(8, 8)] * 4), 8)
    session = CaptureSession(archive.parts, 4)
    for item in archive.instructions:
        session.append_rows(archive.piece(item, 0, 4))
    session.close()
    assert not list((tmp_path / "a").glob("c.*"))
    assert "closed before it was finished" in session.poll().error.reason
