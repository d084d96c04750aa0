"""Server-sent events of one job. Each event carries the whole job, so a client that reconnects misses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from fastapi.sse import ServerSentEvent

from sparcom_server.jobs.queue import Job
from sparcom_server.schemas.reports import JobReport


async def job_events(
    job: Job, describe: Callable[[Job], JobReport], interval: float, keep_alive: float
) -> AsyncIterator[ServerSentEvent]:
    """Yield the event `progress` whenever the job changes, and the event `end` once it has ended.

    Args:
        interval: shortest time between two events, in seconds.
        keep_alive: longest silence, in seconds; after it, a comment is sent.
    """
    last, silent = "", 0.0
    while True:
        ended = job.ended.is_set()
        # ASCII, since FastAPI splits data at every Unicode line separator, also at those that JSON allows in strings.
        report = describe(job).model_dump_json(ensure_ascii=True)
        if report != last:
            yield ServerSentEvent(event="progress", raw_data=report)
            last, silent = report, 0.0
        elif silent >= keep_alive:
            yield ServerSentEvent(comment="keep-alive")
            silent = 0.0
        if ended:
            yield ServerSentEvent(event="end", raw_data=report)
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(job.ended.wait(), interval)
        silent += interval
