"""Read the body of an upload as it arrives: the bytes of the file, or a multipart form as OpenAI's clients send it.

Starlette's parser of forms writes files to the system's temporary folder first, which may lie in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from sparcom_server.errors import IncompleteBodyError, NotMultipartError, UnsupportedMediaError

FILE_TYPES = ("application/jsonl", "application/x-ndjson", "application/octet-stream")
FORM_TYPE = "multipart/form-data"
MAX_FIELDS, MAX_FIELD_BYTES = 10, 4096
FORM_BYTES = 64 * 2**10  # most that a form adds to its file


class UploadBody:
    """The file of an upload: an asynchronous iterator of its bytes. `fields` of a form are known once it has ended.

    Raises:
        UnsupportedMediaError: the body is declared as another type. A page of another site could send text/plain.
        NotMultipartError: the form has no boundary.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self.fields: dict[str, str] = {}
        media, options = parse_options_header(request.headers.get("content-type", ""))
        declared = media.decode("latin-1")
        self._form: _Form | None = None
        if declared == FORM_TYPE:
            self._form = _Form(options.get(b"boundary", b""), self.fields)
        elif declared not in FILE_TYPES:
            raise UnsupportedMediaError(
                f"an upload must be declared as {', '.join(FILE_TYPES)} or {FORM_TYPE}; send the header "
                "'Content-Type: application/jsonl'"
            )

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the bytes of the file.

        Raises:
            IncompleteBodyError: the client disconnected. NotMultipartError: the form is malformed or has no file.
        """
        try:
            async for data in self._request.stream():
                for part in await asyncio.to_thread(self._form.feed, data) if self._form else [data]:
                    yield part
        except ClientDisconnect:
            raise IncompleteBodyError("the connection closed before the body was complete; send it again") from None
        if self._form:
            self._form.require_complete()


class _Form:
    """A multipart form with one file, the field `file`. Other fields are small and go to `fields`."""

    def __init__(self, boundary: bytes, fields: dict[str, str]) -> None:
        self._fields = fields
        self._headers: dict[bytes, bytes] = {}
        self._header = self._value = b""
        self._is_file = self._has_file = self._complete = False
        self._name, self._filename, self._text = "", "", bytearray()
        self._file: list[bytes] = []
        methods = ("part_begin", "part_data", "part_end", "header_field", "header_value", "header_end")
        callbacks: Any = {f"on_{name}": getattr(self, f"_{name}") for name in methods}
        callbacks |= {"on_headers_finished": self._part_named, "on_end": self._end}
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise NotMultipartError(f"a multipart form must have a valid boundary; {error}") from None
        if not boundary:
            raise NotMultipartError("a multipart form must have a boundary; its Content-Type has none")

    def feed(self, data: bytes) -> list[bytes]:
        """Parse the next bytes of the body; return those of the file."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise NotMultipartError(f"the body must be a multipart form: {error}") from None
        file, self._file = self._file, []
        return file

    def require_complete(self) -> None:
        """Raise NotMultipartError unless the form has ended and had a file."""
        if not self._complete:
            raise NotMultipartError("a multipart form must end with its boundary; this one ends early. Send it again")
        if not self._has_file:
            raise NotMultipartError("a multipart form must have the field 'file'; this one has none")

    def _part_begin(self) -> None:
        self._headers, self._text = {}, bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def _part_named(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"").decode(errors="replace")
        self._is_file = self._name == "file"
        if (self._is_file and self._has_file) or self._name in self._fields:
            raise NotMultipartError(f"a field may occur once; {self._name[:60]!r} occurs again")
        if len(self._fields) >= MAX_FIELDS:
            raise NotMultipartError(f"a form may have at most {MAX_FIELDS} fields besides the file; it has more")
        if self._is_file:
            self._has_file = True
            self._filename = options.get(b"filename", b"").decode(errors="replace")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._file.append(data[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > MAX_FIELD_BYTES:
            raise NotMultipartError(f"a field of the form may have at most {MAX_FIELD_BYTES} bytes; it has more")

    def _part_end(self) -> None:
        if not self._is_file:
            self._fields[self._name] = self._text.decode(errors="replace")

    def _end(self) -> None:
        self._complete = True
        if self._filename:
            self._fields.setdefault("filename", self._filename)
