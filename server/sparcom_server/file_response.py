"""One file over HTTP: exact bytes, HEAD, one byte range, validators. Zarr readers fetch chunks and parts of shards so.

The descriptor is opened once and everything is answered from it, because a running extraction replaces files by
renaming: looking at the size and then opening by name could pair the length of one file with the bytes of the next.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from email.utils import formatdate, parsedate_to_datetime

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from sparcom_server.errors import error_body

BLOCK = 1 << 20
MEDIA_TYPE = "application/octet-stream"
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class UnsatisfiableRangeError(ValueError):
    """A byte range that lies outside the file."""


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and length of the range that a `Range` header asks for; None to send the whole file.

    RFC 9110: what is malformed, or asks for several ranges, may be ignored.

    Raises:
        UnsatisfiableRangeError: no byte of it is in the file.
    """
    match = _RANGE.fullmatch(header.replace(" ", "")) if header else None
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:  # the last n bytes
        length = min(int(match[2]), size)
        first = size - length
    else:
        first = int(match[1])
        if match[2] and int(match[2]) < first:
            return None
        length = min(int(match[2]) + 1 if match[2] else size, size) - first
    if length <= 0:
        raise UnsatisfiableRangeError(header)
    return first, length


def file_response(descriptor: int, request: Headers, *, head: bool) -> Response:
    """The answer to GET or HEAD for an open file; takes over the descriptor and closes it."""
    info = os.fstat(descriptor)
    etag = f'"{info.st_ino:x}-{info.st_mtime_ns:x}-{info.st_size:x}"'
    headers = {
        "ETag": etag,
        "Last-Modified": formatdate(info.st_mtime, usegmt=True),
        "Accept-Ranges": "bytes",
        "Cache-Control": "no-cache",  # a running extraction replaces files: ask again, 304 is cheap
    }
    if _not_modified(request, etag, int(info.st_mtime)):
        os.close(descriptor)
        return Response(status_code=304, headers=headers)
    try:
        asked = parse_range(request.get("range"), info.st_size) if _range_applies(request, etag) else None
    except UnsatisfiableRangeError:
        os.close(descriptor)
        return _unsatisfiable(request["range"], info.st_size)
    first, length = asked or (0, info.st_size)
    headers["Content-Length"] = str(length)
    if asked:
        headers["Content-Range"] = f"bytes {first}-{first + length - 1}/{info.st_size}"
    return _respond(descriptor, first, length, headers, status=206 if asked else 200, head=head)


def _respond(descriptor: int, first: int, length: int, headers: dict[str, str], *, status: int, head: bool) -> Response:
    if head:
        os.close(descriptor)
        return Response(status_code=status, headers=headers, media_type=MEDIA_TYPE)
    return _FileStream(descriptor, _read(descriptor, first, length), status, headers)


class _FileStream(StreamingResponse):
    """Closes the descriptor whatever happens: sent, client gone, or an error while reading."""

    def __init__(self, descriptor: int, content: AsyncIterator[bytes], status: int, headers: dict[str, str]) -> None:
        super().__init__(content, status, headers, MEDIA_TYPE)
        self._descriptor = descriptor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            os.close(self._descriptor)


def _not_modified(request: Headers, etag: str, modified: int) -> bool:
    if (tags := request.get("if-none-match")) is not None:
        return tags.strip() == "*" or etag in {tag.strip().removeprefix("W/") for tag in tags.split(",")}
    try:
        since = parsedate_to_datetime(request["if-modified-since"])
    except (KeyError, ValueError, TypeError):  # absent, or not a date: then it does not apply
        return False
    return since.timestamp() >= modified


def _range_applies(request: Headers, etag: str) -> bool:
    return request.get("if-range", etag) == etag


def _unsatisfiable(asked: str, size: int) -> Response:
    message = f"a range must lie within the file's {size} bytes; it is {asked!r}"
    body = error_body("RangeNotSatisfiable", message)
    return JSONResponse(body, status_code=416, headers={"Content-Range": f"bytes */{size}"})


async def _read(descriptor: int, first: int, length: int) -> AsyncIterator[bytes]:
    while length:
        block = await asyncio.to_thread(os.pread, descriptor, min(BLOCK, length), first)
        if not block:
            raise OSError("the file became shorter while it was sent")  # the client sees the connection break
        first, length = first + len(block), length - len(block)
        yield block
