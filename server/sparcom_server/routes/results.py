"""`/v1/extractions/{id}/results` and `/errors`: outcomes of instructions as JSON lines."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from sparcom_data.errors import ArchiveNotFoundError
from sparcom_server.archives.results import Kind, open_results, result_lines
from sparcom_server.routes.common import PrincipalDep, ServiceDep
from sparcom_server.schemas.reports import ERRORS

router = APIRouter(prefix="/v1/extractions/{job_id}", tags=["extractions"], responses=ERRORS)


class LinesResponse(StreamingResponse):
    """JSON lines."""

    media_type = "application/jsonl"


@router.get("/results", response_class=LinesResponse)
async def get_results(job_id: str, service: ServiceDep, principal: PrincipalDep) -> LinesResponse:
    """Read one JSON line per complete instruction, also while the job runs: lengths, first row, response."""
    return await _lines(job_id, "results", service, principal)


@router.get("/errors", response_class=LinesResponse)
async def get_errors(job_id: str, service: ServiceDep, principal: PrincipalDep) -> LinesResponse:
    """Read one JSON line per failed or cancelled instruction, with the reason, also while the job runs."""
    return await _lines(job_id, "errors", service, principal)


async def _lines(job_id: str, kind: Kind, service: ServiceDep, principal: PrincipalDep) -> LinesResponse:
    job = await service.jobs.get(job_id, principal)
    sources = []
    for part in job.parts:  # opened before the response begins, so that an error gets its status
        archive = await asyncio.to_thread(open_results, service.archives.path(part.archive), part.run)
        name = principal.shown_name(part.archive)
        if archive is not None:
            sources.append((archive, part.model, name))
        elif part.progress.get("complete") or part.progress.get("failed"):  # others may never have had an archive
            raise ArchiveNotFoundError(f"the archive {name!r} of this extraction was deleted, and its results with it")

    def lines() -> Iterator[bytes]:
        for archive, model, name in sources:
            yield from result_lines(archive, kind, model, name, lambda text: service.access.hide_paths(text, principal))

    return LinesResponse(lines())
