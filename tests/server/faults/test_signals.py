"""Signals at bad moments end the service in time, with the stated exit status, and the next start loses nothing."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import psutil
import pytest

from helpers import instructions
from sparcom_data.archive import open_archive
from sparcom_server.run import CLOSE_SECONDS

pytestmark = pytest.mark.slow

Start = Callable[..., Any]
JSONL = {"Content-Type": "application/jsonl"}
COUNT = 60


def submit(running: Any, count: int = COUNT, **fields: Any) -> str:
    """Submit a job; return its address once it has complete instructions."""
    body = {"instructions": instructions(count), **fields}
    address = f"/v1/extractions/{running.http.post('/v1/extractions', json=body).json()['id']}"
    running.wait_for(lambda: running.http.get(address).json()["progress"]["complete"] >= 2)
    return address


def ended(running: Any, address: str) -> dict[str, Any]:
    """Return a job once it has ended."""
    running.wait_for(lambda: running.http.get(address).json()["finished"])
    report: dict[str, Any] = running.http.get(address).json()
    return report


def seconds_until_end(running: Any, *signals: signal.Signals, most: float = 20) -> float:
    """Send signals to a server, wait for its end, and return the time from the last signal."""
    for number in signals:
        began = time.monotonic()
        running.popen.send_signal(number)
        time.sleep(0.3 * (len(signals) > 1))  # two at once would be one
    running.popen.wait(most)
    return time.monotonic() - began


def test_a_job_that_does_not_stop_is_dropped_in_time(process: Start, record_property: Any) -> None:
    """An engine that ignores the request is waited for during `stop_seconds`. Then the service ends with 0, what is
    complete stays, and the next start goes on."""
    running = process(pause=0.1, deaf=True, stop_seconds=1)
    address = submit(running, archive="m")
    seconds = seconds_until_end(running, signal.SIGTERM)
    record_property("seconds", seconds)
    assert running.popen.returncode == 0, running.log.read_text()
    assert 0.9 < seconds < 1 + CLOSE_SECONDS
    assert "did not stop within 1 s and is dropped" in running.log.read_text()
    assert "Traceback" not in running.log.read_text()
    states = open_archive(running.data / "archives" / "m.zarr").instructions.state.tolist()
    assert 2 <= states.count(1) < COUNT
    again = process()
    assert ended(again, address)["progress"]["complete"] == COUNT
    assert open_archive(running.data / "archives" / "m.zarr").instructions.state.tolist() == [1] * COUNT


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [
        (signal.SIGTERM, signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, signal.SIGHUP, 129, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, signal.SIGHUP, 129, marks=pytest.mark.slow),
    ],
)
def test_a_second_signal_ends_at_once(
    process: Start, first: signal.Signals, second: signal.Signals, status: int, record_property: Any
) -> None:
    """A job that does not stop, and a client in the middle of an upload, do not delay it. The next start removes the
    partial file and completes the job."""
    running = process(pause=0.1, deaf=True, stop_seconds=60)
    address = submit(running, archive="m")
    with half_upload(running):
        running.wait_for(lambda: list((running.data / "files").glob("*.partial")))
        seconds = seconds_until_end(running, first, second)
    record_property("seconds", seconds)
    assert running.popen.returncode == status, running.log.read_text()
    assert seconds < 2
    assert "Traceback" not in running.log.read_text()
    again = process()
    assert not list((running.data / "files").glob("*"))
    assert ended(again, address)["progress"]["complete"] == COUNT
    assert open_archive(running.data / "archives" / "m.zarr").instructions.state.tolist() == [1] * COUNT


@contextmanager
def half_upload(running: Any) -> Iterator[socket.socket]:
    """Send half of a file, and wait."""
    lines = "".join(f'{{"id": "u{n}", "text": "a"}}\n' for n in range(50_000)).encode()
    head = (
        "POST /v1/files HTTP/1.1",
        "Host: localhost",
        f"Content-Length: {len(lines)}",
        "Content-Type: application/jsonl",
    )
    with socket.create_connection(running.address, timeout=20) as connection:
        connection.sendall("\r\n".join([*head, "", ""]).encode() + lines[: len(lines) // 2])
        yield connection


@pytest.mark.slow
def test_open_requests_end_with_the_service(process: Start, record_property: Any) -> None:
    """An upload, two downloads that nobody reads, and event streams are open at SIGTERM. The service ends with 0 in
    time; streams end without `end`; the refused upload leaves nothing; the next start completes the job."""
    running = process(pause=0.02)
    big = "".join(json.dumps({"id": f"b{n}", "text": "x " * 4_000_000}) + "\n" for n in range(3))
    file = running.http.post("/v1/files", content=big, headers=JSONL, timeout=60).json()
    address = submit(running, 400, archive="m")
    downloads = [slow_reader(running, path) for path in (f"/v1/files/{file['id']}/content", f"{address}/results")]
    events: list[str] = []
    streams = [threading.Thread(target=lambda: events.extend(stream(running.url + address))) for _ in range(3)]
    for thread in streams:
        thread.start()
    running.wait_for(lambda: len(events) > 3)
    with half_upload(running) as upload:
        running.wait_for(lambda: list((running.data / "files").glob("*.partial")))
        seconds = seconds_until_end(running, signal.SIGTERM)
        assert b" 201 " not in upload.recv(1000)
    record_property("seconds", seconds)
    for thread in streams:
        thread.join(20)
        assert not thread.is_alive()
    log = running.log.read_text()
    assert running.popen.returncode == 0, log
    assert seconds < CLOSE_SECONDS + 3
    assert "event: end" not in events
    assert [path.name for path in (running.data / "files").iterdir()] == [f"{file['id']}.jsonl"]
    received = b""
    while block := downloads[0].recv(1 << 20):
        received += block
    assert len(received) < len(big), "it was complete before the signal"
    for download in downloads:
        download.close()
    again = process()
    assert again.http.get(f"/v1/files/{file['id']}/content").text == big
    assert ended(again, address)["progress"]["complete"] == 400
    assert len(again.http.get(f"{address}/results").text.splitlines()) == 400


def slow_reader(running: Any, path: str) -> socket.socket:
    """Ask for a path and read nothing."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(20)
    connection.connect(running.address)
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return connection


