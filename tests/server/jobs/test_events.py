"""Server-sent events of a job."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
from httpx_sse import connect_sse

from fake_engine import FakeEngine

Start = Callable[..., Any]


def watch(running: Any, job_id: str) -> list[tuple[str, dict[str, Any]]]:
    """All events until the stream ends."""
    with (
        httpx.Client(timeout=20) as http,
        connect_sse(http, "GET", f"{running.url}/v1/extractions/{job_id}/events") as source,
    ):
        assert source.response.headers["Content-Type"].startswith("text/event-stream")
        return [(event.event, json.loads(event.data)) for event in source.iter_sse()]


def test_a_job_is_watched_to_its_end(start: Start) -> None:
    """Progress only grows, no event repeats the previous one, and the last event is `end` with the finished job."""
    running = start(FakeEngine(pause=0.03))
    job = running.post(20).json()
    events = watch(running, job["id"])
    assert {name for name, _ in events[:-1]} == {"progress"}
    assert events[-1][0] == "end"
    assert events[-1][1] == running.job(job["id"])
    assert events[-1][1]["state"] == "complete"
    reports = [report for name, report in events if name == "progress"]
    done = [report["progress"]["complete"] for report in reports]
    assert done == sorted(done)
    assert len(done) > 5
    assert all(a != b for a, b in itertools.pairwise(reports))


def test_events_respect_the_interval(start: Start) -> None:
    """A job of 40 steps in 0.6 s gives at most 0.6 / 0.2 + 2 progress events."""
    running = start(FakeEngine(pause=0.015), event_seconds=0.2)
    job = running.post(40).json()
    events = watch(running, job["id"])
    seconds = events[-1][1]["progress"]["seconds"]
    assert len(events) - 1 <= seconds / 0.2 + 3


def test_a_finished_job_gives_one_report_and_the_end(start: Start) -> None:
    """A client that connects late, or again, misses nothing."""
    running = start()
    job = running.wait(running.post().json()["id"])
    assert watch(running, job["id"]) == [("progress", job), ("end", job)]


def test_a_silent_stream_is_kept_alive(start: Start) -> None:
    """While nothing changes, comments are sent, so that proxies do not close the connection."""
    running = start(FakeEngine(pause=1.0), keep_alive_seconds=0.1)
    job = running.post(1).json()
    with running.http.stream("GET", f"/v1/extractions/{job['id']}/events") as response:
        lines = [line for line in response.iter_lines() if line.startswith(":")]
    assert lines[:2] == [": keep-alive"] * 2


def test_an_unknown_job_has_no_stream(start: Start) -> None:
    """An unknown job gets 404 with the usual error body, not an empty stream."""
    response = start().http.get("/v1/extractions/none/events")
    assert (response.status_code, response.json()["error"]["type"]) == (404, "JobNotFoundError")


def test_a_stop_ends_the_stream_with_the_finished_job(start: Start) -> None:
    """Clients that watch while the server stops see the job cancelled, with its complete instructions kept."""
    running = start(FakeEngine(pause=0.05))
    job = running.post(100).json()
    running.wait(job["id"], lambda job: job["progress"]["complete"] >= 2)
    events: list[tuple[str, dict[str, Any]]] = []
    watcher = threading.Thread(target=lambda: events.extend(watch(running, job["id"])))
    watcher.start()
    running.wait_for(lambda: len(running.server.server_state.connections) >= 2)
    running.stop()
    watcher.join(10)
    assert events[-1][0] == "end"
    assert events[-1][1]["state"] == "cancelled"
    assert events[-1][1]["progress"]["complete"] >= 2


def test_no_line_separator_breaks_an_event(start: Start) -> None:
    """Unicode line separators in a data set's name arrive unchanged, although FastAPI splits data at each of them."""
    running = start()
    name = "a\u2028b\u2029c\x85d\x0ce"
    job = running.wait(running.post(dataset={"name": name}).json()["id"])
    assert [report["dataset"]["name"] for _, report in watch(running, job["id"])] == [name, name]
