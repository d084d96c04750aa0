"""Server-sent events of one job. Each event carries the whole job, so a client that reconnects misses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi.sse import ServerSentEvent

from sparcom_server.database.tables import JobRow
from sparcom_server.schemas.reports import UNFINISHED, JobReport


async def job_events(
    job: JobRow,
    describe: Callable[[JobRow], Awaitable[JobReport]],
    watch: Callable[[float], Awaitable[JobRow]],
    closed: Callable[[], bool],
    *,
    interval: float,
    keep_alive: float,
    last_seen: int | None = None,
) -> AsyncIterator[ServerSentEvent]:
    """Yield the event `progress` whenever the job changes, and the event `end` once it has ended.

    Args:
        job: the job now. describe: its report. watch: returns the job after its next change, or after some seconds.
        closed: whether the service stops; the stream then ends without the event `end`, and clients reconnect.
        interval: shortest time between two events, in seconds.
        keep_alive: longest silence, in seconds; after it, a comment is sent.
        last_seen: the last event id that the client has received: a revision of the job.
    """
    seen = -1 if last_seen is None or last_seen > job.revision else last_seen  # a later one is of another server
    while True:
        ended, revision = job.state not in UNFINISHED, str(job.revision)
        if job.revision > seen or ended:
            # ASCII, since FastAPI splits data at every Unicode line separator, also those that JSON allows in strings.
            report = (await describe(job)).model_dump_json(ensure_ascii=True)
            if job.revision > seen:
                yield ServerSentEvent(event="progress", raw_data=report, id=revision)
            if ended:
                yield ServerSentEvent(event="end", raw_data=report, id=revision)
                return
            seen = job.revision
            await asyncio.sleep(interval)
        elif closed():
            return
        else:
            yield ServerSentEvent(comment="keep-alive")
        job = await watch(0)
        if job.revision <= seen:
            job = await watch(keep_alive)
