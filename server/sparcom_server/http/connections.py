"""Limit the server's connections, so that jobs always have file descriptors to write their archives.

    accept    at the limit, the connection of the longest silent client is closed for the new one; if the server owes
              every client a response, the new one gets 503
    watch     every second, a connection is closed if its client sends no complete header in time, or reads nothing of
              a response

uvicorn has no such limits: it waits forever for the rest of a header, and `limit_concurrency` refuses new clients while
silent ones keep their connections. body_limit.py limits the time of a body.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import sys
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import h11
from starlette.responses import Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from sparcom_server.errors import BusyError, error_response, status_problem
from sparcom_server.settings import ServerSettings

logger = logging.getLogger(__name__)

MAX_DESCRIPTORS = 65_536  # the soft limit is raised to this if the hard limit allows it
RESERVED_DESCRIPTORS = 256  # for jobs, engines and the process itself
BACKLOG = 128  # connections that the event loop may accept before it can refuse any
PER_CONNECTION = 2  # descriptors: the socket and the file being sent


def raise_descriptor_limit() -> None:
    """Raise the soft limit of open descriptors up to MAX_DESCRIPTORS or the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # never unlimited on Linux
    wanted = min(hard, MAX_DESCRIPTORS)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connection_limit(wanted: int, descriptors: int) -> int:
    """Return the number of connections that leaves `RESERVED_DESCRIPTORS` of `descriptors` free."""
    return max(1, min(wanted, (descriptors - RESERVED_DESCRIPTORS - BACKLOG) // PER_CONNECTION))


class _Connection(H11Protocol):
    """One connection. h11 limits headers to 64 KiB; httptools, uvicorn's default, does not."""

    max_connections: int
    head_seconds: float  # time limit for the headers of a request
    send_seconds: float  # longest stall of a response

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        self.heard = asyncio.get_running_loop().time()
        self.idle_since: float | None = self.heard
        self.stalled = (0, self.heard)  # unsent bytes, and the time since which that number stands
        others = [one for one in self.connections if isinstance(one, _Connection) and not one.transport.is_closing()]
        super().connection_made(transport)
        if len(others) >= self.max_connections and not _close_longest_silent(others):
            transport.write(_BUSY)
            transport.close()

    def data_received(self, data: bytes) -> None:
        self.heard = asyncio.get_running_loop().time()
        super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is not HTTP with a problem detail, and close; uvicorn calls it as it handles the error.

        Without a response if one has begun: the client sees the connection break.
        """
        error = sys.exception()
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            status = getattr(error, "error_status_hint", 400)
            self.transport.write(_closing(status_problem(status, f"the request must be valid HTTP/1.1: {error}")))
        if self.cycle is not None:
            self.cycle.disconnected = True  # its response would follow this one
        self.transport.close()

    def on_response_complete(self) -> None:
        self.idle_since = asyncio.get_running_loop().time()  # `overdue` may never see a short request
        super().on_response_complete()

    @property
    def waiting(self) -> bool:
        """Whether the server waits for the client: no request has come, or only part of one."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def overdue(self, now: float) -> bool:
        """Return whether the client has exceeded a limit. Call it every second."""
        unsent = self.transport.get_write_buffer_size()
        if unsent != self.stalled[0]:
            self.stalled = (unsent, now)
        if self.cycle is not None and not self.cycle.response_complete:
            self.idle_since = None
        elif self.idle_since is None:
            self.idle_since = now
        idle = self.idle_since is not None and now - self.idle_since > self.head_seconds
        return idle or bool(unsent and now - self.stalled[1] > self.send_seconds)


def limited_protocol(connections: int, settings: ServerSettings) -> type[asyncio.Protocol]:
    """Return the protocol class that uvicorn instantiates per connection."""

    class Limited(_Connection):
        max_connections = connections
        head_seconds = settings.request_seconds
        send_seconds = settings.send_seconds

    return Limited


def close_overdue(connections: Iterable[Any], now: float) -> None:
    """Close the connections of clients that exceeded a limit."""
    overdue = [one for one in connections if isinstance(one, _Connection) and one.overdue(now)]
    for connection in overdue:
        connection.transport.abort()
    if overdue:
        logger.warning("closed %d connections: their clients sent or read nothing in time", len(overdue))


def _close_longest_silent(connections: Iterable[_Connection]) -> bool:
    """Close the connection of the longest silent client that the server waits for; return False if there is none."""
    waiting = [one for one in connections if one.waiting]
    if waiting:
        min(waiting, key=lambda one: one.heard).transport.abort()
    return bool(waiting)


def _closing(response: Response) -> bytes:
    """Return the bytes of a response that closes the connection."""
    headers = [*response.raw_headers, (b"connection", b"close")]
    status = HTTPStatus(response.status_code)
    head = [f"HTTP/1.1 {status} {status.phrase}".encode(), *(b": ".join(header) for header in headers), b"", b""]
    return b"\r\n".join(head) + bytes(response.body)


_BUSY = _closing(error_response(BusyError("the limit of open connections is reached. Try again soon")))
