"""Server-sent events of a job."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any

import httpx
from httpx_sse import connect_sse

from fake_engine import FakeEngine
from helpers import problem_of

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
    """A job of 40 steps gives at most one event per interval from its submission to its end."""
    running = start(FakeEngine(pause=0.015), event_seconds=0.2)
    job = running.post(40).json()
    events = watch(running, job["id"])
    created, finished = (datetime.fromisoformat(events[-1][1][name]) for name in ("created", "finished"))
    assert 2 < len(events) - 1 <= (finished - created).total_seconds() / 0.2 + 2


def test_a_client_that_reconnects_gets_only_later_events(start: Start) -> None:
    """The id of an event is the job's revision. `Last-Event-ID` leaves out what was seen; nonsense is ignored."""
    running = start(FakeEngine(pause=0.02))
    job = running.post(30).json()["id"]
    events = watch_ids(running, job)
    ids = [int(number) for _, number in events]
    assert ids == sorted(ids)
    assert ids[-2:] == [ids[-1]] * 2
    assert watch_ids(running, job, str(ids[-1])) == [("end", str(ids[-1]))]
    assert watch_ids(running, job, str(ids[0])) == [("progress", str(ids[-1])), ("end", str(ids[-1]))]
    for nonsense in ("-1", "x", "٣", "9" * 150):
        assert watch_ids(running, job, nonsense)[-1] == ("end", str(ids[-1]))


def watch_ids(running: Any, job_id: str, last: str | None = None) -> list[tuple[str, str]]:
    """Return name and id of all events until the stream ends."""
    headers = {} if last is None else {"Last-Event-ID": last.encode()}
    with (
        httpx.Client(timeout=20) as http,
        connect_sse(http, "GET", f"{running.url}/v1/extractions/{job_id}/events", headers=headers) as source,
    ):
        return [(event.event, event.id) for event in source.iter_sse()]


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
    assert (response.status_code, problem_of(response)) == (404, "job-not-found")


def test_a_stop_ends_the_stream_with_the_suspended_job(start: Start) -> None:
    """Clients that watch while the server stops see the job queued again, and no `end`."""
    running = start(FakeEngine(pause=0.05))
    job = running.post(100).json()
    running.wait(job["id"], lambda job: job["progress"]["complete"] >= 2)
    events: list[tuple[str, dict[str, Any]]] = []
    watcher = threading.Thread(target=lambda: events.extend(watch(running, job["id"])))
    watcher.start()
    running.wait_for(lambda: len(running.server.server_state.connections) >= 2)
    running.stop()
    watcher.join(10)
    name, report = events[-1]
    assert (name, report["state"]) == ("progress", "queued")
    assert "continues when it starts again" in report["reason"]
    assert report["progress"]["complete"] >= 2


def test_no_line_separator_breaks_an_event(start: Start) -> None:
    """Unicode line separators in a data set's name arrive unchanged, although FastAPI splits data at each of them."""
    running = start()
    name = "a\u2028b\u2029c\x85d\x0ce"
    job = running.wait(running.post(dataset={"name": name}).json()["id"])
    assert [report["dataset"]["name"] for _, report in watch(running, job["id"])] == [name, name]
