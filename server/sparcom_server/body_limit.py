"""Refuses request bodies larger than the operator allows, before they fill the memory.

Plain ASGI: it looks at `Content-Length` first, and counts what arrives where the length is not declared or not true.
It does not know what the body holds.
"""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sparcom_server.errors import BodyTooLargeError, error_response


class BodyLimit:
    """ASGI middleware: status 413 for a body of more than `limit` bytes."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a `receive` that counts."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif _declared_length(scope) > self.limit:
            await error_response(BodyTooLargeError(self._message()))(scope, receive, send)
        else:
            await self.app(scope, self._counting(receive), send)

    def _counting(self, receive: Receive) -> Receive:
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.limit:
                # The one kind of exception that FastAPI lets through while it reads a body.
                raise HTTPException(413, self._message())
            return message

        return counted

    def _message(self) -> str:
        return (
            f"a request body may have at most {self.limit} bytes; this one has more. "
            "Send the instructions in several batches, or have the operator raise max_body_bytes"
        )


def _declared_length(scope: Scope) -> int:
    value: bytes = dict(scope["headers"]).get(b"content-length", b"0")
    return int(value) if value.isdigit() else 0
