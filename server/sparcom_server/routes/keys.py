"""`/v1/keys`: create, list and revoke API keys. For admins, and for everyone on a server that has had no key yet."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from sparcom_server.access.keys import create_key, list_keys, revoke_key
from sparcom_server.http.request_body import read_body
from sparcom_server.routes.common import AdminOnly, After, Limit, ServiceDep
from sparcom_server.schemas.reports import ERRORS, KeyPage, KeyReport, NewKeyReport
from sparcom_server.schemas.requests import KeyRequest

router = APIRouter(prefix="/v1/keys", tags=["keys"], responses=ERRORS, dependencies=[AdminOnly])


async def _key_request(request: Request) -> KeyRequest:
    # A parameter of the route would be read before the client's key is checked.
    try:
        return KeyRequest.model_validate_json(bytes(await read_body(request)))
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from None


@router.post("", status_code=201)
async def post_key(body: Annotated[KeyRequest, Depends(_key_request)], service: ServiceDep) -> NewKeyReport:
    """Create an API key. The response alone holds it. From the first key on, every request needs one."""
    new = await service.database.write(lambda session: create_key(session, body))
    service.access.keys.expire()
    return new


@router.get("")
async def get_keys(service: ServiceDep, limit: Limit = 100, after: After = None) -> KeyPage:
    """List the API keys, newest first, also revoked ones, without their secrets."""
    return await service.database.read(lambda session: list_keys(session, limit, after))


@router.delete("/{key_id}")
async def delete_key(key_id: str, service: ServiceDep) -> KeyReport:
    """Revoke an API key. It is refused from now on; jobs and archives of its owner stay."""
    gone = await service.database.write(lambda session: revoke_key(session, key_id))
    service.access.keys.expire()
    return gone
