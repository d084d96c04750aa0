"""Send one file over HTTP: exact bytes, HEAD, one byte range, validators. Zarr readers fetch chunks this way.

A running extraction replaces files by renaming. The file is therefore opened once, and size and bytes come from that
descriptor. Starlette's FileResponse opens by path: it can pair the size of one file with the bytes of the next, and it
follows links.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import ExitStack
from datetime import UTC, datetime
from email.utils import formatdate
from io import FileIO

from starlette.datastructures import Headers
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from sparcom_server.errors import problem_response
from sparcom_server.http import parse_digits

BLOCK_BYTES = 1 << 20
MEDIA_TYPE = "application/octet-stream"
HTTP_DATE = "%a, %d %b %Y %H:%M:%S GMT"  # the only date format that RFC 9110 lets a client send
_RANGE = re.compile(r"bytes=([0-9]*)-([0-9]*)")


class UnsatisfiableRangeError(ValueError):
    """A byte range outside the file."""


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return first byte and length of the range of a `Range` header, or None to send the whole file.

    Malformed and multiple ranges are ignored, as RFC 9110 allows.

    Raises:
        UnsatisfiableRangeError: the file has no byte of the range.
    """
    match = _RANGE.fullmatch(header.replace(" ", "")) if header else None
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:  # the last n bytes
        length = min(parse_digits(match[2]), size)
        first = size - length
    else:
        first = parse_digits(match[1])
        if match[2] and parse_digits(match[2]) < first:
            return None
        length = min(parse_digits(match[2]) + 1 if match[2] else size, size) - first
    if length <= 0:
        raise UnsatisfiableRangeError(header)
    return first, length


def file_response(descriptor: int, request: Headers, *, head: bool, media_type: str = MEDIA_TYPE) -> Response:
    """Return the response to GET or HEAD for an open file. Owns the descriptor and always closes it."""
    with ExitStack() as stack:
        # A file object closes the descriptor even if the response is dropped before it is sent.
        file = stack.enter_context(FileIO(descriptor))
        response = _respond(file, request, head=head, media_type=media_type)
        if isinstance(response, _FileStream):  # closes the file itself after sending
            stack.pop_all()
        return response


def _respond(file: FileIO, request: Headers, *, head: bool, media_type: str) -> Response:
    info = os.fstat(file.fileno())
    etag = f'"{info.st_ino:x}-{info.st_mtime_ns:x}-{info.st_size:x}"'
    headers = {
        "ETag": etag,
        "Last-Modified": formatdate(info.st_mtime, usegmt=True),
        "Accept-Ranges": "bytes",
        "Cache-Control": "no-cache",  # a running extraction replaces files; revalidating costs only a 304
    }
    if _not_modified(request, etag, int(info.st_mtime)):
        return Response(status_code=304, headers=headers)
    applies = request.get("if-range", etag) == etag
    try:
        asked = parse_range(request.get("range"), info.st_size) if applies else None
    except UnsatisfiableRangeError:
        message = f"a range must lie within the file's {info.st_size} bytes; it is {request['range'][:100]!r}"
        return problem_response("RangeNotSatisfiable", 416, [message], {"Content-Range": f"bytes */{info.st_size}"})
    first, length = asked or (0, info.st_size)
    headers["Content-Length"] = str(length)
    if asked:
        headers["Content-Range"] = f"bytes {first}-{first + length - 1}/{info.st_size}"
    status = 206 if asked else 200
    if head:
        return Response(status_code=status, headers=headers, media_type=media_type)
    return _FileStream(file, _read(file, first, length), status, headers, media_type)


class _FileStream(StreamingResponse):
    """Closes the file on every path: sent, client gone, or an error while reading."""

    def __init__(
        self, file: FileIO, content: AsyncIterator[bytes], status: int, headers: dict[str, str], media_type: str
    ) -> None:
        super().__init__(content, status, headers, media_type)
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._file:
            await super().__call__(scope, receive, send)


def _not_modified(request: Headers, etag: str, modified: int) -> bool:
    if (tags := request.get("if-none-match")) is not None:
        return tags.strip() == "*" or etag in {tag.strip().removeprefix("W/") for tag in tags.split(",")}
    try:
        since = datetime.strptime(request["if-modified-since"], HTTP_DATE).replace(tzinfo=UTC)
    except (KeyError, ValueError):  # absent or not a date, so it does not apply
        return False
    return since.timestamp() >= modified


async def _read(file: FileIO, first: int, length: int) -> AsyncIterator[bytes]:
    while length:
        block = await asyncio.to_thread(os.pread, file.fileno(), min(BLOCK_BYTES, length), first)
        if not block:
            raise OSError("the file was truncated while it was sent")  # the client sees the connection break
        first, length = first + len(block), length - len(block)
        yield block
