"""Send the rows of every step to the sessions of their requests.

    before_step   add new plans; remove ended requests and send their counts; zero write counters and flags
    after_step    map rows to instructions ─▶ transfer queue ─▶ checks ─▶ session
                  with counters on the device: add the new rows to them; sessions that count get no masks

Nothing here waits for a device. A step costs a fixed number of column operations, one copy of the rows, and one look-up
per request. Checks need values on the host, so they run on delivery, for a device on another thread. They check that
positions match the layout, that every layer wrote all rows exactly once, and that every gate is finite.
`finish_requests` and `end_input` reach a session through the same queue, after the rows sent before them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_extractor.capture.counters import DeviceCounters
from sparcom_extractor.capture.ops.step_buffers import StepBuffers, check_write_counters
from sparcom_extractor.capture.requests import NO_COUNTER, RunningRequests, plan_of
from sparcom_extractor.capture.rows import captured_runs, check_positions, find_faults, split_by_session
from sparcom_extractor.capture.transfer.queue import Arrays, Done, TransferQueue
from sparcom_extractor.protocol import FinishedRequest, PollReply
from sparcom_extractor.vllm_surface.runner import BatchRows, SchedulerOutputLike
from sparcom_extractor.writer.rows import CountedRows, StepRows
from sparcom_extractor.writer.session import CaptureSession


class StepCapture:
    """Plans of running requests, and the sessions that receive their rows.
    buffers: written by the model during a step. queue: from the buffers to the sessions.
    counters: on the device; None if sessions count on the host. layer_names: per write counter, for errors."""

    def __init__(self, buffers: StepBuffers, queue: TransferQueue, counters: DeviceCounters | None = None) -> None:
        self.buffers, self.queue, self.counters = buffers, queue, counters
        self._arrays = buffers.arrays()
        self._layers = buffers.widths.columns()
        self.layer_names = [str(layer) for layer in self._layers]
        self._padded = buffers.write_counters.device.type != "cpu"
        self._requests = RunningRequests()
        self._sessions: dict[str, CaptureSession] = {}
        self._backpressure_before: dict[str, float] = {}  # the queue's total when each session began

    @property
    def open_sessions(self) -> tuple[str, ...]:
        """Names of the sessions that are open."""
        return tuple(self._sessions)

    @property
    def active(self) -> bool:
        """Whether any running request is captured."""
        return bool(self._requests)

    def before_step(self, scheduled: SchedulerOutputLike) -> None:
        """Add the plans of new requests and remove requests that ended."""
        requests = self._requests
        for _, slot in requests.planned(scheduled.preempted_req_ids or ()):
            self._restart(slot)
        for request, slot in requests.planned(scheduled.finished_req_ids):
            self._send_counts(slot)
            requests.remove(request)
        for new in scheduled.scheduled_new_reqs:
            plan = plan_of(new)
            if plan is not None and plan.session in self._sessions:
                for _, slot in requests.planned([new.req_id]):  # preempted: model runner V2 reports it as new
                    self._restart(slot)
                requests.add(new.req_id, plan, self._sessions[plan.session])
        if self.active:
            self.queue.launch(self.buffers.clear)

    def after_step(self, batch: BatchRows) -> None:
        """Send the rows that the step computed for captured requests."""
        if not self.active:
            return
        runs = captured_runs(batch, self._requests)
        if not len(runs):
            return
        first, stop = int(runs["source"].min()), int((runs["source"] + runs["rows"]).max())
        session_runs = split_by_session(runs, self._requests, first)
        flags = self.buffers.nonfinite[first:stop]
        parts = [batch.ids[first:stop], batch.positions[first:stop], self.buffers.write_counters, flags]
        if not all(self._counts_on_device(session) for session, _ in session_runs):
            parts.extend(array[first:stop] for array in self._arrays.values())
        if self.counters is not None:
            self._count(runs, self.counters)
        expected = batch.expected_positions()[first:stop]
        self.queue.send(parts, partial(self._deliver, session_runs, expected, batch.count))

    def open(self, name: str, session: CaptureSession) -> None:
        """Open a session: send it the rows of plans with its name."""
        self._sessions[name] = session
        self._backpressure_before[name] = self.queue.backpressure_seconds

    def poll(self, name: str) -> PollReply:
        """Return the session's `PollReply`, with the time that steps waited. Raises the error of a failed transfer."""
        self.queue.check()
        reply = self._sessions[name].poll()
        if self.queue.delivers_in_step:  # the session measured the wait itself
            return reply
        return replace(reply, backpressure_seconds=self.queue.backpressure_seconds - self._backpressure_before[name])

    def finish_requests(self, name: str, finished: list[FinishedRequest]) -> None:
        """Report to a session that instructions have run, after the rows sent before."""
        session, indices = self._sessions[name], {item.index for item in finished}
        for _, slot in self._requests.of_session(session):
            if int(self._requests.table["index"][slot]) in indices:
                self._send_counts(slot)
        self._send_call(partial(session.finish_requests, finished))

    def end_input(self, name: str) -> None:
        """Report to a session that no more rows follow, after the rows sent before."""
        for _, slot in self._requests.of_session(self._sessions[name]):
            self._send_counts(slot)
        self._send_call(self._sessions[name].end_input)

    def close(self, name: str) -> None:
        """Close a session. Rows that still arrive for it are dropped."""
        session = self._sessions.pop(name, None)
        if session is not None:
            del self._backpressure_before[name]
            for request, slot in self._requests.of_session(session):
                self._release_counter(slot)
                self._requests.remove(request)
            session.close()

    def shutdown(self) -> None:
        """Deliver pending rows and stop all threads."""
        self.queue.close()
        for name in self.open_sessions:
            self.close(name)

    def _counts_on_device(self, session: CaptureSession) -> bool:
        return session.stores_counts and self.counters is not None

    def _deliver(
        self,
        session_runs: Sequence[tuple[CaptureSession, NDArray[Any]]],
        expected: NDArray[np.int64],
        count: int,
        arrays: Arrays,
        done: Done,
    ) -> None:
        """Check a step's arrays and pass them to the sessions. A failed check ends these sessions, not the engine."""
        ids, positions, counters, nonfinite = arrays[:4]
        try:
            check_write_counters(counters, count, self.layer_names, padded=self._padded)
            check_positions(expected, positions)
        except RuntimeError as error:
            problem = self.buffers.problem
            for session, _ in session_runs:
                session.fail(f"{error}. {problem}" if problem else str(error))
            done()
            return
        done = _after_calls(len(session_runs), done)
        captured = dict(zip(self._arrays, arrays[4:], strict=False))  # none if all sessions count on the device
        for session, ranges in session_runs:
            faults = find_faults(self._layers, ranges, nonfinite, positions)
            masks = {} if self._counts_on_device(session) else captured
            session.append_rows(StepRows(ranges, masks, ids, positions, done, faults))

    def _send_call(self, call: Callable[[], object]) -> None:
        def deliver(_arrays: Arrays, done: Done) -> None:
            call()
            done()

        self.queue.send([], deliver)

    def _count(self, runs: NDArray[Any], device: DeviceCounters) -> None:
        """Add the rows not counted before to the counters of their requests."""
        table = self._requests.table
        runs = runs[[session.stores_counts for session in table["session"][runs["slot"]]]]
        new = np.minimum(runs["position"] + runs["rows"] - table["counted"][runs["slot"]], runs["rows"])
        runs, new = runs[new > 0], new[new > 0]
        if not len(new):
            return
        slots, stop = runs["slot"], runs["source"] + runs["rows"]
        without = slots[table["counter"][slots] == NO_COUNTER]
        if len(without):
            table["counter"][without] = device.take(len(without))
        counters = table["counter"][slots]
        device.add_rows(stop - new, new, counters)
        # After a gap `counted` stays too low, so the final number of counted rows reveals the gap.
        table["counted"][slots] += new
        length_unknown = table["length_unknown"][slots] != 0
        if length_unknown.any():
            device.keep_last((stop - 1)[length_unknown], counters[length_unknown])
        for slot in slots[(table["counted"] == table["end"])[slots] & ~length_unknown].tolist():
            self._send_counts(slot)

    def _send_counts(self, slot: int) -> None:
        """Send the counts of a request, if it has a counter."""
        request = self._requests.table[slot]
        if self.counters is not None and request["counter"] != NO_COUNTER:
            session, counter = request["session"], int(request["counter"])
            counted = partial(CountedRows, int(request["index"]), int(request["counted"] - request["begin"]))
            self.counters.send(counter, lambda arrays, done: session.append_rows(counted(arrays[0], arrays[1], done)))
        self._release_counter(slot)

    def _restart(self, slot: int) -> None:
        """Discard the counts of a preempted request: vLLM recomputes its rows."""
        self._release_counter(slot)
        self._requests.table["counted"][slot] = self._requests.table["begin"][slot]

    def _release_counter(self, slot: int) -> None:
        request = self._requests.table[slot]
        if self.counters is not None and request["counter"] != NO_COUNTER:
            self.counters.give_back(int(request["counter"]))
            request["counter"] = NO_COUNTER


def _after_calls(calls: int, done: Done) -> Done:
    """Return a thread-safe function that calls `done` on the last of `calls` calls."""
    lock, left = threading.Lock(), calls

    def give_back() -> None:
        nonlocal left
        with lock:
            left -= 1
            last = not left
        if last:
            done()

    return give_back
