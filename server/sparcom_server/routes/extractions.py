"""`/v1/extractions`: submit, list, watch and cancel jobs."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from sparcom_server.http import events
from sparcom_server.http.openapi import request_schema
from sparcom_server.http.request_body import parse_extraction, read_body
from sparcom_server.jobs.reports import job_report
from sparcom_server.routes.common import AddressesDep, Limit, Offset, ServiceDep
from sparcom_server.schemas import ERRORS, ExtractionRequest, JobPage, JobReport

router = APIRouter(prefix="/v1/extractions", tags=["extractions"], responses=ERRORS)


@router.post("", status_code=202, openapi_extra=request_schema(ExtractionRequest))
async def submit(request: Request, service: ServiceDep, addresses: AddressesDep, response: Response) -> JobReport:
    """Run a batch of instructions and capture what fires, into a new archive.

    Answers when the batch is validated and tokenised and the archive is created; the job then waits its turn.
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


@router.get("/{job_id}/events", response_class=StreamingResponse)
async def watch_job(job_id: str, service: ServiceDep, addresses: AddressesDep) -> StreamingResponse:
    """Watch one job as server-sent events: `progress` with the whole job when it changes, `end` at last."""
    job = service.queue.get(job_id)
    settings = service.settings
    stream = events.job_events(
        job,
        lambda watched: job_report(watched, service.queue, addresses),
        settings.event_seconds,
        settings.keep_alive_seconds,
    )
    return service.event_streams.response(stream)


@router.delete("/{job_id}", responses={202: {"model": JobReport}})
async def cancel_job(job_id: str, service: ServiceDep, addresses: AddressesDep, response: Response) -> JobReport:
    """Cancel a job: 200 when it is cancelled, 202 when it runs and will end soon. What is complete stays."""
    job = await service.queue.cancel(job_id)
    response.status_code = 200 if job.ended.is_set() else 202
    return job_report(job, service.queue, addresses)
