"""Clients that send half a request, or read none of a response, do not stop the service or its jobs."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest

from fake_engine import FakeEngine
from helpers import problem_of
from sparcom_data.archive import open_archive
from sparcom_server.http.connections import RESERVED_DESCRIPTORS, connection_limit, raise_descriptor_limit

Start = Callable[..., Any]
HALF_HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Half:"
HALF_BODY = (
    b"POST /v1/extractions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b'Content-Length: 1000\r\n\r\n{"instructions": ['
)


def address(running: Any) -> tuple[str, int]:
    """Return the address of a server in a thread."""
    host, port = running.url.removeprefix("http://").split(":")
    return host, int(port)


@contextmanager
def half_sent(where: tuple[str, int], count: int, data: bytes) -> Iterator[list[socket.socket]]:
    """Return `count` connections that sent only `data`, including those that the server has already closed."""
    with ExitStack() as stack:
        connections = []
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection(where, timeout=20))
            connections.append(connection)
            try:
                connection.sendall(data)
            except ConnectionError:
                continue
        yield connections


def received(connection: socket.socket) -> bytes:
    """Return all bytes until the server closes the connection."""
    parts = b""
    try:
        while part := connection.recv(65536):
            parts += part
    except ConnectionResetError:
        return parts
    return parts


@pytest.mark.parametrize("data", [HALF_HEAD, HALF_BODY], ids=["head", "body"])
def test_half_sent_requests_harm_no_job(process: Start, data: bytes) -> None:
    """With 1,100 of them and 1,024 descriptors, the server still answers and completes the running job."""
    raise_descriptor_limit()
    running = process(descriptors=1024, pause=0.002)
    batch = [{"id": f"i{n}", "text": "a b"} for n in range(200)]
    job = running.http.post("/v1/extractions", json={"archive": "a", "instructions": batch}).json()
    with half_sent(running.address, 1100, data):
        for _ in range(5):
            assert httpx.get(f"{running.url}/health").status_code == 200
        path = f"/v1/extractions/{job['id']}"
        running.wait_for(lambda: httpx.get(running.url + path).json()["finished"])
        assert running.descriptors() < 1024 - RESERVED_DESCRIPTORS
    job = httpx.get(running.url + path).json()
    assert (job["state"], job["progress"]["complete"], job["error"]) == ("complete", 200, None)
    assert open_archive(running.data / "archives" / "a.zarr").instructions.state.tolist() == [1] * 200
    assert "Traceback" not in running.log.read_text()


@pytest.mark.parametrize(
    "data", [b"", b"GET / HTTP", HALF_HEAD, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + HALF_HEAD]
)
def test_headers_have_a_time_limit(start: Start, data: bytes) -> None:
    """A connection without a complete first or second header is closed after `request_seconds`."""
    running = start(request_seconds=0.2)
    with half_sent(address(running), 1, data) as (connection,):
        assert received(connection).count(b"HTTP/1.1 200") == data.count(b"\r\n\r\n")


def test_a_connection_that_is_used_stays_open(start: Start) -> None:
    """A client that polls is not closed as idle, however rarely the check meets one of its requests."""
    running = start(request_seconds=1.0)
    with socket.create_connection(address(running), timeout=20) as connection:
        until = time.monotonic() + 3.5  # some checks after `request_seconds`
        while time.monotonic() < until:
            connection.sendall(b"GET /docs HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = connection.recv(65_536)
            assert answer.startswith(b"HTTP/1.1 200")
            length = int(answer.split(b"content-length: ")[1].split(b"\r\n")[0])
            while len(answer.split(b"\r\n\r\n", 1)[1]) < length:
                answer += connection.recv(65_536)
            time.sleep(0.2)


def test_idle_connections_outlive_those_of_clients(start: Start) -> None:
    """httpx keeps an idle connection for 5 s; if the server closed it first, a request could meet a closed one."""
    assert start().server.config.timeout_keep_alive > 5


def test_a_header_has_a_size_limit(start: Start) -> None:
    """An endless header is refused at 64 KiB."""
    with socket.create_connection(address(start()), timeout=20) as connection:
        answer = b""
        connection.sendall(HALF_HEAD)
        try:
            for _ in range(1000):
                connection.sendall(b"a" * 65536)
        except ConnectionError:
            return
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert b"\r\ncontent-type: application/problem+json\r\n" in answer


def test_a_body_has_a_time_limit(start: Start) -> None:
    """A body that stops halfway gets 408 after `body_seconds`."""
    with half_sent(address(start(body_seconds=0.2)), 1, HALF_BODY) as (connection,):
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"must be complete within 0.2 s" in answer


def test_bodies_are_bounded_together(start: Start) -> None:
    """Four bodies of the largest size may be held at once; a fifth gets 503 and does not affect them."""
    running = start(max_body_bytes=1000)
    body = json.dumps({"instructions": [{"id": "a", "text": "x" * 930}]}).encode()
    assert 960 < len(body) < 1000
    head = (
        "POST /v1/extractions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    with half_sent(address(running), 5, head + body[:-1]) as five:
        refused, _, _ = select.select(five, [], [], 20)
        answers = [received(connection) for connection in refused]
        for connection in five:
            if connection not in refused:
                connection.sendall(body[-1:])
                answers.append(received(connection))
    statuses = [int(answer.split()[1]) for answer in answers]
    assert statuses == [503, 202, 202, 202, 202]
    assert b"retry-after: 5" in answers[0].lower()


def test_an_unread_response_is_dropped(start: Start) -> None:
    """A client that requests a large file and reads nothing is disconnected after `send_seconds`."""
    running = start(send_seconds=0.2)
    running.archives.mkdir(parents=True)
    (running.archives / "a.zarr").mkdir()
    (running.archives / "a.zarr" / "big").write_bytes(bytes(64 * 2**20))
    running.http.close()
    running.http = httpx.Client(base_url=running.url, headers={"Connection": "close"})
    data = b"GET /v1/archives/a/zarr/big HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with half_sent(address(running), 1, data):
        running.wait_for(lambda: len(running.server.server_state.connections) == 1)
        running.wait_for(lambda: not running.server.server_state.connections)


def test_the_longest_silent_connection_is_closed_for_a_new_one(start: Start) -> None:
    """At the limit, a new client is served, and the connection of the longest silent client is closed."""
    running = start(max_connections=3)
    running.http.close()
    running.http = httpx.Client(base_url=running.url)
    with half_sent(address(running), 3, HALF_HEAD) as (first, second, third):
        assert running.http.get("/health").status_code == 200
        assert received(first) == b""
        for connection in (second, third):
            connection.sendall(b" x\r\nConnection: close\r\n\r\n")
            assert received(connection).startswith(b"HTTP/1.1 200")


def test_a_fully_busy_server_answers_503(start: Start) -> None:
    """While every open connection awaits a response, a new one gets 503 with Retry-After and the usual error body."""
    running = start(FakeEngine(pause=60), max_connections=1)
    job = running.post(1).json()
    with running.http.stream("GET", f"/v1/extractions/{job['id']}/events") as stream:
        lines = stream.iter_lines()
        assert next(lines) == "event: progress"
        refused = httpx.get(f"{running.url}/health")
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
    assert problem_of(refused) == "busy"


def test_event_streams_are_bounded(start: Start) -> None:
    """One stream beyond the limit gets 503; after a stream has ended, a new one is accepted."""
    running = start(FakeEngine(pause=60), max_event_streams=1)
    job = running.post(1).json()
    path = f"/v1/extractions/{job['id']}/events"
    with running.http.stream("GET", path) as stream:
        lines = stream.iter_lines()
        assert next(lines) == "event: progress"
        refused = running.http.get(path)
        assert (refused.status_code, problem_of(refused)) == (503, "busy")
        assert refused.headers["Retry-After"] == "5"
    running.wait_for(lambda: not running.service.event_streams.locked())
    with running.http.stream("GET", path) as stream:
        assert stream.status_code == 200


def test_connections_leave_descriptors_for_the_jobs() -> None:
    """With two descriptors per connection and one per connection of a burst, 256 stay free."""
    assert connection_limit(1000, 65_536) == 1000
    assert connection_limit(1000, 1024) == 320
    assert 320 * 2 + 128 + RESERVED_DESCRIPTORS <= 1024
    assert connection_limit(1000, 64) == 1
