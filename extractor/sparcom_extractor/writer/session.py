"""One archive being written by one worker: rows of steps in, words about finished instructions out.

    step thread                      assembler thread                          poll (step thread, between steps)
    put(StepRows) ──bounded queue──▶ rows into chunks, ids into trackers
    settle([...]) ──same queue─────▶ every row there? alignment right? ──▶ durable? ──▶ report once

The queue is bounded in bytes: when storage is slower than the model the step waits, and the seconds are counted.
Any error ends the session, not the engine: it is kept, later rows are dropped, and every poll reports it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_data.errors import SparcomError
from sparcom_extractor.writer.chunks import ChunkTarget, ChunkWriter

_log = logging.getLogger(__name__)

QUEUE_BYTES = 256 << 20
BUFFER_BYTES = 256 << 20
MAX_BUFFERS = 64
THREADS = 4
IDLE_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive rows of one instruction within a step's captured rows.

    source: first row within the step's arrays. rows: how many. offset: first row within the instruction.
    """

    index: int
    row: int
    capacity: int
    source: int
    rows: int
    offset: int


@dataclass(frozen=True, slots=True)
class StepRows:
    """What one step captured. masks: uint8 (n, layer, neuron_byte); ids: int32 (n,); positions: int64 (n,)."""

    segments: Sequence[Segment]
    masks: NDArray[np.uint8]
    ids: NDArray[np.int32]
    positions: NDArray[np.int64]

    @property
    def nbytes(self) -> int:
        """Bytes that waiting in the queue costs."""
        return self.masks.nbytes + self.ids.nbytes + self.positions.nbytes


@dataclass(frozen=True, slots=True)
class Settlement:
    """The submitting side's word that an instruction has run: `length` rows hold data; -1: it did not, forget it."""

    index: int
    row: int
    capacity: int
    length: int


@dataclass(frozen=True, slots=True)
class _Tracker:
    """The token ids and positions of one running instruction, int32 (capacity,); -1 where no step wrote."""

    ids: NDArray[np.int32]
    positions: NDArray[np.int32]

    @classmethod
    def empty(cls, capacity: int) -> _Tracker:
        return cls(np.full(capacity, -1, dtype=np.int32), np.full(capacity, -1, dtype=np.int32))

    def missing(self, length: int) -> str | None:
        """The reason why an instruction of `length` rows cannot be trusted, or None."""
        unwritten = np.flatnonzero(self.ids[:length] < 0)
        if not len(unwritten):
            return None
        return (
            f"every one of its {length} rows must be written by a step; {len(unwritten)} were not, the first is row "
            f"{int(unwritten[0])}. Run the instruction again"
        )


@dataclass(frozen=True, slots=True)
class _Finished:
    """An instruction whose rows are all there and wait to be durable."""

    row: int
    length: int
    ids: bytes
    positions: bytes


@dataclass(slots=True)
class _Outcome:
    completed: list[tuple[int, bytes, bytes]] = field(default_factory=list)
    failed: list[tuple[int, str]] = field(default_factory=list)


