"""Dependencies of the routes: the app's service, the client, its view of jobs and archives, and paging."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Depends, Query, Request

from sparcom_server.access.principal import Principal
from sparcom_server.jobs.reports import Addresses, Describe
from sparcom_server.service import Service


# All are coroutines: FastAPI runs plain functions in a thread, one hop per dependency.
async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _addresses(request: Request) -> Addresses:
    return Addresses(request)


ServiceDep = Annotated[Service, Depends(_service)]
AddressesDep = Annotated[Addresses, Depends(_addresses)]


async def _principal(request: Request, service: ServiceDep) -> Principal:
    return await service.principal(request)


PrincipalDep = Annotated[Principal, Depends(_principal)]


async def _describe(service: ServiceDep, principal: PrincipalDep, addresses: AddressesDep) -> Describe:
    return Describe(principal, service.archives, addresses)


DescribeDep = Annotated[Describe, Depends(_describe)]
Limit = Annotated[int, Query(ge=1, le=1000, description="Maximum number of entries.")]
After = Annotated[
    str | None, Query(max_length=200, description="Show entries after this one: `last_id` of the previous part.")
]


def page(items: Sequence[Any], ids: Sequence[str], has_more: bool) -> dict[str, Any]:
    """Return the fields of a `Page`."""
    return {
        "data": items,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
        "has_more": has_more,
    }