def stream(url: str) -> Iterator[str]:
    """Yield the lines of an event stream until it ends, however it ends."""
    try:
        with httpx.stream("GET", f"{url}/events", timeout=30) as response:
            yield from response.iter_lines()
    except httpx.TransportError:
        return


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGKILL, -9)])
def test_an_analysis_ends_with_the_service(process: Start, number: signal.Signals, status: int) -> None:
    """Its process does not outlive the service, even if that is killed; the next start analyzes again."""
    running = process()
    address = submit(running, 12, archive="m", analysis=True)
    running.wait_for(lambda: "analysis" in (running.http.get(address).json()["reason"] or ""))
    running.wait_for(lambda: psutil.Process(running.popen.pid).children())
    (analysis,) = psutil.Process(running.popen.pid).children()
    assert seconds_until_end(running, number) < 3
    assert running.popen.returncode == status
    psutil.wait_procs([analysis], 2)
    assert not analysis.is_running() or analysis.status() == psutil.STATUS_ZOMBIE
    assert not (running.data / "analyses" / address.rpartition("/")[2]).exists()
    again = process()
    report = ended(again, address)
    assert report["state"] == "complete", report["error"]
    assert again.http.get(f"{address}/analysis/report.html").status_code == 200
    assert len(list((running.data / "analyses").iterdir())) == 1


def test_nohup_is_respected(process: Start) -> None:
    """A process that was started with SIGHUP ignored goes on serving."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        running = process()
    finally:
        signal.signal(signal.SIGHUP, before)
    running.popen.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert running.http.get("/ready").status_code == 200
