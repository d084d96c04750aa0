"""Server-sent events of one job: the whole job each time, so that a client that reconnects has missed nothing.

The text format is the WHATWG's: `event:` and `data:` lines, a blank line after each event, a colon line to keep the
connection open. It is written here because the usual package replaces a method of uvicorn's server at import.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from sparcom_server.errors import BusyError
from sparcom_server.jobs.queue import Job
from sparcom_server.schemas import JobReport

MEDIA_TYPE = "text/event-stream"
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the second tells nginx not to hold events back


class EventStreams:
    """The event streams that are open, at most so many. Used on the event loop alone."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.open = 0

    def response(self, content: AsyncIterator[str]) -> StreamingResponse:
        """The answer that streams these events.

        Raises:
            BusyError: as many streams are open as may be.
        """
        if self.open >= self.most:
            raise BusyError(
                f"at most {self.most} event streams may be open, and as many are; ask for the job itself instead, or "
                "have the operator raise max_event_streams"
            )
        return _Stream(self, content)


class _Stream(StreamingResponse):
    def __init__(self, streams: EventStreams, content: AsyncIterator[str]) -> None:
        super().__init__(content, media_type=MEDIA_TYPE, headers=HEADERS)
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._streams.open += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.open -= 1


async def job_events(
    job: Job, describe: Callable[[Job], JobReport], interval: float, keep_alive: float
) -> AsyncIterator[str]:
    """Yield the job as event `progress` whenever it has changed, and as event `end` once it has ended.

    Args:
        job: what is watched.
        describe: makes the report that clients see.
        interval: shortest time between two events, seconds.
        keep_alive: longest silence, seconds.
    """
    last, silent = "", 0.0
    while True:
        ended = job.ended.is_set()
        report = describe(job).model_dump_json()
        if report != last:
            yield _event("progress", report)
            last, silent = report, 0.0
        elif silent >= keep_alive:
            yield ": keep-alive\n\n"
            silent = 0.0
        if ended:
            yield _event("end", report)
            return
        await _wait(job.ended, interval)
        silent += interval


async def _wait(ended: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(ended.wait(), seconds)
    except TimeoutError:
        return


def _event(name: str, data: str) -> str:
    """One event; JSON as pydantic writes it has no line break, so one data line holds it."""
    return f"event: {name}\ndata: {data}\n\n"
