"""Headers of every response: those that make browsers careful, and CORS for listed origins.

Wrap the whole app: Starlette sends the response to an unexpected error from outside of all middleware.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

DEFAULTS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",  # does not concern requests that CORS allows
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
READABLE = (
    "Accept-Ranges", "Content-Disposition", "Content-Length", "Content-Range", "ETag", "Last-Modified", "Location",
    "Retry-After", "WWW-Authenticate", "X-Request-Id",
)  # fmt: skip
_RAW = [(name.lower().encode(), value.encode()) for name, value in DEFAULTS.items()]
ALLOWED = (
    "Authorization", "Content-Type", "Idempotency-Key", "If-Match", "If-Modified-Since", "If-None-Match", "If-Range",
    "Last-Event-ID", "Range", "X-Request-Id",
)  # fmt: skip


class SafeHeaders:
    """Adds `DEFAULTS` to responses that do not set these headers themselves."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""

        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(pair for pair in _RAW if pair[0] not in given)]
            await send(message)

        await self.app(scope, receive, add)


def add_headers(app: ASGIApp, origins: Collection[str]) -> ASGIApp:
    """Return the app with safe headers. Pages of `origins` may read its responses and send requests to it."""
    if origins:
        app = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=("GET", "HEAD", "POST", "DELETE"),
            allow_headers=ALLOWED,
            allow_private_network=True,
            expose_headers=READABLE,
        )
    return SafeHeaders(app)
