"""Thousands of idle sockets and hundreds of event streams do not stop a running job."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from sparcom_data.archive import open_archive
from sparcom_server.http.connections import RESERVED_DESCRIPTORS, raise_descriptor_limit

IDLE, STREAMS, COUNT = 2000, 500, 300


@pytest.mark.slow
def test_idle_sockets_and_streams_harm_no_job(process: Callable[..., Any]) -> None:
    """With 1,024 descriptors, 2,000 idle sockets and 500 event streams, the server answers and the job completes.

    Streams beyond the limit get 503; the open ones see the job's end.
    """
    raise_descriptor_limit()
    running = process(descriptors=1024, pause=0.05)
    batch = [{"id": f"i{n}", "text": "a b"} for n in range(COUNT)]
    job = httpx.post(f"{running.url}/v1/extractions", json={"archive": "a", "instructions": batch}).json()
    path = f"/v1/extractions/{job['id']}"
    request = f"GET {path}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    with ExitStack() as stack:
        for _ in range(IDLE):
            stack.enter_context(socket.create_connection(running.address, timeout=60))
        streams, statuses = [], []
        for _ in range(STREAMS):
            stream = stack.enter_context(socket.create_connection(running.address, timeout=60))
            stream.sendall(request)
            streams.append(stream)
            statuses.append(int(stream.recv(65_536, socket.MSG_PEEK).split()[1]))
        assert statuses.count(200) == 100
        assert statuses.count(503) == STREAMS - 100
        assert httpx.get(running.url + path).json()["state"] == "running"
        running.wait_for(lambda: httpx.get(running.url + path).json()["finished"])
        ends = [read_to_end(one) for one, status in zip(streams, statuses, strict=True) if status == 200]
        assert all(b"event: end" in end for end in ends)
        assert running.descriptors() < 1024 - RESERVED_DESCRIPTORS
    ended = httpx.get(running.url + path).json()
    assert (ended["state"], ended["progress"]["complete"], ended["error"]) == ("complete", COUNT, None)
    assert open_archive(running.data / "archives" / "a.zarr").instructions.state.tolist() == [1] * COUNT
    assert "Traceback" not in running.log.read_text()


def read_to_end(stream: socket.socket) -> bytes:
    """Return a chunked response."""
    data = b""
    while not data.endswith(b"0\r\n\r\n"):
        part = stream.recv(65_536)
        assert part, data
        data += part
    return data
