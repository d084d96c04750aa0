"""`/v1/extractions`: submit, list, watch and cancel jobs."""

from __future__ import annotations

import asyncio
import mimetypes
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import AwareDatetime, BeforeValidator, Field

from sparcom_data.errors import ArchiveNotFoundError, InvalidInputError
from sparcom_data.storage.beneath import open_beneath
from sparcom_server.database.tables import JobRow
from sparcom_server.errors import BusyError
from sparcom_server.http import parse_digits
from sparcom_server.http.events import job_events
from sparcom_server.http.file_response import file_response
from sparcom_server.http.request_body import parse_extraction, read_body
from sparcom_server.jobs.filters import JobFilter
from sparcom_server.jobs.submission import digest
from sparcom_server.routes.common import (
    After,
    DescribeDep,
    Limit,
    PolledRoute,
    PrincipalDep,
    ServiceDep,
    describe_for,
    page,
)
from sparcom_server.schemas.reports import ERRORS, UNFINISHED, JobPage, JobReport, JobState
from sparcom_server.service import Service

router = APIRouter(prefix="/v1/extractions", tags=["extractions"], responses=ERRORS)

POLL_SECONDS = 5  # suggested to clients that poll
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="A repeated request with the same key and body gets the job of the first.",
    ),
]


def _has_date(value: object) -> object:
    if isinstance(value, str) and value[4:5] != "-":  # pydantic takes a number for seconds since 1970
        raise ValueError("must be a time with its offset, such as 2026-01-31T12:00:00Z")
    return value


Time = Annotated[AwareDatetime, BeforeValidator(_has_date)]
Pair = Annotated[str, Field(json_schema_extra={"pattern": ":"})]


