"""Find the client of each request by its API key, and refuse the others."""

from __future__ import annotations

import logging
import re
from ipaddress import ip_address

from starlette.requests import Request

from sparcom_data.errors import InvalidInputError
from sparcom_server.access.keys import KeyStore, has_keys
from sparcom_server.access.limits import RequestLimits
from sparcom_server.access.principal import ANONYMOUS, SEPARATOR, Principal
from sparcom_server.database.database import Database
from sparcom_server.errors import NotAuthenticatedError
from sparcom_server.settings import ServerSettings

# An absolute path of two parts or more, unless it belongs to an address over HTTP or is one of our routes. In quotes it
# may hold spaces; it may follow a scheme and two or three slashes, as in sqlite:////srv/data/sparcom.db.
_PATH = re.compile(
    r"(?P<quote>['\"])(?P<quoted>/(?!v1/)[^'\"\n/]+(?:/[^'\"\n/]+)+)(?P=quote)"
    r"|(?:(?<![\w./~])|(?<=://)|(?<=:///))(?P<plain>/(?!v1/)[\w.@%+=~-]+(?:/[\w.@%+=~-]+)+)"
)
_OWNER = re.compile(rf"^[a-z0-9-]*{SEPARATOR}")

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
        self._data_dir = str(settings.data_dir.absolute())
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

    async def still_valid(self, principal: Principal) -> bool:
        """Return whether the key of an earlier request is still valid, for responses that take long."""
        await self.keys.read()
        return self.keys.has(principal.key_id) if principal.key_id else not self.keys.required

    def hide_paths(self, text: str, principal: Principal | None) -> str:
        """Return a message without absolute paths of this machine, unless an admin reads it.

        Of a path in an archive, the archive's name and the rest stay; of another path, its last part.
        """
        if principal is not None and principal.is_admin:
            return text
        return _PATH.sub(_shorten, text.replace(f"{self._data_dir}/", "/"))


def _shorten(found: re.Match[str]) -> str:
    quote, parts = found["quote"] or "", (found["quoted"] or found["plain"]).split("/")
    archive = next((number for number, part in enumerate(parts) if ".zarr" in part), -1)
    return quote + _OWNER.sub("", "/".join(parts[archive:])) + quote
