"""Find the client of each request by its API key, and refuse the others."""

from __future__ import annotations

import logging
from ipaddress import ip_address

from starlette.requests import Request

from sparcom_data.errors import InvalidInputError
from sparcom_server.access.keys import KeyStore, has_keys
from sparcom_server.access.limits import RequestLimits
from sparcom_server.access.principal import ANONYMOUS, Principal
from sparcom_server.database.database import Database
from sparcom_server.errors import ForbiddenError, NotAuthenticatedError
from sparcom_server.settings import ServerSettings

logger = logging.getLogger(__name__)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Gate:
    """Says who sends a request.

    Without keys, everyone is `ANONYMOUS` on a server that listens on loopback or has `allow_anonymous`. Once a key was
    created, every request needs one, also after the last key is revoked.
    """

    def __init__(self, database: Database, settings: ServerSettings) -> None:
        self.keys = KeyStore(database, settings.key_limits)
        self.limits = RequestLimits()
        self._database = database
        self._host = settings.host
        self._may_be_anonymous = settings.allow_anonymous or is_loopback(settings.host)

    def check_start(self) -> None:
        """Log whether keys are required. Call it before the server listens.

        Raises:
            InvalidInputError: others can reach the address, and nobody could have a valid key.
        """
        if self._database.transaction(lambda session: has_keys(session, revoked=False), writes=False):
            return
        if self._database.transaction(has_keys, writes=False):
            logger.warning("every API key is revoked: no request is answered until `sparcom keys create` makes another")
        elif is_loopback(self._host):
            logger.info("no API keys: listening on %s only, where every user of this machine may do all", self._host)
        elif self._may_be_anonymous:
            logger.warning("no API keys: everyone who can reach this port may read and delete all")
        if not self._may_be_anonymous:
            raise InvalidInputError(
                f"a server that others can reach needs an API key; --host is {self._host} and there is no valid key. "
                "Create one with `sparcom keys create NAME --data-dir DIR`, or listen on 127.0.0.1. If only trusted "
                "clients can reach the port, give --allow-anonymous"
            )

    async def principal(self, request: Request) -> Principal:
        """Return the client of a request, and count the request.

        Raises:
            NotAuthenticatedError: the request has no valid key, and needs one.
            LimitExceededError: the key sends too many requests.
        """
        await self.keys.read()
        if not self.keys.required and self._may_be_anonymous:
            return ANONYMOUS
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        principal = self.keys.find(key.strip()) if scheme.lower() == "bearer" else None
        if principal is None:
            raise NotAuthenticatedError(
                "a request needs a valid API key; "
                + ("this one is unknown or revoked" if scheme else "this one has none")
                + ". Send the header 'Authorization: Bearer KEY'; the operator creates keys with `sparcom keys create`"
            )
        self.limits.count_request(principal)
        return principal


def require_admin(principal: Principal) -> None:
    """Raise ForbiddenError unless the client is an admin."""
    if not principal.is_admin:
        raise ForbiddenError("only keys with the role admin may do this; this key's role is user")
