"""One archive being written by one worker: rows of steps in, words about finished instructions out.

    delivery                         assembler thread                          poll (step thread, between steps)
    put(StepRows) ──bounded queue──▶ rows into the sink, ids into trackers
    settle([...]) ──same queue─────▶ every row there? alignment right? ──▶ durable? ──▶ report once

The queue is bounded in bytes: when storage is slower than the model, whoever delivers waits.
Any error ends the session, not the engine: it is kept, later rows are dropped, and every poll reports it. It does not
know whether masks or counts are written: its sink does.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_data.errors import SparcomError
from sparcom_extractor.protocol import (
    DurableInstruction,
    FailedInstruction,
    FinishedRequest,
    PollReply,
    SessionError,
)
from sparcom_extractor.writer.chunks import buffers_for
from sparcom_extractor.writer.sinks import RowRange, Sink, make_sink
from sparcom_extractor.writer.targets import ArrayPart

_log = logging.getLogger(__name__)

QUEUE_BYTES = 256 << 20
BUFFER_BYTES = 256 << 20
MAX_BUFFERS = 64
THREADS = 8
IDLE_SECONDS = 0.02


def _nothing() -> None:
    """Arrays of the session's own need no giving back."""


@dataclass(frozen=True, slots=True)
class RowFault:
    """Why a row of an instruction cannot be trusted. offset: of the row within the instruction."""

    offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class StepRows:
    """What one step captured.

    arrays: (n, …) each, by the name of the archive's array on the token axis; none where they are counted elsewhere.
    ids: int32 (n,); positions: int64 (n,). done: called once when the arrays are not used any more.
    faults: the first fault of each instruction that has one in this step, by its index.
    """

    segments: Sequence[RowRange]
    arrays: Mapping[str, NDArray[Any]]
    ids: NDArray[np.int32]
    positions: NDArray[np.int64]
    done: Callable[[], None] = _nothing
    faults: Mapping[int, RowFault] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes that waiting in the queue costs."""
        return sum(array.nbytes for array in self.arrays.values()) + self.ids.nbytes + self.positions.nbytes


@dataclass(frozen=True, slots=True)
class CountedRows:
    """Counts that a device made over the first `rows` rows of an instruction: int32 (layer, neuron).

    last: the mask of the last of these rows, uint8 (layer, neuron_byte). done: as in `StepRows`.
    """

    index: int
    rows: int
    counts: NDArray[np.int32]
    last: NDArray[np.uint8]
    done: Callable[[], None] = _nothing

    @property
    def nbytes(self) -> int:
        """Bytes that waiting in the queue costs."""
        return self.counts.nbytes + self.last.nbytes


@dataclass(frozen=True, slots=True)
class _Tracker:
    """The token ids and positions of one running instruction, int32 (capacity,); -1 where no step wrote."""

    ids: NDArray[np.int32]
    positions: NDArray[np.int32]

    @classmethod
    def empty(cls, capacity: int) -> _Tracker:
        return cls(np.full(capacity, -1, dtype=np.int32), np.full(capacity, -1, dtype=np.int32))

    @property
    def written(self) -> int:
        """Row after the last that a step wrote."""
        rows = np.flatnonzero(self.ids >= 0)
        return int(rows[-1]) + 1 if len(rows) else 0

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

    item: FinishedRequest
    ids: bytes
    positions: bytes


@dataclass(slots=True)
class _Outcome:
    completed: list[DurableInstruction] = field(default_factory=list)
    failed: list[FailedInstruction] = field(default_factory=list)


class CaptureSession:
    """Writes one archive. `settle`, `finish` and `poll` are called between steps, `put` by whoever delivers rows."""

    def __init__(
        self,
        parts: Sequence[ArrayPart],
        instructions: int,
        *,
        requests: int = 0,
        queue_bytes: int = QUEUE_BYTES,
        buffer_bytes: int = BUFFER_BYTES,
        threads: int = THREADS,
    ) -> None:
        """
        Args:
            parts: what is written of which arrays. instructions: how many the archive has.
            requests: how many run at once, each with chunks of its own that grow a row a step.
            queue_bytes: what may wait for the assembler; whoever delivers more waits.
            buffer_bytes: memory for chunks, more where `requests` need it; touched only as it is needed.
            threads: that write.
        """
        chunks = sum(part.target.chunk_bytes for part in parts)
        buffers = max(4, min(MAX_BUFFERS, buffer_bytes // chunks))
        if requests:
            buffers = max(buffers, buffers_for(requests, threads))
        self.counts = any(part.target.dtype == "uint32" for part in parts)
        """Whether counts are written, and not masks."""
        self._sink: Sink = make_sink(parts, buffers=buffers, threads=threads)
        self._queue: queue.SimpleQueue[StepRows | CountedRows | list[FinishedRequest] | None] = queue.SimpleQueue()
        self._room = threading.Condition()
        self._queued_bytes = 0
        self._queue_bytes = queue_bytes
        self._trackers: dict[int, _Tracker] = {}
        self._settled = np.zeros(instructions, dtype=bool)
        self._faults: dict[int, RowFault] = {}
        self._finished: dict[int, _Finished] = {}
        self._lock = threading.Lock()
        self._outcome = _Outcome()
        self._error: SessionError | None = None
        self._finishing = False
        self._drained = threading.Event()
        self.backpressure_seconds = 0.0
        self._rows = 0
        self._thread = threading.Thread(target=self._run, name="sparcom-assemble", daemon=True)
        self._thread.start()

    def append_rows(self, step: StepRows) -> None:
        """Hand a step's rows over; waits while more than the bound is queued. They must not change until `done`.

        Rows that come after the end (an error, or `finish` and all is on disk) are dropped: nobody takes them any more.
        """
        if self._queue_up(step):
            self._rows += sum(segment.rows for segment in step.segments)

    def append_counts(self, counted: CountedRows) -> None:
        """Hand counts over that a device has made; waits and drops as `put` does."""
        self._queue_up(counted)

    def _queue_up(self, item: StepRows | CountedRows) -> bool:
        with self._room:
            started = time.monotonic()
            while self._queued_bytes and self._queued_bytes + item.nbytes > self._queue_bytes and not self._over:
                self._room.wait(timeout=1.0)
            self.backpressure_seconds += time.monotonic() - started
            over = self._over
            if not over:
                self._queued_bytes += item.nbytes
                self._queue.put(item)
        if over:
            item.done()
        return not over

    @property
    def _over(self) -> bool:
        return self._error is not None or self._drained.is_set()

    def finish_requests(self, finished: list[FinishedRequest]) -> None:
        """Say that instructions have run. Their rows were put before."""
        self._queue.put(finished)

    def end_input(self) -> None:
        """Say that nothing more comes: what is open is written as it is."""
        self._finishing = True
        self._queue.put(None)

    def fail(self, reason: str, kind: str = "capture") -> None:
        """End the session with a reason that every poll reports. kind: `capture`, or `storage` where writing failed."""
        with self._room:
            self._error = self._error or SessionError(kind, reason)
            self._room.notify_all()

    def poll(self) -> PollReply:
        """Return what happened to instructions since the previous poll."""
        drained, error = self._drained.is_set(), self._error  # before the outcome: it may grow until drained is set
        with self._lock:
            outcome, self._outcome = self._outcome, _Outcome()
        return PollReply(
            completed=tuple(outcome.completed),
            failed=tuple(outcome.failed),
            error=error,
            drained=drained,
            backpressure_seconds=self.backpressure_seconds,
            rows=self._rows,
        )

    def close(self) -> None:
        """End the threads. Where `finish` was not said, nobody commits what is open: it is dropped, not waited for."""
        if not self._finishing:
            self.fail("the session was closed before it was finished")
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
            self._sink.close()
            with self._room:
                self._drained.set()
                self._room.notify_all()
            self._drop_the_rest()

    def _assemble(self) -> None:
        while (item := self._next_item()) is not None:
            if isinstance(item, list):
                if not self._error:
                    for finished in item:
                        self._settle(finished)
            else:
                try:
                    self._take(item)
                finally:
                    self._release(item)
            self._report_durable()
        if not self._error:
            self._sink.flush()
            self._report_durable()

    def _next_item(self) -> StepRows | CountedRows | list[FinishedRequest] | None:
        """The next item, reporting what became durable while there is none."""
        while True:
            try:
                return self._queue.get(timeout=IDLE_SECONDS if self._finished else None)
            except queue.Empty:
                self._report_durable()

    def _release(self, item: StepRows | CountedRows) -> None:
        item.done()
        with self._room:
            self._queued_bytes -= item.nbytes
            self._room.notify_all()

    def _drop_the_rest(self) -> None:
        """Give back what is still queued after the end; `put` lets nothing more in."""
        while not self._queue.empty():
            item = self._queue.get()
            if isinstance(item, StepRows | CountedRows):
                self._release(item)

    def _take(self, item: StepRows | CountedRows) -> None:
        if self._error:
            return
        if isinstance(item, StepRows):
            self._take_rows(item)
        elif not self._settled[item.index]:
            self._sink.take_counts(item.index, item.rows, item.counts, item.last)

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
            fault, earlier = step.faults.get(segment.index), self._faults.get(segment.index)
            if fault is not None and (earlier is None or fault.offset < earlier.offset):
                self._faults[segment.index] = fault
            if step.arrays:
                self._sink.take(segment, {name: array[source] for name, array in step.arrays.items()})

    def _settle(self, item: FinishedRequest) -> None:
        if self._settled[item.index]:
            return
        tracker = self._trackers.pop(item.index, None) or _Tracker.empty(item.capacity)
        fault = self._faults.pop(item.index, None)
        self._settled[item.index] = True
        if item.length < 0:
            self._sink.forget(item)
            return
        reason = tracker.missing(item.length)
        if fault is not None and fault.offset < item.length:  # a row past the end is nobody's
            reason = fault.reason
        if reason is None:
            reason = self._sink.finish(item, tracker.written)
        else:
            self._sink.forget(item)
        if reason is None:
            rows = slice(0, item.length)
            self._finished[item.index] = _Finished(item, tracker.ids[rows].tobytes(), tracker.positions[rows].tobytes())
        else:
            with self._lock:
                self._outcome.failed.append(FailedInstruction(item.index, reason))

    def _report_durable(self) -> None:
        if self._error:
            return
        durable = [(index, item) for index, item in self._finished.items() if self._sink.durable(item.item)]
        with self._lock:
            for index, item in durable:
                del self._finished[index]
                self._outcome.completed.append(DurableInstruction(index, item.ids, item.positions))
