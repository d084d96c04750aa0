"""Slow or failing storage, and errors of a session: bounded memory, no blocked step, the first reason in every poll."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparcom_data.storage import storage_error, write_durably
from sparcom_extractor.protocol import SessionError
from sparcom_extractor.writer.rows import RANGES, StepRows

SECONDS = 20.0


def full_disk(allowed: int) -> Callable[[Path, Any], None]:
    """Return a `write` that succeeds `allowed` times; then the disk is full."""
    written = []

    def write(path: Path, parts: Any) -> None:
        if len(written) >= allowed:
            raise storage_error(path, OSError(errno.ENOSPC, "No space left on device"))
        written.append(path)
        write_durably(path, parts)

    return write


def test_a_full_disk_ends_the_session_with_its_reason(new_archive: Any, poller: Any, tmp_path: Path) -> None:
    """Every poll reports the storage error, append_rows never blocks again, and nothing more completes."""
    archive = new_archive(tmp_path, [(4, 4)] * 40, 4)
    with archive.open_session(buffer_bytes=0, queue_bytes=50, threads=1, write=full_disk(2)) as session:
        polls = poller(archive, session)
        for item in archive.instructions:
            archive.run(session, item)
        reply = polls.until(lambda reply: reply.error)
        assert reply.error.kind == "disk_full"
        assert "No space left on device (errno 28)" in reply.error.reason
        started = time.monotonic()
        for item in archive.instructions:
            session.append_rows(archive.step(item, 0, 4))
        session.end_input()
        assert time.monotonic() - started < 1
        assert polls.until(lambda reply: reply.drained).error == reply.error
    assert len(polls.completed) <= 2  # each was checked on disk
    assert polls.failed == {}


def test_an_error_releases_a_waiting_step(new_archive: Any, poller: Any, tmp_path: Path) -> None:
    """The step's thread waits in append_rows while the disk fills up; it continues, and so does the engine."""
    gate, fail = threading.Event(), full_disk(0)

    def write(path: Path, parts: Any) -> None:
        gate.wait(SECONDS)
        fail(path, parts)

    archive = new_archive(tmp_path, [(4, 4)] * 40, 4)
    with archive.open_session(buffer_bytes=0, queue_bytes=50, write=write) as session:
        threading.Timer(0.1, gate.set).start()
        for item in archive.instructions:
            archive.run(session, item)
        assert poller(archive, session).until(lambda reply: reply.error).error.kind == "disk_full"


def test_slow_storage_makes_steps_wait(new_archive: Any, poller: Any, tmp_path: Path) -> None:
    """If the writer is slower than the steps, append_rows waits, the time is counted, and memory stays bounded."""
    buffers: set[int] = set()

    def write_slowly(path: Path, parts: Any) -> None:
        buffers.add(np.frombuffer(parts[0], dtype=np.uint8).ctypes.data)
        time.sleep(0.01)
        write_durably(path, parts)

    archive = new_archive(tmp_path, [(4, 4)] * 40, 4)
    bound = 3 * archive.step(archive.instructions[0], 0, 4).nbytes
    most = 0
    with archive.open_session(buffer_bytes=0, queue_bytes=bound, threads=1, write=write_slowly) as session:
        polls = poller(archive, session)
        started = time.monotonic()
        for item in archive.instructions:
            archive.run(session, item)
            most = max(most, session.queued_bytes)
        elapsed = time.monotonic() - started
        session.end_input()
        reply = polls.until(lambda reply: reply.drained)
    assert most <= bound
    assert len(buffers) <= 4
    assert 0.1 < reply.backpressure_seconds <= elapsed
    assert len(polls.completed) == 40
    assert reply.rows == 160
    archive.assert_right()


def test_a_step_larger_than_the_bound_goes_through(new_archive: Any, poller: Any, tmp_path: Path) -> None:
    """One step may exceed the queue's bound: it waits for an empty queue, not forever."""
    archive = new_archive(tmp_path, [(8, 8)] * 3, 4)
    with archive.open_session(queue_bytes=1) as session:
        polls = poller(archive, session)
        for item in archive.instructions:
            archive.run(session, item)
        session.end_input()
        polls.until(lambda reply: reply.drained)
    assert len(polls.completed) == 3


def test_rows_after_the_end_neither_block_nor_pile_up(new_archive: Any, poller: Any, tmp_path: Path) -> None:
    """Cancelled requests may run for some steps after the end of input; their rows are dropped."""
    archive = new_archive(tmp_path, [(4, -1), (4, 4)], 4)
    cancelled, whole = archive.instructions
    with archive.open_session(queue_bytes=50) as session:
        polls = poller(archive, session)
        session.append_rows(archive.step(whole, 0, 4))
        session.finish_requests([cancelled.finished, whole.finished])
        session.end_input()
        polls.until(lambda reply: reply.drained)
        late = threading.Thread(
            target=lambda: [session.append_rows(archive.step(cancelled, 0, 4)) for _ in range(100)], daemon=True
        )
        late.start()
        late.join(timeout=5)
        assert not late.is_alive(), "append_rows waits for a thread that has ended"
        assert session.queued_bytes == 0
    assert list(polls.completed) == [1]


def test_the_first_failure_stays(new_archive: Any, poller: Any, tmp_path: Path) -> None:
    """After `fail` the first reason stays; later rows and finished requests change nothing on disk."""
    archive = new_archive(tmp_path, [(4, 4)], 4)
    with archive.open_session() as session:
        session.fail("rows cannot be trusted")
        session.fail("something later")
        archive.run(session, archive.instructions[0])
        session.end_input()
        reply = poller(archive, session).until(lambda reply: reply.drained)
    assert reply.error == SessionError("capture", "rows cannot be trusted")
    assert reply.completed == ()
    assert not archive.target.path(0).exists()


def test_a_bug_in_the_writer_is_reported(
    new_archive: Any, poller: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception in the assembler thread is logged, reported by name, and ends the session."""
    archive = new_archive(tmp_path, [(4, 4)], 4)
    with archive.open_session() as session:
        ranges = np.array([(7, 0, 4, 0, 4, 0, -1)], dtype=RANGES)
        session.append_rows(StepRows(ranges, {"a": archive.masks}, archive.ids, np.arange(4)))
        reply = poller(archive, session).until(lambda reply: reply.error)
    assert reply.error.kind == "capture"
    assert "writing the archive failed: IndexError" in reply.error.reason
    assert "the capture session failed" in caplog.text


def test_threads_end_with_the_session(new_archive: Any, tmp_path: Path) -> None:
    """Closing joins the assembler and the writers, with or without a previous `end_input`."""
    before = set(threading.enumerate())
    archive = new_archive(tmp_path, [(4, 4)], 4)
    with archive.open_session() as session:
        session.append_rows(archive.step(archive.instructions[0], 0, 4))
        assert set(threading.enumerate()) - before
    assert set(threading.enumerate()) <= before


def test_a_session_that_is_closed_early_writes_nothing(new_archive: Any, tmp_path: Path) -> None:
    """Rows that nothing will commit are dropped, so closing does not delay the engine."""
    archive = new_archive(tmp_path, [(8, 8)] * 4, 8)
    with archive.open_session() as session:
        for item in archive.instructions:
            session.append_rows(archive.step(item, 0, 4))
    assert not list((tmp_path / "a").glob("c.*"))
    assert "closed before it was finished" in session.poll().error.reason
