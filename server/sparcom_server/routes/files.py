"""`/v1/files`: upload, list, read and delete files of instructions."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.orm import Session

from sparcom_server.access.limits import check_storage
from sparcom_server.database.tables import FileRow
from sparcom_server.http.file_response import file_response
from sparcom_server.http.request_body import Problems
from sparcom_server.http.upload_body import UploadBody
from sparcom_server.jobs.store import iso
from sparcom_server.routes.common import After, Limit, PrincipalDep, ServiceDep, page
from sparcom_server.schemas.reports import ERRORS, FilePage, FileReport
from sparcom_server.schemas.requests import UploadFields

MEDIA_TYPE = "application/jsonl"

router = APIRouter(prefix="/v1/files", tags=["files"], responses=ERRORS)


@router.post("", status_code=201)
async def upload_file(
    request: Request,
    service: ServiceDep,
    principal: PrincipalDep,
    response: Response,
    query: Annotated[UploadFields, Query()],
) -> FileReport:
    """Upload a file of instructions: one JSON object per line, as the body or as the field `file` of a form.

    Answers once every line is checked and the file is on disk. A refused file leaves nothing.
    """
    body = UploadBody(request)

    def fields() -> UploadFields:
        problems = Problems()
        given = problems.check(UploadFields, query.model_dump(by_alias=True, exclude_unset=True) | body.fields)
        problems.raise_any()
        return given or query

    def check(session: Session, size: int) -> None:
        check_storage(session, principal, size)

    row = await service.uploads.receive(body, principal.owner, fields, check)
    response.headers["Location"] = f"{str(request.base_url).rstrip('/')}/v1/files/{row.id}"
    return _report(row)


@router.get("")
async def list_files(service: ServiceDep, principal: PrincipalDep, limit: Limit = 100, after: After = None) -> FilePage:
    """List the uploaded files, newest first."""
    rows, has_more = await service.uploads.list_files(principal, limit, after)
    return FilePage(**page([_report(row) for row in rows], [row.id for row in rows], has_more))


@router.get("/{file_id}")
async def get_file(file_id: str, service: ServiceDep, principal: PrincipalDep) -> FileReport:
    """Show one uploaded file."""
    return _report(await service.uploads.get(file_id, principal))


@router.get("/{file_id}/content", response_class=Response)
async def get_file_content(file_id: str, request: Request, service: ServiceDep, principal: PrincipalDep) -> Response:
    """Read an uploaded file, byte for byte. Supports byte ranges."""
    row = await service.uploads.get(file_id, principal)
    response = file_response(
        await service.uploads.open(file_id, principal), request.headers, head=False, media_type=MEDIA_TYPE
    )
    response.headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(row.filename, safe='')}"
    return response


@router.delete("/{file_id}", status_code=204)
async def delete_file(file_id: str, service: ServiceDep, principal: PrincipalDep) -> None:
    """Delete an uploaded file. Jobs that were submitted with it have their own copy."""
    await service.uploads.delete(file_id, principal)


def _report(row: FileRow) -> FileReport:
    return FileReport(
        id=row.id,
        filename=row.filename,
        bytes=row.bytes,
        instructions=row.instructions,
        sha256=row.sha256,
        owner=row.owner or None,
        created=iso(row.created),
        expires=None if row.expires is None else iso(row.expires),
    )
