"""`wait` and `watch` while the server breaks off, restarts or goes away."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from httpx_sse import ServerSentEvent

from fake_engine import FakeEngine
from sparcom_client import Job, NoAnswerError, NotFoundError, methods
from sparcom_client.effects import Emit, Next, Open, Send, Sleep
from sparcom_client.exchange import Connection
from sparcom_server.errors import RETRY_SECONDS, BusyError

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
    monkeypatch.delitem(RETRY_SECONDS, BusyError)
    running = start(FakeEngine(pause=0.05), max_event_streams=1)
    client = connect(running.url)
    job = client.submit(items(10))
    with httpx.stream("GET", job.links.events, timeout=20) as taken:
        next(taken.iter_lines())
        states = [(report.state, report.progress.complete) for report in client.watch(job)]
    assert states[-1] == ("complete", 10)
    assert len({complete for _, complete in states}) > 3


def test_a_refused_stream_is_asked_for_again_when_the_server_suggests(start: Start) -> None:
    """The pause before the next attempt is the one of the refusal."""
    report = start(FakeEngine(pause=1)).post().json()
    steps = methods.watch(Connection("http://server", None), report["id"])
    assert isinstance(next(steps), Open)
    assert isinstance(steps.send(httpx.Response(503, headers={"Retry-After": "7"})), Send)
    assert isinstance(steps.send(httpx.Response(200, json=report)), Emit)
    assert next(steps) == Sleep(7)


def test_a_wait_outlasts_a_silent_stream(start: Start, connect: Connect) -> None:
    """Keep-alive comments between two events of a slow job are no events of the job."""
    client = connect(start(FakeEngine(pause=0.5), keep_alive_seconds=0.05).url)
    states = [report.progress.complete for report in client.watch(client.submit(items(2)))]
    assert states == sorted(states)
    assert states[-1] == 2


def test_a_stream_goes_on_after_the_last_event(start: Start) -> None:
    """A stream that breaks off is opened again, after a look at the job, with the id of its last event."""
    report = start(FakeEngine(pause=1)).post().json()
    steps = methods.watch(Connection("http://server", None), report["id"])
    assert isinstance(next(steps), Open)
    assert isinstance(steps.send(httpx.Response(200)), Next)
    assert isinstance(steps.send(ServerSentEvent(event="progress", data=json.dumps(report), id="7")), Emit)
    assert isinstance(next(steps), Next)
    assert isinstance(steps.throw(httpx.ReadError("lost")), Send)
    assert isinstance(steps.send(httpx.Response(200, json=report)), Emit)
    assert isinstance(next(steps), Sleep)
    again = next(steps)
    assert isinstance(again, Open)
    assert dict(again.request.headers or {})["Last-Event-ID"] == "7"


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
    with pytest.raises(NotFoundError):
        connect(start().url).wait("none", progress=False)
