"""`wait` and `watch` while the server breaks off, restarts or goes away."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from fake_engine import FakeEngine
from sparcom_client import Job, NoAnswerError

Start = Callable[..., Any]
Connect = Callable[..., Any]


def items(count: int) -> list[dict[str, str]]:
    """Return small instructions."""
    return [{"id": f"i{number}", "text": "one two three"} for number in range(count)]


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def test_a_wait_survives_a_killed_server(process: Start, connect: Connect) -> None:
    """The server is killed in the middle of the job and started again: the wait goes on and ends with all complete."""
    port = free_port()
    first = process(pause=0.05, port=port)
    client = connect(first.url)
    job = client.submit(items(40))
    restarted = threading.Event()

    def show(report: Job) -> None:
        if report.progress.complete >= 5 and not restarted.is_set():
            first.popen.kill()
            first.popen.wait()
            restarted.set()
            threading.Thread(target=process, kwargs={"ready": False, "pause": 0.0, "port": port}).start()

    ended = client.wait(job, progress=show)
    assert restarted.is_set()
    assert ended.succeeded
    assert ended.id == job.id


def test_polling_replaces_broken_streams(start: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server without a free event stream is polled to the end."""
    monkeypatch.setattr("sparcom_client.methods.POLL_SECONDS", 0.02)
    running = start(FakeEngine(pause=0.05), max_event_streams=1)
    client = connect(running.url)
    job = client.submit(items(10))
    with httpx.stream("GET", job.links.events, timeout=20) as taken:
        next(taken.iter_lines())
        states = [(report.state, report.progress.complete) for report in client.watch(job)]
    assert states[-1] == ("complete", 10)
    assert len({complete for _, complete in states}) > 3


def test_a_stream_goes_on_after_the_last_event(start: Start, connect: Connect) -> None:
    """A stream that breaks off is opened again with Last-Event-ID, and no report comes twice."""
    running = start(FakeEngine(pause=0.02))
    asked: list[str | None] = []
    client = connect(running.url, drops=lambda request: asked.append(request.headers.get("Last-Event-ID")) and False)
    reports = list(client.watch(client.submit(items(5))))
    assert reports[-1].succeeded
    assert asked.count(None) == len(asked), "one stream is enough"


def test_a_lost_server_ends_the_wait(start: Start, connect: Connect) -> None:
    """Once the server has not answered for the given time, the wait ends with an error."""
    running = start(FakeEngine(pause=0.05), stop_seconds=1)
    client = connect(running.url)
    watch = client.watch(client.submit(items(1000)), patience=0.2)
    next(watch)
    running.stop()
    with pytest.raises(NoAnswerError, match="no server answers"):
        list(watch)


def test_an_unknown_job_is_an_error(start: Start, connect: Connect) -> None:
    """Waiting for a job that the server does not know ends at once."""
    from sparcom_client import NotFoundError

    with pytest.raises(NotFoundError):
        connect(start().url).wait("none", progress=False)
