"""Write one archive from one worker: takes per-step rows, reports finished instructions.

    append_rows                ─┬─ queue ──▶ assembler thread: rows to the sink, ids to a tracker
    finish_requests, end_input ─┘            all rows written and valid? all chunks on disk? ──▶ poll, each once

The queue is bounded in bytes: if storage is slower than the model, `append_rows` waits. An error ends the session, not
the engine: later rows are dropped, and every poll reports it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from sparcom_data.errors import SparcomError
from sparcom_extractor.protocol import (
    DurableInstruction,
    FailedInstruction,
    FinishedRequest,
    PollReply,
    SessionError,
    storage_kind,
)
from sparcom_extractor.writer.chunks import buffers_for
from sparcom_extractor.writer.rows import CountedRows, StepRows
from sparcom_extractor.writer.settled import NOTHING_SETTLED, Settled
from sparcom_extractor.writer.sinks import CountSink, MaskSink
from sparcom_extractor.writer.targets import ArrayPart, WriteFile
from sparcom_extractor.writer.tokens import RunningTokens

logger = logging.getLogger(__name__)

QUEUE_BYTES = 256 << 20
BUFFER_BYTES = 256 << 20
MAX_BUFFERS = 64
THREADS = 8
IDLE_SECONDS = 0.02

_Item = StepRows | CountedRows | list[FinishedRequest]


class CaptureSession:
    """Writes one archive.

    parts: this process's parts of all arrays. instructions: their number in the archive. threads: of the writer.
    requests: maximum number of running requests, each with its own open chunks, which grow by one row per step.
    queue_bytes: bound of the queue. buffer_bytes: memory for chunks, exceeded if `requests` need more.
    write: writes one file durably; `write_durably` if None.
    settled: instructions that an earlier session has ended.
    stores_counts: whether the archive holds counts instead of masks.
    queued_bytes: bytes in the queue. backpressure_seconds: total time that `append_rows` waited.
    """

    def __init__(
        self,
        parts: Sequence[ArrayPart],
        instructions: int,
        *,
        requests: int = 0,
        queue_bytes: int = QUEUE_BYTES,
        buffer_bytes: int = BUFFER_BYTES,
        threads: int = THREADS,
        write: WriteFile | None = None,
        settled: Settled = NOTHING_SETTLED,
    ) -> None:
        buffers = max(4, min(MAX_BUFFERS, buffer_bytes // sum(part.target.chunk_bytes for part in parts)))
        if requests:
            buffers = max(buffers, buffers_for(requests, threads))
        self.stores_counts = any(part.holds_counts for part in parts)
        self.queued_bytes = 0
        self.backpressure_seconds = 0.0
        sink_type = CountSink if self.stores_counts else MaskSink
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="sparcom-write")
        self._archives = {part.target.archive for part in parts if part.target.archive}
        self._sink = sink_type(parts, self._pool, settled, buffers=buffers, threads=threads, write=write)
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()  # None: no more input
        self._queue_bytes = queue_bytes
        self._room = threading.Condition()
        self._rows = 0
        self._tokens = RunningTokens(instructions)
        self._ended = np.zeros(instructions, dtype=bool)
        self._ended[settled.instructions] = True
        self._not_durable: dict[int, DurableInstruction] = {}
        self._completed: deque[DurableInstruction] = deque()
        self._failed: deque[FailedInstruction] = deque()
        self._error: SessionError | None = None
        self._input_ended = self._drained = self._over = False
        self._thread = threading.Thread(target=self._run, name="sparcom-assemble", daemon=True)
        self._thread.start()

    def append_rows(self, item: StepRows | CountedRows) -> None:
        """Queue the rows of a step, or counts from a device; wait for room. The arrays must not change until
        `item.done` is called. After an error, or when everything is on disk, rows are dropped."""
        with self._room:
            started = time.monotonic()
            while not self._over and self.queued_bytes and self.queued_bytes + item.nbytes > self._queue_bytes:
                self._room.wait(timeout=1.0)
            self.backpressure_seconds += time.monotonic() - started
            if not self._over:
                self.queued_bytes += item.nbytes
                self._queue.put(item)
                return
        item.done()

    def finish_requests(self, finished: list[FinishedRequest]) -> None:
        """Report that instructions have run. All their rows were appended before."""
        self._queue.put(finished)

    def end_input(self) -> None:
        """Report the end of input. Open chunks are written as they are."""
        self._input_ended = True
        self._queue.put(None)

    def fail(self, reason: str, kind: str = "capture") -> None:
        """End the session with an error that every poll reports; the first one stays. kind: see `SessionError`."""
        with self._room:
            self._error = self._error or SessionError(kind, reason)
            self._over = True
            self._room.notify_all()

    def poll(self) -> PollReply:
        """Return the events since the previous poll, and totals."""
        drained, error = self._drained, self._error  # read first: instructions may complete until it is drained
        return PollReply(
            completed=tuple(self._completed.popleft() for _ in range(len(self._completed))),
            failed=tuple(self._failed.popleft() for _ in range(len(self._failed))),
            error=error,
            drained=drained,
            backpressure_seconds=self.backpressure_seconds,
            rows=self._rows,
            read_backs=self._sink.read_backs,
            written_bytes=self._sink.written_bytes,
        )

    def close(self) -> None:
        """Stop the threads. Without `end_input`, open chunks are dropped: nothing would commit them."""
        if not self._input_ended:
            self.fail("the session was closed before it was finished")
        self._queue.put(None)
        self._thread.join()
        for archive in self._archives:
            archive.folder.unlock()

    def _run(self) -> None:
        try:
            self._assemble()
        except (SparcomError, OSError) as error:
            self.fail(str(error), storage_kind(error))
        except Exception as error:  # the thread ends: every poll reports it, which ends the job
            logger.exception("the capture session failed")
            self.fail(f"writing the archive failed: {type(error).__name__}: {error}")
        finally:
            self._pool.shutdown()  # waits for writes that have begun
            with self._room:
                self._drained = self._over = True
                self._room.notify_all()
            while not self._queue.empty():  # `_over` lets no more in
                self._release(self._queue.get())

    def _assemble(self) -> None:
        while (item := self._next_item()) is not None:
            try:
                if not self._error:
                    self._handle(item)
            finally:
                self._release(item)
            self._report_durable()
        if not self._error:
            self._sink.flush()
            self._report_durable()

    def _next_item(self) -> _Item | None:
        try:
            return self._queue.get(timeout=IDLE_SECONDS if self._not_durable else None)
        except queue.Empty:
            return []  # so that `_assemble` reports durable instructions

    def _release(self, item: _Item | None) -> None:
        if isinstance(item, StepRows | CountedRows):
            item.done()
            with self._room:
                self.queued_bytes -= item.nbytes
                self._room.notify_all()

    def _handle(self, item: _Item) -> None:
        if isinstance(item, StepRows):
            self._rows += int(item.ranges["rows"].sum())
            ended = self._ended[item.ranges["index"]]  # the scheduler may run one step past a request's end
            ranges = item.ranges[~ended] if ended.any() else item.ranges
            self._tokens.record_rows(ranges, item)
            if item.arrays:
                self._sink.append_rows(ranges, item.arrays)
        elif isinstance(item, CountedRows):
            if not self._ended[item.index]:
                self._sink.append_counts(item)
        else:
            for finished in item:
                if not self._ended[finished.index]:
                    self._finish_request(finished)

    def _finish_request(self, item: FinishedRequest) -> None:
        self._ended[item.index] = True
        if item.length < 0:
            self._tokens.take(item.index, 0)
            self._sink.end_instruction(item)
            return
        tokens, written, reason = self._tokens.take(item.index, item.length)
        if reason:
            self._sink.end_instruction(item)
        else:
            reason = self._sink.complete_instruction(item, written)
        if reason:
            self._failed.append(FailedInstruction(item.index, reason))
            return
        self._not_durable[item.index] = DurableInstruction(item.index, *(values.tobytes() for values in tokens))

    def _report_durable(self) -> None:
        if not self._error:
            self._completed.extend(self._not_durable.pop(index) for index in self._sink.take_durable())
