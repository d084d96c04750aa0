"""ASGI middleware that refuses requests that a page of another site made a browser send.

`Host` must name this service. In a DNS rebinding attack, evil.example resolves to this machine, and its page sends
requests to evil.example:8000; their Host is still evil.example. IP addresses cannot be rebound and are always allowed.
`Origin` and `Sec-Fetch-Site` of a request that changes something must name a page of this service; clients other than
browsers send neither. Pages of listed origins may send all requests, see headers.py. Starlette's TrustedHostMiddleware
checks no origins and does not recognize IP addresses.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from sparcom_data.errors import SparcomError
from sparcom_server.errors import CrossSiteError, HostNotAllowedError, error_response

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
DEFAULT_PORTS = {"http": "80", "https": "443"}


class SiteCheck:
    """Answers 421 to a `Host` that is not in `hosts`, 403 to requests from pages of other sites than `origins`."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str], origins: Collection[str] = ()) -> None:
        self.app = app
        self.origins = origins
        self.hosts = frozenset(host.lower() for host in hosts) | {"localhost", socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on unless it is refused."""
        error = self._problem(scope["method"], Headers(scope=scope)) if scope["type"] == "http" else None
        await (error_response(error) if error else self.app)(scope, receive, send)

    def _problem(self, method: str, headers: Headers) -> SparcomError | None:
        hosts = headers.getlist("host")
        if len(hosts) > 1 or not all(map(self._is_allowed, hosts)):
            return HostNotAllowedError(
                f"this service answers only for its own address; the Host header is {', '.join(hosts)!r}. Use the "
                "service's address, or have the operator allow this one with --allowed-host"
            )
        foreign = headers.get("sec-fetch-site", "none") not in {"same-origin", "none"} or not _same_origin(headers)
        if foreign and method not in SAFE_METHODS and headers.get("origin") not in self.origins:
            return CrossSiteError(
                f"only this service's own page may send {method} from a browser; the Origin header is "
                f"{headers.get('origin')!r}. Open the service's page, use a client other than a browser, or have the "
                "operator allow the origin with --cors-origin"
            )
        return None

    def _is_allowed(self, host: str) -> bool:
        name = _split(host)[0]
        if "*" in self.hosts or name in self.hosts:
            return True
        try:
            ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return False
        return True


def _same_origin(headers: Headers) -> bool:
    """Return whether `Origin`, if present, has the host and port of `Host`. A proxy may have changed the scheme."""
    origin = headers.get("origin")
    if origin is None:
        return True
    scheme, _, address = origin.partition("://")
    return scheme in DEFAULT_PORTS and _split(address, scheme) == _split(headers.get("host", ""), scheme)


def _split(address: str, scheme: str = "http") -> tuple[str, str]:
    """Return name and port of `name:port`, `name`, `[::1]:port` or `[::1]`. A malformed port stays in the name."""
    name, colon, port = address.lower().rpartition(":")
    if not colon or not port.isdecimal():
        name, port = address.lower(), DEFAULT_PORTS[scheme]
    return name.removesuffix("."), port
