"""Bounds what request bodies may cost before they are read: their size, their time, and how many are held at once.

Plain ASGI: it looks at `Content-Length` first, and counts what arrives where the length is not declared or not true.
It does not know what the body holds.
"""

from __future__ import annotations

import asyncio
import sys

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sparcom_server.errors import RETRY_SECONDS, BodyTooLargeError, BusyError, error_response

SLOWEST = 16 * 2**10  # bytes per second; a slower body than that, after the first `seconds`, is given up
HELD_AT_ONCE = 4  # bodies of the largest size that may be in memory at once


class BodyLimit:
    """ASGI middleware: status 413 for a body of more than `limit` bytes, 408 for one that comes too slowly."""

    def __init__(self, app: ASGIApp, limit: int, seconds: float) -> None:
        self.app = app
        self.limit = limit
        self.seconds = seconds
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a `receive` that counts."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif _declared_length(scope) > self.limit:
            await error_response(BodyTooLargeError(self._message()))(scope, receive, send)
        else:
            body = _Body(self, receive)
            try:
                await self.app(scope, body.receive, send)
            finally:
                self._held -= body.seen

    def count(self, more: int, seen: int) -> None:
        """Count bytes that have arrived. FastAPI lets this one kind of exception through while it reads a body.

        Raises:
            HTTPException: the body is too large, or all bodies together are.
        """
        self._held += more
        if seen > self.limit:
            raise HTTPException(413, self._message())
        if self._held > HELD_AT_ONCE * self.limit:
            retry = {"Retry-After": str(RETRY_SECONDS[BusyError])}
            raise HTTPException(503, "the service holds as many large requests as it may; try again soon", retry)

    def _message(self) -> str:
        return (
            f"a request body may have at most {self.limit} bytes; this one has more. "
            "Send the instructions in several batches, or have the operator raise max_body_bytes"
        )


class _Body:
    """The body of one request as it arrives. seen: bytes so far."""

    def __init__(self, limit: BodyLimit, receive: Receive) -> None:
        self.seen = 0
        self._limit = limit
        self._receive = receive
        self._complete = False
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()

    async def receive(self) -> Message:
        """The next message; once the body is complete, whatever comes may take as long as it likes."""
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._started + self._limit.seconds + self.seen / SLOWEST):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(
                408,
                f"a request body must be complete within {self._limit.seconds:g} s, or come at {SLOWEST} bytes per "
                f"second at least; {self.seen} bytes came. Send it again over a faster connection",
                {"Connection": "close"},
            ) from None
        more = len(message.get("body", b""))
        self.seen += more
        self._complete = not message.get("more_body", False)
        self._limit.count(more, self.seen)
        return message


def _declared_length(scope: Scope) -> int:
    """What `Content-Length` says; 0 where it says nothing, `sys.maxsize` for more digits than int() may be given."""
    value: bytes = dict(scope["headers"]).get(b"content-length", b"0")
    if not value.isdigit():
        return 0
    return int(value) if len(value) < 20 else sys.maxsize
