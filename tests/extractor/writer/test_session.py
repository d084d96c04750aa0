"""A session takes rows in any order, and reports whole instructions on disk, each once and never too early."""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparcom_data.storage import write_durably
from sparcom_extractor.protocol import FinishedRequest
from sparcom_extractor.writer.rows import RANGES, StepRows

GARBAGE = 255  # in rows that no test may see
SECONDS = 20.0


def merge_steps(steps: Sequence[StepRows]) -> StepRows:
    """Return one step with several requests' rows, and a row of another request between them."""
    ranges, masks, ids, positions, source = [], [], [], [], 0
    for step in steps:
        (only,) = step.ranges
        ranges.append(only.copy())
        ranges[-1]["source"] = source
        masks += [step.arrays["a"], np.full((1, *step.arrays["a"].shape[1:]), GARBAGE, dtype=np.uint8)]
        ids += [step.ids, np.full(1, 77, dtype=np.int32)]
        positions += [step.positions, np.zeros(1, dtype=np.int64)]
        source += only["rows"] + 1
    arrays = {"a": np.concatenate(masks)}
    return StepRows(np.array(ranges, dtype=RANGES), arrays, np.concatenate(ids), np.concatenate(positions))


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[tuple[int, int]], int, int]:
    """Draw (capacity, length) of instructions (dropped, shorter than reserved, or without rows), chunk rows, a seed."""
    capacities = draw(st.lists(st.integers(0, 9), min_size=1, max_size=9).filter(any))
    sizes = [(capacity, draw(st.integers(-1, capacity))) for capacity in capacities]
    return sizes, draw(st.integers(1, 8)), draw(st.integers(0, 2**32))


def random_steps(archive: Any, item: Any, rng: random.Random) -> list[StepRows]:
    """Return all rows of an instruction in random pieces, some twice, and sometimes rows past its end."""
    end = item.capacity if rng.random() < 0.5 else max(item.length, 0)
    cuts = sorted({0, end, *(rng.randint(0, end) for _ in range(rng.randint(0, 3)))})
    steps = [archive.step(item, start, stop - start) for start, stop in pairwise(cuts)]
    steps += rng.sample(steps, rng.randint(0, len(steps)))
    rng.shuffle(steps)
    if item.length < 0:
        steps = steps[: rng.randint(0, len(steps))]
    return steps


@settings(max_examples=150, deadline=None)
@given(history=histories())
def test_any_history_gives_correct_reports(
    new_archive: Any, poller: Any, history: tuple[list[tuple[int, int]], int, int]
) -> None:
    """With random pieces, interleavings, repeats, drops and late rows, each report is correct, given once, and not
    early.
    """
    sizes, chunk_rows, seed = history
    rng = random.Random(seed)  # noqa: S311
    with tempfile.TemporaryDirectory() as folder:
        archive = new_archive(Path(folder), sizes, chunk_rows)
        with archive.open_session(buffer_bytes=0, queue_bytes=40, threads=2) as session:
            polls = poller(archive, session)
            left = {item: random_steps(archive, item, rng) for item in archive.instructions}
            ended: list[Any] = []
            while left:
                chosen = rng.sample(list(left), rng.randint(1, min(3, len(left))))
                if steps := [left[item].pop() for item in chosen if left[item]]:
                    session.append_rows(merge_steps(steps))
                for item in [item for item in chosen if not left[item]]:
                    session.finish_requests([item.finished])
                    ended.append(item)
                    del left[item]
                if ended and rng.random() < 0.4:  # the scheduler ran one step past an instruction's end
                    late = rng.choice(ended)
                    if late.capacity:
                        step = archive.step(late, 0, late.capacity)
                        step.arrays["a"][:] = GARBAGE
                        session.append_rows(step)
                if rng.random() < 0.5:
                    polls.poll()
            session.end_input()
            reply = polls.until(lambda reply: reply.drained)
        assert reply.error is None
        assert polls.failed == {}
        assert polls.completed == {
            item.index: (archive.ids[item.row : item.row + item.length].tolist(), list(range(item.length)))
            for item in archive.instructions
            if item.length >= 0
        }
        archive.assert_right()


def test_an_instruction_is_reported_without_further_input(new_archive: Any, poller: Any, tmp_path: Path) -> None:
    """An instruction in a final chunk is reported as soon as the chunk is on disk, before any further input."""
    archive = new_archive(tmp_path, [(4, 4), (4, 4)], 4)
    with archive.open_session() as session:
        polls = poller(archive, session)
        archive.run(session, archive.instructions[0])
        polls.until(lambda reply: reply.completed)
        assert list(polls.completed) == [0]


