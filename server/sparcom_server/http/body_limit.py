"""ASGI middleware that limits request bodies: their size, their duration, and the bytes held at once.

It refuses by `Content-Length` before a body arrives, and counts bytes in case the length is missing or wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sparcom_server.errors import RETRY_SECONDS, BodyTooLargeError, BusyError, error_response
from sparcom_server.http import parse_digits

MIN_BYTES_PER_SECOND = 16 * 2**10  # a slower body is refused after the first `seconds`
MAX_LARGEST_BODIES = 4  # bodies of the largest size that may be in memory at once


@dataclass(slots=True)
class _Body:
    """The body of one request. limit: bytes. started: time of the event loop. received: bytes so far.

    is_held: whether the route holds it in memory.
    """

    receive: Receive
    limit: int
    is_held: bool
    started: float
    received: int = 0
    complete: bool = False


class BodyLimit:
    """Answers 413 to a body of more than `limit` bytes, 408 to a slow body, 503 if too many bytes are held at once.

    uploads: limits of the paths whose bodies go to the disk as they arrive.
    """

    def __init__(self, app: ASGIApp, limit: int, seconds: float, uploads: Mapping[str, int]) -> None:
        self.app = app
        self.limit = limit
        self.seconds = seconds
        self.uploads = uploads
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a counting `receive`."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        upload = self.uploads.get(scope["path"])
        limit = upload or self.limit
        if declared.isdecimal() and parse_digits(declared) > limit:
            await error_response(BodyTooLargeError(_too_large(limit)))(scope, receive, send)
            return
        body = _Body(receive, limit, upload is None, asyncio.get_running_loop().time())
        try:
            await self.app(scope, partial(self._receive, body), send)
        finally:
            self._held -= body.received * body.is_held

    async def _receive(self, body: _Body) -> Message:
        """Return the next message of a body. Raises HTTPException at a limit."""
        if body.complete:  # later messages have no time limit
            return await body.receive()
        try:
            async with asyncio.timeout_at(body.started + self.seconds + body.received / MIN_BYTES_PER_SECOND):
                message = await body.receive()
        except TimeoutError:
            raise HTTPException(
                408,
                f"a request body must be complete within {self.seconds:g} s or arrive at {MIN_BYTES_PER_SECOND} bytes "
                f"per second or more; {body.received} bytes arrived. Send it again over a faster connection",
                {"Connection": "close"},
            ) from None
        more = len(message.get("body", b""))
        body.received += more
        body.complete = not message.get("more_body", False)
        self._held += more * body.is_held
        if body.received > body.limit:
            raise HTTPException(413, _too_large(body.limit))
        if self._held > MAX_LARGEST_BODIES * self.limit:
            retry = {"Retry-After": str(RETRY_SECONDS[BusyError])}
            most = MAX_LARGEST_BODIES * self.limit
            raise HTTPException(
                503, f"request bodies already take {most:,} bytes in total, the limit; try again soon", retry
            )
        return message


def _too_large(limit: int) -> str:
    return (
        f"a request body may have at most {limit} bytes; this one has more. Send the instructions in several parts, "
        "or have the operator raise max_body_bytes, or max_file_bytes for uploads"
    )
