"""`/v1/archives`: the list, the facts of one archive, its deletion, and the Zarr store itself, read-only."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from sparcom_data.errors import ArchiveNotFoundError
from sparcom_server.http.file_response import file_response
from sparcom_server.jobs.reports import archive_report, archive_summary
from sparcom_server.routes.common import AddressesDep, Limit, Offset, ServiceDep
from sparcom_server.schemas.reports import ERRORS, ArchivePage, ArchiveReport

router = APIRouter(prefix="/v1/archives", tags=["archives"], responses=ERRORS)


@router.get("")
def list_archives(service: ServiceDep, addresses: AddressesDep, limit: Limit = 100, offset: Offset = 0) -> ArchivePage:
    """List the archives, newest first."""
    names = service.archives.names()
    shown = [archive_summary(name, service.archives, addresses) for name in names[offset : offset + limit]]
    return ArchivePage(total=len(names), offset=offset, limit=limit, archives=shown)


@router.get("/{name}")
def get_archive(name: str, service: ServiceDep, addresses: AddressesDep) -> ArchiveReport:
    """Show one archive: attributes, instructions by state and category, tokens, size."""
    return archive_report(name, service.archives, addresses)


@router.delete("/{name}", status_code=204)
async def delete_archive(name: str, service: ServiceDep) -> None:
    """Delete one archive from the server's disk. Answers 409 while a queued or running extraction uses it."""
    await service.delete_archive(name)


@router.get("/{name}/zarr/{key:path}", response_class=Response)
@router.head("/{name}/zarr/{key:path}", include_in_schema=False)
async def get_store_key(name: str, key: str, request: Request, service: ServiceDep) -> Response:
    """Read one key of the store, byte for byte as on disk. Supports byte ranges; answers 404 if the key is missing."""
    descriptor = await asyncio.to_thread(service.archives.open_file, name, key)
    if descriptor is None:
        raise ArchiveNotFoundError(f"the archive {name!r} has no key {key!r}")
    return file_response(descriptor, request.headers, head=request.method == "HEAD")


@router.get("/{name}/{key:path}", include_in_schema=False)
@router.head("/{name}/{key:path}", include_in_schema=False)
async def get_key_without_zarr(name: str, key: str, addresses: AddressesDep) -> Response:
    """Send Zarr readers that open the archive's address to the address of its store."""
    raise ArchiveNotFoundError(
        f"the address of an archive's store ends in /zarr; {key!r} was requested without it. "
        f"Open {addresses.zarr(name)} instead"
    )
