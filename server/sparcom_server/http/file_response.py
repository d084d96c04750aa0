"""One file over HTTP: exact bytes, HEAD, one byte range, validators. Zarr readers fetch chunks and parts of shards so.

The descriptor is opened once and everything is answered from it, because a running extraction replaces files by
renaming: looking at the size and then opening by name could pair the length of one file with the bytes of the next.
Starlette's FileResponse opens by path, so it can neither do that nor refuse links.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack
from datetime import UTC, datetime
from email.utils import formatdate
from io import FileIO

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from sparcom_server.errors import error_body

BLOCK = 1 << 20
MEDIA_TYPE = "application/octet-stream"
HTTP_DATE = "%a, %d %b %Y %H:%M:%S GMT"  # the one form of a date that RFC 9110 lets a client send
_RANGE = re.compile(r"bytes=([0-9]*)-([0-9]*)")


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
        length = min(_number(match[2]), size)
        first = size - length
    else:
        first = _number(match[1])
        if match[2] and _number(match[2]) < first:
            return None
        length = min(_number(match[2]) + 1 if match[2] else size, size) - first
    if length <= 0:
        raise UnsatisfiableRangeError(header)
    return first, length


def _number(digits: str) -> int:
    """The number, or `sys.maxsize` for a larger one: no file has as many bytes, and int() refuses 4,301 digits."""
    digits = digits.lstrip("0")
    return min(int(digits or "0"), sys.maxsize) if len(digits) < 20 else sys.maxsize


def file_response(descriptor: int, request: Headers, *, head: bool) -> Response:
    """The answer to GET or HEAD for an open file; takes over the descriptor and closes it on every path."""
    with ExitStack() as on_the_way_out:
        # A file object, so that the descriptor is closed even if the answer is dropped before it is sent.
        file = on_the_way_out.enter_context(FileIO(descriptor))
        response = _respond(file, request, head=head)
        if isinstance(response, _FileStream):  # it closes the file itself, once it is sent
            on_the_way_out.pop_all()
        return response


def _respond(file: FileIO, request: Headers, *, head: bool) -> Response:
    info = os.fstat(file.fileno())
    etag = f'"{info.st_ino:x}-{info.st_mtime_ns:x}-{info.st_size:x}"'
    headers = {
        "ETag": etag,
        "Last-Modified": formatdate(info.st_mtime, usegmt=True),
        "Accept-Ranges": "bytes",
        "Cache-Control": "no-cache",  # a running extraction replaces files: ask again, 304 is cheap
    }
    if _not_modified(request, etag, int(info.st_mtime)):
        return Response(status_code=304, headers=headers)
    try:
        asked = parse_range(request.get("range"), info.st_size) if _range_applies(request, etag) else None
    except UnsatisfiableRangeError:
        return _unsatisfiable(request["range"], info.st_size)
    first, length = asked or (0, info.st_size)
    headers["Content-Length"] = str(length)
    if asked:
        headers["Content-Range"] = f"bytes {first}-{first + length - 1}/{info.st_size}"
    status = 206 if asked else 200
    if head:
        return Response(status_code=status, headers=headers, media_type=MEDIA_TYPE)
    return _FileStream(file, _read(file, first, length), status, headers)


class _FileStream(StreamingResponse):
    """Closes the file whatever happens: sent, client gone, or an error while reading."""

    def __init__(self, file: FileIO, content: AsyncIterator[bytes], status: int, headers: dict[str, str]) -> None:
        super().__init__(content, status, headers, MEDIA_TYPE)
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._file:
            await super().__call__(scope, receive, send)


def _not_modified(request: Headers, etag: str, modified: int) -> bool:
    if (tags := request.get("if-none-match")) is not None:
        return tags.strip() == "*" or etag in {tag.strip().removeprefix("W/") for tag in tags.split(",")}
    try:
        since = datetime.strptime(request["if-modified-since"], HTTP_DATE).replace(tzinfo=UTC)
    except (KeyError, ValueError):  # absent, or not a date: then it does not apply
        return False
    return since.timestamp() >= modified


def _range_applies(request: Headers, etag: str) -> bool:
    return request.get("if-range", etag) == etag


def _unsatisfiable(asked: str, size: int) -> Response:
    message = f"a range must lie within the file's {size} bytes; it is {asked[:100]!r}"
    body = error_body("RangeNotSatisfiable", message)
    return JSONResponse(body, status_code=416, headers={"Content-Range": f"bytes */{size}"})


async def _read(file: FileIO, first: int, length: int) -> AsyncIterator[bytes]:
    while length:
        block = await asyncio.to_thread(_read_at, file, min(BLOCK, length), first)
        if not block:
            raise OSError("the file became shorter while it was sent")  # the client sees the connection break
        first, length = first + len(block), length - len(block)
        yield block


def _read_at(file: FileIO, length: int, first: int) -> bytes:
    return os.pread(file.fileno(), length, first)
