"""`/v1/archives`: the list, the facts of one archive, its deletion, and the Zarr store itself, read-only."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from sparcom_data.errors import ArchiveNotFoundError
from sparcom_server.http.file_response import file_response
from sparcom_server.routes.common import AddressesDep, After, DescribeDep, Limit, PrincipalDep, ServiceDep, page
from sparcom_server.schemas.reports import ERRORS, ArchivePage, ArchiveReport

router = APIRouter(prefix="/v1/archives", tags=["archives"], responses=ERRORS)


@router.get("")
async def list_archives(
    service: ServiceDep, principal: PrincipalDep, describe: DescribeDep, limit: Limit = 100, after: After = None
) -> ArchivePage:
    """List the archives, newest first."""
    names = await service.owners.visible(principal)
    shown = [principal.shown_name(name) for name in names]
    if after is not None and after not in shown:
        raise ArchiveNotFoundError(f"after: must be the name of an archive; it is {after!r}")
    start = 0 if after is None else shown.index(after) + 1
    entries = await asyncio.to_thread(lambda: [describe.archive_summary(name) for name in names[start : start + limit]])
    return ArchivePage(**page(entries, shown[start : start + limit], start + limit < len(names)))


@router.get("/{name}")
def get_archive(name: str, describe: DescribeDep) -> ArchiveReport:
    """Show one archive: attributes, instructions by state and category, tokens, size."""
    return describe.archive(name)


@router.delete("/{name}", status_code=204)
async def delete_archive(name: str, service: ServiceDep, principal: PrincipalDep) -> None:
    """Delete one archive from the server's disk. Answers 409 while a queued or running extraction uses it."""
    await service.owners.delete(name, principal)


@router.get("/{name}/zarr/{key:path}", response_class=Response)
@router.head("/{name}/zarr/{key:path}", include_in_schema=False)
async def get_store_key(
    name: str, key: str, request: Request, service: ServiceDep, principal: PrincipalDep
) -> Response:
    """Read one key of the store, byte for byte as on disk. Supports byte ranges; answers 404 if the key is missing."""
    descriptor = await asyncio.to_thread(service.archives.open_file, principal.stored_name(name), key)
    if descriptor is None:
        raise ArchiveNotFoundError(f"the archive {name!r} has no key {key!r}")
    return file_response(descriptor, request.headers, head=request.method == "HEAD")


@router.get("/{name}/{key:path}", include_in_schema=False)
@router.head("/{name}/{key:path}", include_in_schema=False)
async def get_key_without_zarr(name: str, key: str, addresses: AddressesDep, _: PrincipalDep) -> Response:
    """Send Zarr readers that open the archive's address to the address of its store."""
    raise ArchiveNotFoundError(
        f"the address of an archive's store ends in /zarr; {key!r} was requested without it. "
        f"Open {addresses.zarr(name)} instead"
    )
