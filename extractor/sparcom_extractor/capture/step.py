"""After every step: take the rows of captured requests out of the step's buffer and hand them to their session.

A request says where its rows go with the plan in its `extra_args`:

    {"sparcom": {"session": str, "index": int, "row": int, "begin": int, "end": int}}

Position p of the request, begin <= p < end, is row `row + p - begin` of the token axis. Requests without a plan are
left alone. The work of a step is a few operations a request and one copy of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparcom_extractor.capture import PLAN_KEY
from sparcom_extractor.capture.op import CaptureBuffer
from sparcom_extractor.capture.rows import BatchRows
from sparcom_extractor.writer.session import CaptureSession, Segment, StepRows


@dataclass(frozen=True, slots=True)
class RequestPlan:
    """Where one request's rows go; see the module."""

    session: str
    index: int
    row: int
    begin: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.begin <= self.end or min(self.row, self.index) < 0:
            raise ValueError(f"a plan has 0 <= begin <= end and row, index >= 0; got {self}")


class StepCapture:
    """The plans of running requests, the sessions they write to, and the buffer they come from."""

    def __init__(self, buffer: CaptureBuffer) -> None:
        self._buffer = buffer
        self._plans: dict[str, RequestPlan] = {}
        self.sessions: dict[str, CaptureSession] = {}

    def before_step(self, scheduler_output: Any) -> None:
        """Learn the plans of requests that are new and forget those of requests that ended."""
        for request in scheduler_output.finished_req_ids:
            self._plans.pop(request, None)
        for request in scheduler_output.scheduled_new_reqs:
            extra = getattr(request.sampling_params, "extra_args", None) or {}
            if PLAN_KEY in extra:
                self._plans[request.req_id] = RequestPlan(**extra[PLAN_KEY])

    @property
    def active(self) -> bool:
        """Whether any running request is captured."""
        return bool(self._plans)

    def after_step(self, batch: BatchRows) -> None:
        """Hand over the rows that the step computed for captured requests.

        A step whose rows cannot be trusted ends the sessions that it belongs to; the engine goes on.
        """
        segments = self._segments(batch)
        if not segments:
            return
        try:
            self._buffer.check_step()
            batch.check()
        except RuntimeError as error:
            for name in segments:
                self.sessions[name].fail(str(error))
            return
        for name, planned in segments.items():
            self.sessions[name].put(self._rows(batch, planned))

    def _segments(self, batch: BatchRows) -> dict[str, list[Segment]]:
        """The captured runs of rows of a step by session; `source` counts rows of the step."""
        by_session: dict[str, list[Segment]] = {}
        starts, firsts = batch.start.tolist(), batch.first_position.tolist()
        for number, request in enumerate(batch.request_ids):
            plan = self._plans.get(request)
            if plan is None or plan.session not in self.sessions:
                continue
            first, count = firsts[number], starts[number + 1] - starts[number]
            begin, end = max(first, plan.begin), min(first + count, plan.end)
            if begin < end:
                by_session.setdefault(plan.session, []).append(
                    Segment(
                        index=plan.index,
                        row=plan.row,
                        capacity=plan.end - plan.begin,
                        source=starts[number] + begin - first,
                        rows=end - begin,
                        offset=begin - plan.begin,
                    )
                )
        return by_session

    def _rows(self, batch: BatchRows, segments: list[Segment]) -> StepRows:
        """Copies of the step's arrays from the first to the last captured row."""
        first = segments[0].source
        stop = max(segment.source + segment.rows for segment in segments)
        moved = [
            Segment(item.index, item.row, item.capacity, item.source - first, item.rows, item.offset)
            for item in segments
        ]
        return StepRows(
            segments=moved,
            masks=np.array(self._buffer.rows(stop)[first:]),
            ids=batch.ids[first:stop],
            positions=batch.positions[first:stop],
        )