def test_nothing_is_reported_before_its_chunk_is_on_disk(new_archive: Any, poller: Any, tmp_path: Path) -> None:
    """Until the write has ended, the instruction is not complete; `drained` waits for it too."""
    gate, started = threading.Event(), threading.Event()

    def write_at_gate(path: Path, parts: Any) -> None:
        started.set()
        gate.wait(SECONDS)
        write_durably(path, parts)

    archive = new_archive(tmp_path, [(4, 4)], 4)
    with archive.open_session(write=write_at_gate) as session:
        polls = poller(archive, session)
        archive.run(session, archive.instructions[0])
        session.end_input()
        assert started.wait(SECONDS)
        time.sleep(0.05)
        reply = polls.poll()
        assert (reply.completed, reply.drained) == ((), False)
        gate.set()
        polls.until(lambda reply: reply.drained)
        assert list(polls.completed) == [0]


def test_a_chunk_waits_for_all_its_instructions(new_archive: Any, poller: Any, tmp_path: Path) -> None:
    """An instruction that shares its chunk with a running one is not complete until the chunk is written."""
    archive = new_archive(tmp_path, [(2, 2), (2, 2)], 4)
    one, other = archive.instructions
    with archive.open_session() as session:
        polls = poller(archive, session)
        session.append_rows(merge_steps([archive.step(one, 0, 2), archive.step(other, 0, 1)]))
        session.finish_requests([one.finished])
        time.sleep(0.1)
        assert polls.poll().completed == ()
        session.append_rows(archive.step(other, 1, 1))
        session.finish_requests([other.finished])
        polls.until(lambda _: len(polls.completed) == 2)


def test_the_end_of_input_writes_open_chunks(new_archive: Any, poller: Any, tmp_path: Path) -> None:
    """At the end, a chunk with rows that never became final is written as it is, and its instructions are reported."""
    archive = new_archive(tmp_path, [(2, 2), (2, -1)], 4)
    with archive.open_session() as session:
        polls = poller(archive, session)
        session.append_rows(merge_steps([archive.step(item, 0, 2) for item in archive.instructions]))
        session.finish_requests([archive.instructions[0].finished])
        session.end_input()
        polls.until(lambda reply: reply.drained)
        assert list(polls.completed) == [0]


@pytest.mark.parametrize(("offset", "rows", "first"), [(0, 3, 3), (1, 3, 0), (0, 0, 0)])
def test_a_row_that_no_step_wrote_fails_the_instruction(
    new_archive: Any, poller: Any, tmp_path: Path, offset: int, rows: int, first: int
) -> None:
    """The error names the missing row; the instruction fails and the others stay right."""
    archive = new_archive(tmp_path, [(4, 4), (4, 4)], 4)
    broken, whole = archive.instructions
    with archive.open_session() as session:
        polls = poller(archive, session)
        if rows:
            session.append_rows(archive.step(broken, offset, rows))
        session.append_rows(archive.step(whole, 0, 4))
        session.finish_requests([broken.finished, whole.finished])
        session.end_input()
        assert polls.until(lambda reply: reply.drained).error is None
    assert list(polls.completed) == [1]
    assert f"{4 - rows} were not, the first is row {first}. Run the instruction again" in polls.failed[0]


def test_finishing_twice_is_harmless(new_archive: Any, poller: Any, tmp_path: Path) -> None:
    """A second report of an ended instruction neither writes its neighbor's chunk nor completes it again."""
    archive = new_archive(tmp_path, [(2, 2), (2, 2)], 4)
    with archive.open_session() as session:
        polls = poller(archive, session)
        session.append_rows(archive.step(archive.instructions[0], 0, 2))
        session.finish_requests([archive.instructions[0].finished] * 2)
        time.sleep(0.1)
        assert polls.poll().completed == ()
        archive.run(session, archive.instructions[1])
        session.end_input()
        polls.until(lambda reply: reply.drained)
    assert sorted(polls.completed) == [0, 1]
    archive.assert_right()


def test_each_running_request_has_a_chunk_in_memory(new_archive: Any, tmp_path: Path) -> None:
    """Requests that grow by one row per step, each in its own chunk, stay in memory: nothing is written and read
    back."""
    archive = new_archive(tmp_path, [(8, 8)] * 40, 8)
    with archive.open_session(requests=40, buffer_bytes=0) as session:
        for offset in range(7):
            for item in archive.instructions:
                session.append_rows(archive.step(item, offset, 1))
        session.finish_requests(list[FinishedRequest]())
        deadline = time.monotonic() + SECONDS
        while session.queued_bytes and time.monotonic() < deadline:
            time.sleep(0.001)
        assert not list((tmp_path / "a").glob("c.*")), "an unfinished chunk was written"
