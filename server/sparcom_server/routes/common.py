"""Dependencies of the routes: the app's service, the client, its view of jobs and archives, and paging."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any

from fastapi import Depends, Query, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer

from sparcom_server.access.principal import Principal
from sparcom_server.errors import ForbiddenError
from sparcom_server.jobs.reports import Addresses, Describe
from sparcom_server.observe.logs import current_ids
from sparcom_server.service import Service


# All are coroutines: FastAPI runs plain functions in a thread, one hop per dependency. They take the request, and not
# each other: FastAPI resolves a dependency again for each one that takes it, which was a third of the cost of a poll.
async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _addresses(request: Request) -> Addresses:
    return Addresses.of(request)


ServiceDep = Annotated[Service, Depends(_service)]
AddressesDep = Annotated[Addresses, Depends(_addresses)]


# Only describes the header in openapi.json; the gate reads it.
_BEARER = HTTPBearer(auto_error=False, scheme_name="key", description="An API key, of a server that uses keys.")


async def authenticate(request: Request, _: Annotated[Any, Depends(_BEARER)] = None) -> None:
    """Find the client of a request. `create_app` adds it to every route that is not public, before all others."""
    request.state.principal = principal = await (await _service(request)).access.principal(request)
    current_ids().key_id = principal.key_id


async def _principal(request: Request) -> Principal:
    principal: Principal = request.state.principal
    return principal


PrincipalDep = Annotated[Principal, Depends(_principal)]


class PolledRoute(APIRoute):
    """A route that hundreds of clients request every second. Its function takes `request` and the parts of the path.

    FastAPI calls it without resolving dependencies and without validating the response, half of the time of a poll.
    Raises TypeError for a dependency other than `authenticate`, which would not run.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the function that answers a request."""
        if any(one.dependency is not authenticate for one in self.dependencies):
            raise TypeError(f"a polled route can have no dependency but authenticate; {self.path} has others")

        async def answer(request: Request) -> Response:
            await authenticate(request)
            response: Response = await self.endpoint(request=request, **request.path_params)
            return response

        return answer


async def require_admin(principal: PrincipalDep) -> None:
    """Raise ForbiddenError unless the client is an admin. For `dependencies` of a route."""
    if not principal.is_admin:
        raise ForbiddenError("only keys with the role admin may do this; this key's role is user")


AdminOnly = Depends(require_admin)


async def describe_for(request: Request) -> Describe:
    """Return the view of an authenticated client."""
    service = await _service(request)
    return Describe(request.state.principal, service.archives, Addresses.of(request), service.access.hide_paths)


DescribeDep = Annotated[Describe, Depends(describe_for)]
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
