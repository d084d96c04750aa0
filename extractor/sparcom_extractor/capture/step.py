"""Around every step: send the rows of captured requests on their way to the session that each belongs to.

    before_step   learn new plans, forget ended requests (their counters leave); write counters and flags begin at 0
    after_step    which rows of the step belong to which instruction ─▶ outbox ─▶ checks ─▶ session
                  where counters are on the device: add the new rows to them; masks stay there

The work of a step is a fixed number of operations over columns, one copy of the rows, and a look-up a request. What
needs the values on the host is done on delivery, which on a device is in another thread: are the positions those of the
layout? Did every layer write once, and all rows? Is every gate a finite number? Words to a session (settle, finish)
travel the same way, behind the rows that were sent before them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparcom_extractor.capture.nonfinite import NonfiniteRows
from sparcom_extractor.capture.ops.buffer import check_writes
from sparcom_extractor.capture.ops.buffers import StepBuffers
from sparcom_extractor.capture.requests import NO_SLOT, RunningRequests, plan_of
from sparcom_extractor.capture.rows import BatchRows, check_positions
from sparcom_extractor.capture.transfer.outbox import Arrays, Done, Outbox
from sparcom_extractor.protocol import FinishedRequest, PollReply
from sparcom_extractor.writer.rows import CountedRows, RowRange, StepRows
from sparcom_extractor.writer.session import CaptureSession

if TYPE_CHECKING:
    from sparcom_extractor.capture.counters import DeviceCounters  # its kernels need Triton


@dataclass(frozen=True, slots=True)
class _Captured:
    """Runs of captured rows of one step, int64 (runs,) each.

    line: of the request. source: first row within the step. rows: how many. position: of the first row.
    """

    line: NDArray[np.int64]
    source: NDArray[np.int64]
    rows: NDArray[np.int64]
    position: NDArray[np.int64]

    def where(self, chosen: NDArray[np.bool_]) -> _Captured:
        """Some of the runs."""
        return _Captured(self.line[chosen], self.source[chosen], self.rows[chosen], self.position[chosen])


@dataclass(frozen=True, slots=True)
class _Share:
    """What one session gets of a step: segments as columns, see `Segment`."""

    session: CaptureSession
    columns: tuple[NDArray[np.int64], ...]
    prompts: NDArray[np.int64]  # tokens of each run's prompt, or -1

    def segments(self) -> list[RowRange]:
        return [RowRange(*values) for values in zip(*(column.tolist() for column in self.columns), strict=True)]


class StepCapture:
    """The plans of running requests, the sessions they write to, and the way there.

    Args:
        buffers: where the graph writes what it captures of a step.
        outbox: the way off their device.
    """

    def __init__(self, buffers: StepBuffers, outbox: Outbox) -> None:
        arrays = buffers.arrays()
        self.buffers = buffers
        self._names, self._arrays = tuple(arrays), tuple(arrays.values())
        self._outbox = outbox
        self._requests = RunningRequests()
        self._padded = buffers.writes.device.type != "cpu"
        self._layers = [str(name) for name in buffers.widths.columns()]
        self._nonfinite = NonfiniteRows(buffers.widths.columns())
        self._waited_before: dict[str, float] = {}
        self.counters: DeviceCounters | None = None
        self.sessions: dict[str, CaptureSession] = {}

    def before_step(self, scheduler_output: Any) -> None:
        """Learn the plans of requests that are new and forget those of requests that ended."""
        for _, line in self._requests.known(getattr(scheduler_output, "preempted_req_ids", None) or ()):
            self._start_over(line)
        for request, line in self._requests.known(scheduler_output.finished_req_ids):
            self._send_counts(line)
            self._requests.remove(request)
        for request in scheduler_output.scheduled_new_reqs:
            plan = plan_of(request)
            if plan is not None:
                for _, line in self._requests.known([request.req_id]):
                    self._start_over(line)
                self._requests.add(request.req_id, plan)
        if self.active:
            self._outbox.launch(self.buffers.clear)

    @property
    def active(self) -> bool:
        """Whether any running request is captured."""
        return bool(self._requests)

    def after_step(self, batch: BatchRows) -> None:
        """Send the rows that the step computed for captured requests."""
        if not self.active:
            return
        captured = self._captured(batch)
        if not len(captured.line):
            return
        first, stop = int(captured.source.min()), int((captured.source + captured.rows).max())
        shares = self._shares(captured, first)
        if not shares:
            return
        buffers = self.buffers
        parts = [batch.ids[first:stop], batch.positions[first:stop], buffers.writes, buffers.flags[first:stop]]
        if self.counters is None or any(not share.session.stores_counts for share in shares):
            parts.extend(array[first:stop] for array in self._arrays)
        if self.counters is not None:
            self._count(captured)
        expected = batch.expected_positions()[first:stop]
        self._outbox.send(parts, partial(self._deliver, shares, expected, batch.count))

    def open(self, name: str, session: CaptureSession) -> None:
        """From now on rows whose plan names this session go to it."""
        self.sessions[name] = session
        self._waited_before[name] = self._outbox.backpressure_seconds

    def poll(self, session: str) -> PollReply:
        """What became of a session's instructions, see `CaptureSession.poll`; waited_seconds: how long steps waited.

        Raises:
            RuntimeError: rows could not be brought off the device.
        """
        self._outbox.check()
        answer = self.sessions[session].poll()
        if not self._outbox.delivers_in_step:
            waited = self._outbox.backpressure_seconds - self._waited_before[session]
            return replace(answer, backpressure_seconds=waited)
        return answer

    def finish_requests(self, session: str, finished: list[FinishedRequest]) -> None:
        """Tell a session that instructions have run, behind the rows that were sent before."""
        ran = {item.index for item in finished}
        index = self._requests.column("index")
        for _, line in self._requests.of_session(session):
            if int(index[line]) in ran:
                self._send_counts(line)
        self._tell(partial(self.sessions[session].finish_requests, finished))

    def end_input(self, session: str) -> None:
        """Tell a session that nothing more comes, behind all that was sent before."""
        for _, line in self._requests.of_session(session):
            self._send_counts(line)
        self._tell(self.sessions[session].end_input)

    def close(self, session: str) -> None:
        """Forget a session; rows that still come for it are dropped."""
        closing = self.sessions.pop(session, None)
        self._waited_before.pop(session, None)
        for request, line in self._requests.of_session(session):
            self._start_over(line)
            self._requests.remove(request)
        self._requests.forget(session)
        if closing is not None:
            closing.close()

    def shutdown(self) -> None:
        """Deliver what was sent and end all threads."""
        self._outbox.close()
        for name in list(self.sessions):
            self.close(name)

    def _captured(self, batch: BatchRows) -> _Captured:
        """The rows of a step that are within a plan."""
        line = self._requests.lines(batch.request_ids)
        begin, end = self._requests.column("begin")[line], self._requests.column("end")[line]
        first = batch.first_position
        position = np.maximum(first, begin)
        rows = np.minimum(first + np.diff(batch.start), end) - position
        captured = _Captured(line, batch.start[:-1] + position - first, rows, position)
        return captured.where((line >= 0) & (rows > 0))

    def _shares(self, captured: _Captured, first: int) -> list[_Share]:
        """The runs of each session that is open; their `source` counts from row `first` of the step."""
        requests, shares = self._requests, []
        owner = requests.column("session")[captured.line]
        for number in np.unique(owner).tolist():
            session = self.sessions.get(requests.name(number))
            if session is None:
                continue
            own = captured.where(owner == number)
            begin = requests.column("begin")[own.line]
            columns = (
                requests.column("index")[own.line],
                requests.column("row")[own.line],
                requests.column("end")[own.line] - begin,
                own.source - first,
                own.rows,
                own.position - begin,
            )
            shares.append(_Share(session, columns, requests.column("prompt")[own.line]))
        return shares

    def _deliver(
        self, shares: Sequence[_Share], expected: NDArray[np.int64], count: int, arrays: Arrays, done: Done
    ) -> None:
        """Check what came and hand it over. Rows that cannot be trusted end their sessions; the engine goes on."""
        ids, positions, writes, flags = arrays[:4]
        try:
            check_writes(writes, count, self._layers, padded=self._padded)
            check_positions(expected, positions)
        except RuntimeError as error:
            problem = self.buffers.problem
            for share in shares:
                share.session.fail(f"{error}. {problem}" if problem else str(error))
            done()
            return
        lease, captured = _Lease(done, len(shares)), dict(zip(self._names, arrays[4:], strict=False))
        for share in shares:
            segments, rows = share.segments(), {} if share.session.stores_counts and self.counters else captured
            faults = self._nonfinite.find(segments, share.prompts, flags, positions)
            share.session.append_rows(StepRows(segments, rows, ids, positions, lease.give_back, faults))

    def _tell(self, word: Any) -> None:
        def deliver(_arrays: Arrays, done: Done) -> None:
            word()
            done()

        self._outbox.send([], deliver)

    def _count(self, captured: _Captured) -> None:
        """Add the rows that were not added before to the counters of their requests."""
        assert self.counters is not None  # noqa: S101
        column = self._requests.column
        own = captured.where(self._counting(captured.line))
        counted = column("counted")[own.line]
        new = own.position + own.rows - counted
        own, counted, new = own.where(new > 0), counted[new > 0], new[new > 0]
        if not len(new):
            return
        fresh = own.line[column("slot")[own.line] == NO_SLOT]
        if len(fresh):
            column("slot")[fresh] = self.counters.take(len(fresh))
        slots = column("slot")[own.line]
        self.counters.add(own.source + own.rows - np.minimum(new, own.rows), np.minimum(new, own.rows), slots)
        # A gap leaves `counted` behind, so that the number of rows counted tells of it at the end.
        column("counted")[own.line] = counted + np.minimum(new, own.rows)
        unsure = column("length_unknown")[own.line] != 0
        if unsure.any():
            self.counters.keep_last((own.source + own.rows - 1)[unsure], slots[unsure])
        for line in own.line[(column("counted") == column("end"))[own.line] & ~unsure].tolist():
            self._send_counts(line)

    def _counting(self, line: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the lines belong to an open session that counts."""
        numbers = [self._requests.number(name) for name, session in self.sessions.items() if session.stores_counts]
        chosen: NDArray[np.bool_] = np.isin(self._requests.column("session")[line], numbers)
        return chosen

    def _send_counts(self, line: int) -> None:
        """Let the counters of a request leave, if it holds any."""
        slot = int(self._requests.column("slot")[line])
        if slot == NO_SLOT or self.counters is None:
            return
        session = self.sessions.get(self._requests.name(int(self._requests.column("session")[line])))
        if session is not None:
            index = int(self._requests.column("index")[line])
            rows = int((self._requests.column("counted") - self._requests.column("begin"))[line])
            self.counters.send(slot, partial(_deliver_counts, session, index, rows))
        self._requests.column("slot")[line] = NO_SLOT
        self.counters.give_back(slot)

    def _start_over(self, line: int) -> None:
        """A preempted request computes its rows again: what was counted is thrown away."""
        slot = int(self._requests.column("slot")[line])
        if slot != NO_SLOT and self.counters is not None:
            self.counters.give_back(slot)
        self._requests.column("slot")[line] = NO_SLOT
        self._requests.column("counted")[line] = self._requests.column("begin")[line]


def _deliver_counts(session: CaptureSession, index: int, rows: int, arrays: Arrays, done: Done) -> None:
    session.append_counts(CountedRows(index, rows, arrays[0], arrays[1], done))


class _Lease:
    """Calls `done` when each of so many receivers has called it."""

    def __init__(self, done: Done, receivers: int) -> None:
        self._done = done
        self._left = receivers
        self._lock = threading.Lock()  # receivers are threads

    def give_back(self) -> None:
        with self._lock:
            self._left -= 1
            last = not self._left
        if last:
            self._done()