class CaptureSession:
    """Writes one archive. `put`, `settle`, `finish` and `poll` are called from the step's thread."""

    def __init__(
        self,
        target: ChunkTarget,
        instructions: int,
        *,
        queue_bytes: int = QUEUE_BYTES,
        buffer_bytes: int = BUFFER_BYTES,
        threads: int = THREADS,
    ) -> None:
        buffers = max(4, min(MAX_BUFFERS, buffer_bytes // target.chunk_bytes))
        self._writer = ChunkWriter(target, buffers=buffers, threads=threads)
        self._queue: queue.SimpleQueue[StepRows | list[Settlement] | None] = queue.SimpleQueue()
        self._room = threading.Condition()
        self._queued_bytes = 0
        self._queue_bytes = queue_bytes
        self._trackers: dict[int, _Tracker] = {}
        self._settled = np.zeros(instructions, dtype=bool)
        self._finished: dict[int, _Finished] = {}
        self._lock = threading.Lock()
        self._outcome = _Outcome()
        self._error: tuple[str, str] | None = None
        self._drained = threading.Event()
        self.waited_seconds = 0.0
        self._rows = 0
        self._thread = threading.Thread(target=self._run, name="sparcom-assemble", daemon=True)
        self._thread.start()

    def put(self, step: StepRows) -> None:
        """Hand a step's rows over; waits while more than the bound is queued. The arrays must not change afterwards.

        Rows that come after the end (an error, or `finish` and all is on disk) are dropped: nobody takes them any more.
        """
        with self._room:
            started = time.monotonic()
            while self._queued_bytes and self._queued_bytes + step.nbytes > self._queue_bytes and not self._over:
                self._room.wait(timeout=1.0)
            self.waited_seconds += time.monotonic() - started
            if self._over:
                return
            self._queued_bytes += step.nbytes
        self._rows += sum(segment.rows for segment in step.segments)
        self._queue.put(step)

    @property
    def _over(self) -> bool:
        return self._error is not None or self._drained.is_set()

    def settle(self, settlements: list[Settlement]) -> None:
        """Say that instructions have run. Their rows were put before."""
        self._queue.put(settlements)

    def finish(self) -> None:
        """Say that nothing more comes: what is open is written as it is."""
        self._queue.put(None)

    def fail(self, reason: str, kind: str = "capture") -> None:
        """End the session with a reason that every poll reports. kind: `capture`, or `storage` where writing failed."""
        with self._room:
            self._error = self._error or (kind, reason)
            self._room.notify_all()

    def poll(self) -> dict[str, Any]:
        """What became of instructions since the last poll, in types that any serialiser takes.

        completed: [index, ids, positions] with int32 bytes; failed: [index, reason]; error: [kind, why it ended];
        drained: whether everything after `finish` is on disk; waited_seconds: how long steps stood still for storage;
        rows: how many rows steps handed over, those computed again after a preemption included.
        """
        drained, error = self._drained.is_set(), self._error  # before the outcome: it may grow until drained is set
        with self._lock:
            outcome, self._outcome = self._outcome, _Outcome()
        return {
            "completed": [list(item) for item in outcome.completed],
            "failed": [list(item) for item in outcome.failed],
            "error": list(error) if error else None,
            "drained": drained,
            "waited_seconds": self.waited_seconds,
            "rows": self._rows,
        }

    def close(self) -> None:
        """End the threads. What is open is written first, unless the session failed; poll tells nobody of it."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._assemble()
        except SparcomError as error:
            self.fail(str(error), "storage")
        except Exception as error:  # noqa: BLE001  a thread's last words: reported by every poll, ends the job
            _log.exception("the capture session broke")
            self.fail(f"writing the archive broke: {type(error).__name__}: {error}")
        finally:
            self._writer.close()
            self._drained.set()

    def _assemble(self) -> None:
        while (item := self._next_item()) is not None:
            if isinstance(item, StepRows):
                if not self._error:
                    self._take_rows(item)
                self._release(item)
            elif not self._error:
                for settlement in item:
                    self._settle(settlement)
            self._report_durable()
        if not self._error:
            self._writer.flush()
            self._report_durable()

    def _next_item(self) -> StepRows | list[Settlement] | None:
        """The next item, reporting what became durable while there is none."""
        while True:
            try:
                return self._queue.get(timeout=IDLE_SECONDS if self._finished else None)
            except queue.Empty:
                self._report_durable()

    def _release(self, item: StepRows) -> None:
        with self._room:
            self._queued_bytes -= item.nbytes
            self._room.notify_all()

    def _take_rows(self, step: StepRows) -> None:
        for segment in step.segments:
            if self._settled[segment.index]:
                continue  # the scheduler may run one step past a request's end
            tracker = self._trackers.get(segment.index)
            if tracker is None:
                tracker = self._trackers[segment.index] = _Tracker.empty(segment.capacity)
            source = slice(segment.source, segment.source + segment.rows)
            rows = slice(segment.offset, segment.offset + segment.rows)
            tracker.ids[rows] = step.ids[source]
            tracker.positions[rows] = step.positions[source]
            self._writer.put(segment.row + segment.offset, step.masks[source])

    def _settle(self, item: Settlement) -> None:
        if self._settled[item.index]:
            return
        tracker = self._trackers.pop(item.index, None) or _Tracker.empty(item.capacity)
        self._settled[item.index] = True
        if item.length >= 0:
            self._clear_past_end(item, tracker)
            self._finish_instruction(item, tracker)
        self._writer.settle(item.row, item.row + item.capacity)

    def _clear_past_end(self, item: Settlement, tracker: _Tracker) -> None:
        """Rows past the end that a step wrote all the same are set back to zeros, as reserved rows are."""
        written = np.flatnonzero(tracker.ids[item.length :] >= 0)
        if len(written):
            rows = int(written[-1]) + 1
            self._writer.put(item.row + item.length, self._writer.zeros(rows))

    def _finish_instruction(self, item: Settlement, tracker: _Tracker) -> None:
        reason = tracker.missing(item.length)
        if reason is not None:
            with self._lock:
                self._outcome.failed.append((item.index, reason))
            return
        rows = slice(0, item.length)
        self._finished[item.index] = _Finished(
            item.row, item.length, tracker.ids[rows].tobytes(), tracker.positions[rows].tobytes()
        )

    def _report_durable(self) -> None:
        if self._error:
            return
        durable = [
            (index, item)
            for index, item in self._finished.items()
            if self._writer.durable(item.row, item.row + item.length)
        ]
        with self._lock:
            for index, item in durable:
                del self._finished[index]
                self._outcome.completed.append((index, item.ids, item.positions))
