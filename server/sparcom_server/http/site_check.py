"""Refuses requests that a page of another site made a browser send.

`Host` must name this service. With DNS rebinding a page of evil.example has the browser ask evil.example:8000 once that
name leads to this machine; the header still says evil.example. An IP address cannot be rebound and is always allowed.
`Origin` and `Sec-Fetch-Site` of a request that changes something must say that it comes from a page of this service.
Clients that are no browsers send neither. Plain ASGI.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from sparcom_data.errors import SparcomError
from sparcom_server.errors import CrossSiteError, HostNotAllowedError, error_response

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
ANY = "*"


class SiteCheck:
    """ASGI middleware: status 421 for a `Host` that is not ours, 403 for what another site's page sends."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str]) -> None:
        self.app = app
        self.hosts = frozenset(host.lower() for host in hosts) | {"localhost", socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on if it is ours to answer."""
        error = self._problem(scope["method"], Headers(scope=scope)) if scope["type"] == "http" else None
        await (error_response(error) if error else self.app)(scope, receive, send)

    def _problem(self, method: str, headers: Headers) -> SparcomError | None:
        hosts = headers.getlist("host")
        if len(hosts) > 1 or not all(map(self._is_ours, hosts)):
            return HostNotAllowedError(
                f"this service answers for its own address only; the header Host is {', '.join(hosts)!r}. Use the "
                "service's address, or have the operator allow this one with --allowed-host"
            )
        if method in SAFE_METHODS:
            return None
        if headers.get("sec-fetch-site", "none") not in {"same-origin", "none"} or not _same_origin(headers):
            return CrossSiteError(
                f"only this service's own page may send {method} from a browser; the header Origin is "
                f"{headers.get('origin')!r}. Open the service's page, or use a client that is no browser"
            )
        return None

    def _is_ours(self, host: str) -> bool:
        name = _split(host)[0]
        return ANY in self.hosts or name in self.hosts or _is_address(name)


def _same_origin(headers: Headers) -> bool:
    """Whether `Origin`, where there is one, has host and port of `Host`. A proxy may have changed the scheme."""
    origin = headers.get("origin")
    if origin is None:
        return True
    scheme, _, place = origin.partition("://")
    return scheme in {"http", "https"} and _split(place, scheme) == _split(headers.get("host", ""), scheme)


def _split(place: str, scheme: str = "http") -> tuple[str, str]:
    """Name and port of `name:port`, `name`, `[::1]:port` or `[::1]`; an odd port stays a part of the name."""
    name, colon, port = place.lower().rpartition(":")
    if not colon or not port.isdecimal():
        name, port = place.lower(), {"http": "80", "https": "443"}[scheme]
    return name.removesuffix("."), port


def _is_address(name: str) -> bool:
    try:
        ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True
