"""Bounds the connections of the server, so that the jobs always have descriptors left to write their archives with.

uvicorn gives requests no time limit: a client that sends half of a header holds a connection for ever. Here

    accept    when as many connections are open as may be, the one whose client has been silent for longest is closed
              for the new one; where the server is to answer every one, the new one gets 503
    watch     every second: who sends no complete header in time, or takes nothing of the answer, is closed

The time of a request's body is bounded in body_limit.py.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from sparcom_server.errors import RETRY_SECONDS, BusyError, error_body

log = logging.getLogger(__name__)

MAX_DESCRIPTORS = 65_536  # the soft limit is raised to that where the hard limit lets it
RESERVED_DESCRIPTORS = 256  # for the jobs, the engines and the process itself
BACKLOG = 128  # connections that the loop may accept at once, before it is asked whether they may stay
PER_CONNECTION = 2  # a socket, and the file that is sent


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open descriptors as far as is useful and allowed; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def connection_limit(wanted: int, descriptors: int) -> int:
    """The connections that may be open at once, so that `RESERVED_DESCRIPTORS` are left of `descriptors`."""
    return max(1, min(wanted, (descriptors - RESERVED_DESCRIPTORS - BACKLOG) // PER_CONNECTION))


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """most: connections at once. head_seconds: for a request's headers. send_seconds: longest stall of an answer."""

    most: int
    head_seconds: float
    send_seconds: float


class _Connection(H11Protocol):
    """uvicorn's protocol of one connection, with what the guard must know of it.

    Always h11: with httptools, which uvicorn prefers where it is installed, headers may have any size.
    """

    limits: ConnectionLimits

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        self.heard = asyncio.get_running_loop().time()
        self.idle_since: float | None = self.heard
        self.stalled = (0, self.heard)  # bytes that wait to be sent, and since when it is that many
        others = [one for one in self.connections if isinstance(one, _Connection) and not one.transport.is_closing()]
        super().connection_made(transport)
        if len(others) >= self.limits.most and not _close_longest_silent(others):
            transport.write(_BUSY)
            transport.close()

    def data_received(self, data: bytes) -> None:
        self.heard = asyncio.get_running_loop().time()
        super().data_received(data)

    @property
    def waiting(self) -> bool:
        """Whether it is the client's turn: no request has come, or not all of one."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def overdue(self, now: float) -> bool:
        """Whether the client has let a limit pass. Call it every second."""
        unsent = self.transport.get_write_buffer_size()
        if unsent != self.stalled[0]:
            self.stalled = (unsent, now)
        if self.cycle is not None and not self.cycle.response_complete:
            self.idle_since = None
        elif self.idle_since is None:
            self.idle_since = now
        idle = self.idle_since is not None and now - self.idle_since > self.limits.head_seconds
        return idle or bool(unsent and now - self.stalled[1] > self.limits.send_seconds)


def limited_protocol(limits: ConnectionLimits) -> type[asyncio.Protocol]:
    """The class that uvicorn makes its connections of."""

    class Limited(_Connection):
        pass

    Limited.limits = limits
    return Limited


def close_overdue(connections: Iterable[Any], now: float) -> None:
    """Close the connections whose client is late."""
    overdue = [one for one in connections if isinstance(one, _Connection) and one.overdue(now)]
    for connection in overdue:
        connection.transport.abort()
    if overdue:
        log.warning("closed %d connections whose clients sent or took nothing in time", len(overdue))


def _close_longest_silent(connections: Iterable[_Connection]) -> bool:
    """Close the connection whose client has been silent for longest though it is its turn; False if there is none."""
    waiting = [one for one in connections if one.waiting]
    if not waiting:
        return False
    min(waiting, key=lambda one: one.heard).transport.abort()
    return True


def _busy_answer() -> bytes:
    message = "as many connections are open as may be; try again soon"
    body = json.dumps(error_body(BusyError.__name__, message)).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
        f"Retry-After: {RETRY_SECONDS[BusyError]}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


_BUSY = _busy_answer()
