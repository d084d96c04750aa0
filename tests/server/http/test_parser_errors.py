"""Bytes that are not HTTP get a problem detail too, and the connection is closed."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

from fake_engine import FakeEngine

Start = Callable[..., Any]
HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /v1/extractions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CASES = {
    "no HTTP": (b"hello\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", 400),
    "a space in a header's name": (HEAD + b"A b: c\r\n\r\n", 400),
    "two lengths": (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "a length that is no number": (POST + b"Content-Length: x\r\n\r\n", 400),
    "a negative length": (POST + b"Content-Length: -1\r\n\r\n", 400),
    "a bad chunk": (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    "an unknown encoding": (POST + b"Transfer-Encoding: gzip\r\n\r\n", 501),
    "a long header": (HEAD + b"A: " + b"a" * 70_000, 431),
    "a second request": (HEAD + b"\r\n" + b"hello\r\n\r\n", 400),
}


def exchange(running: Any, data: bytes) -> bytes:
    """Send bytes, and return all that comes back until the server closes the connection."""
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize("case", CASES)
def test_invalid_http_gets_a_problem(start: Start, case: str) -> None:
    """The last answer is a problem detail with the status of the parser's error; the server still works."""
    running = start()
    data, status = CASES[case]
    answer = exchange(running, data)
    head, _, body = answer[answer.rindex(b"HTTP/1.1 ") :].partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head
    problem = json.loads(body)
    assert f"content-length: {len(body)}".encode() in head
    assert (problem["status"], problem["problems"]) == (status, [problem["detail"]])
    assert problem["detail"].startswith("the request must be valid HTTP/1.1: ")
    assert running.http.get("/health").status_code == 200


def test_an_upgrade_is_ignored(start: Start) -> None:
    """A request for WebSockets gets the usual answer of its route."""
    data = HEAD + b"Connection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n"
    assert exchange(start(), data).startswith(b"HTTP/1.1 200")


def test_nothing_is_added_to_a_response_that_has_begun(start: Start, gate: Any) -> None:
    """Garbage after a request whose response is being sent ends the connection without a second answer."""
    running = start(FakeEngine(gate=gate))
    job = running.post(1).json()["id"]
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        head = f"GET /v1/extractions/{job}/events HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200")
        connection.sendall(b"zz\r\n")
        answer += b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.count(b"HTTP/1.1 ") == 1
