"""`/v1/extractions`: submit, list, watch and cancel jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from sparcom_server.errors import BusyError
from sparcom_server.http.events import job_events
from sparcom_server.http.request_body import parse_extraction, read_body
from sparcom_server.jobs.queue import Job
from sparcom_server.jobs.reports import job_report
from sparcom_server.routes.common import AddressesDep, Limit, Offset, ServiceDep
from sparcom_server.schemas.reports import ERRORS, JobPage, JobReport

router = APIRouter(prefix="/v1/extractions", tags=["extractions"], responses=ERRORS)

REQUEST_BODY = {  # create_app defines the schema
    "required": True,
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ExtractionRequest"}}},
}


@router.post("", status_code=202, openapi_extra={"requestBody": REQUEST_BODY})
async def submit(request: Request, service: ServiceDep, addresses: AddressesDep, response: Response) -> JobReport:
    """Run a batch of instructions and capture their activations into a new archive.

    Answers once the batch is validated and tokenized and the archive is created. The job then waits in the queue.
    """
    body = await read_body(request)
    async with service.submissions:
        extraction = await asyncio.to_thread(parse_extraction, body, service.settings.max_instructions)
        job = await service.submit(extraction)
    report = job_report(job, service.queue, addresses)
    response.headers["Location"] = report.links.self
    return report


@router.get("")
async def list_jobs(service: ServiceDep, addresses: AddressesDep, limit: Limit = 100, offset: Offset = 0) -> JobPage:
    """List the jobs that this server remembers, newest first."""
    jobs = service.queue.newest_first()
    shown = [job_report(job, service.queue, addresses) for job in jobs[offset : offset + limit]]
    return JobPage(total=len(jobs), offset=offset, limit=limit, extractions=shown)


@router.get("/{job_id}")
async def get_job(job_id: str, service: ServiceDep, addresses: AddressesDep) -> JobReport:
    """Show one job: its state, its progress, and the first failures once it has ended."""
    return job_report(service.queue.get(job_id), service.queue, addresses)


async def _watched_job(job_id: str, service: ServiceDep) -> AsyncIterator[Job]:
    # A dependency, so that errors get their HTTP status before the stream begins.
    job = service.queue.get(job_id)
    if service.event_streams.locked():
        limit = service.settings.max_event_streams
        raise BusyError(
            f"the limit of {limit} open event streams is reached; GET the job itself instead, or have the operator "
            "raise max_event_streams"
        )
    async with service.event_streams:
        yield job


@router.get("/{job_id}/events", response_class=EventSourceResponse)
async def watch_job(
    job: Annotated[Job, Depends(_watched_job)], service: ServiceDep, addresses: AddressesDep
) -> AsyncIterator[ServerSentEvent]:
    """Watch one job as server-sent events: `progress` with the whole job after each change, `end` last."""
    interval, keep_alive = service.settings.event_seconds, service.settings.keep_alive_seconds
    async for event in job_events(job, lambda job: job_report(job, service.queue, addresses), interval, keep_alive):
        yield event


@router.delete("/{job_id}", responses={202: {"model": JobReport}})
async def cancel_job(job_id: str, service: ServiceDep, addresses: AddressesDep, response: Response) -> JobReport:
    """Cancel a job. Answers 200 if it is cancelled, 202 if it runs and will end soon. Complete instructions stay."""
    job = await service.queue.cancel(job_id)
    response.status_code = 200 if job.ended.is_set() else 202
    return job_report(job, service.queue, addresses)