@router.post("", status_code=202)
async def submit(
    request: Request,
    service: ServiceDep,
    principal: PrincipalDep,
    describe: DescribeDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> JobReport:
    """Run a batch of instructions and capture their activations into a new archive.

    Answers once the batch is validated and stored. The job then waits in the queue, and survives a restart.
    """
    body = await read_body(request)
    request_sha256 = digest(body)
    async with service.submissions.take(len(body)):
        extraction = await asyncio.to_thread(parse_extraction, body, service.settings.max_instructions)
        job, is_new = await service.submit(principal, extraction, request_sha256, idempotency_key)
        del extraction  # before the next one's turn
    report = describe.job(job, await service.position(job))
    response.headers.update({"Location": report.links.self} | _when_to_ask_again(job))
    if not is_new:
        response.headers["Idempotent-Replayed"] = "true"
    return report


@router.get("")
async def list_jobs(
    service: ServiceDep,
    principal: PrincipalDep,
    describe: DescribeDep,
    limit: Limit = 100,
    after: After = None,
    state: Annotated[list[JobState] | None, Query(description="Only these states.")] = None,
    model: Annotated[str | None, Query(max_length=512, description="Only jobs of this model.")] = None,
    created_after: Annotated[Time | None, Query(description="Only jobs submitted later.")] = None,
    created_before: Annotated[Time | None, Query(description="Only jobs submitted earlier.")] = None,
    metadata: Annotated[
        list[Pair] | None, Query(description="Only jobs with this metadata, KEY:VALUE. Repeatable.")
    ] = None,
) -> JobPage:
    """List the jobs, newest first."""
    wanted = JobFilter(
        states=tuple(state or ()),
        model=model,
        created_after=_milliseconds(created_after),
        created_before=_milliseconds(created_before),
        metadata=tuple(_pair(value) for value in metadata or ()),
    )
    jobs, has_more = await service.jobs.list_jobs(principal, wanted, limit, after)
    positions = await service.jobs.positions() if any(job.state == "queued" for job in jobs) else {}
    shown = [describe.job(job, positions.get(job.id, 0)) for job in jobs]
    return JobPage(**page(shown, [job.id for job in jobs], has_more))


def _milliseconds(time: datetime | None) -> int | None:
    return None if time is None else int(time.timestamp() * 1000)


def _pair(value: str) -> tuple[str, str]:
    key, colon, text = value.partition(":")
    if not colon:
        raise InvalidInputError(f"metadata: must be KEY:VALUE; it is {value[:140]!r}")
    return key, text


def _when_to_ask_again(job: JobRow) -> dict[str, str]:
    return {"Retry-After": str(POLL_SECONDS)} if job.state in UNFINISHED else {}


async def get_job(job_id: str, request: Request) -> Response:
    """Show one job: its state, its progress, and the first failures once it has ended."""
    service: Service = request.app.state.service
    job = await service.jobs.get(job_id, request.state.principal)
    content = service.job_json(await describe_for(request), job, await service.position(job))
    return Response(content, media_type="application/json", headers=_when_to_ask_again(job))


router.add_api_route("/{job_id}", get_job, response_model=JobReport, route_class_override=PolledRoute)


async def _watched_job(job_id: str, service: ServiceDep, principal: PrincipalDep) -> AsyncIterator[JobRow]:
    # A dependency, so that errors get their HTTP status before the stream begins.
    job = await service.jobs.get(job_id, principal)
    if service.event_streams.locked():
        limit = service.settings.max_event_streams
        raise BusyError(
            f"the limit of {limit} open event streams is reached; GET the job itself instead, or have the operator "
            "raise max_event_streams"
        )
    async with service.event_streams:
        with service.access.limits.event_stream(principal):
            yield job


@router.get("/{job_id}/events", response_class=EventSourceResponse)
async def watch_job(
    job: Annotated[JobRow, Depends(_watched_job)],
    service: ServiceDep,
    principal: PrincipalDep,
    describe: DescribeDep,
    last_event_id: Annotated[str | None, Header(max_length=200)] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Watch one job as server-sent events: `progress` with the whole job after each change, `end` last.

    The id of an event is the revision of the job. A client that reconnects with `Last-Event-ID` gets only later ones.
    """
    digits = last_event_id if last_event_id and last_event_id.isascii() and last_event_id.isdecimal() else None

    async def report(job: JobRow) -> JobReport:
        return describe.job(job, await service.position(job))

    async for event in job_events(
        job,
        report,
        lambda seconds: service.jobs.watch(job.id, principal, seconds),
        lambda: service.jobs.closed,
        interval=service.settings.event_seconds,
        keep_alive=service.settings.keep_alive_seconds,
        last_seen=None if digits is None else parse_digits(digits),
    ):
        if not await service.access.still_valid(principal):
            return
        yield event


@router.delete("/{job_id}", responses={202: {"model": JobReport}})
async def cancel_job(
    job_id: str, service: ServiceDep, principal: PrincipalDep, describe: DescribeDep, response: Response
) -> JobReport:
    """Cancel a job. Answers 200 if it is cancelled, 202 if it will end soon. Complete instructions stay."""
    job = await service.cancel(job_id, principal)
    response.status_code = 202 if job.state in UNFINISHED else 200
    return describe.job(job, None)


@router.get("/{job_id}/analysis/{key:path}", response_class=Response)
async def get_analysis_file(
    job_id: str, key: str, request: Request, service: ServiceDep, principal: PrincipalDep
) -> Response:
    """Read one file of a job's analysis: report.html, metrics.json, tables and figures."""
    job = await service.jobs.get(job_id, principal)
    descriptor = await asyncio.to_thread(open_beneath, service.analyses.path(job.id), key.split("/"))
    if descriptor is None:
        raise ArchiveNotFoundError(f"the analysis of extraction {job_id!r} has no file {key[:140]!r}")
    media_type = mimetypes.guess_type(key)[0] or "application/octet-stream"
    response = file_response(descriptor, request.headers, head=False, media_type=media_type)
    # A report holds texts of clients. It needs no script, and must not act for the person who reads it.
    response.headers["Content-Security-Policy"] = (
        "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:"
    )
    return response
