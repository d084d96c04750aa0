"""A running service reports its health, its readiness, its metrics and its logs truthfully."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from fake_engine import FakeEngine
from sparcom_data.errors import StorageError

Start = Callable[..., Any]
GIB = 2**30


def free(running: Any, size: int) -> None:
    """Let the service's disk have so many free bytes."""
    running.service.disk._statvfs = lambda _: SimpleNamespace(f_bavail=size, f_frsize=1)
    running.service.disk.check()


def test_a_service_that_works_is_healthy_and_ready(start: Start) -> None:
    """Both answer 200 without problems."""
    running = start()
    assert running.http.get("/health").json() == {"status": "ok", "problems": []}
    ready = running.http.get("/ready").json()
    assert ready == {"ready": True, "models": {"fake": "ready"}, "problems": [], "warnings": []}


def test_a_failing_database_is_unhealthy(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Health and readiness answer 503 with the reason while the database fails."""

    async def read(_: Any) -> None:
        raise StorageError("the database failed: disk I/O error")

    running = start()
    with monkeypatch.context() as patch:
        patch.setattr(running.service.database, "read", read)
        for path in ("/health", "/ready"):
            answer = running.http.get(path)
            assert (answer.status_code, answer.json()["problems"]) == (503, ["the database failed: disk I/O error"])
    assert running.http.get("/health").status_code == 200


def test_a_dead_runner_is_unhealthy(start: Start) -> None:
    """If nothing runs jobs any more, /health answers 503, so that a supervisor restarts the service."""
    running = start()
    task = running.service.runner._task
    task.get_loop().call_soon_threadsafe(task.cancel)
    running.wait_for(task.done)
    answer = running.http.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (503, "failing")
    assert "the task that runs jobs has ended" in answer.json()["problems"][0]


def test_loading_and_stopping_are_not_ready(start: Start) -> None:
    """The reason is named; the service is healthy all the same."""
    running = start(FakeEngine(), loading=60, ready=False)
    assert running.http.get("/ready").json()["problems"] == ["no engine runs: fake is loading"]
    running.service.stopping = True
    assert "the service is stopping" in running.http.get("/ready").json()["problems"]
    assert running.http.get("/health").status_code == 200


def test_a_full_disk_pauses_the_job_and_loses_nothing(start: Start) -> None:
    """Little space is a warning. Too little pauses the running job; it continues once there is space."""
    running = start(FakeEngine(pause=0.01))
    free(running, 3 * GIB)
    ready = running.http.get("/ready").json()
    assert (ready["ready"], len(ready["warnings"])) == (True, 1)
    job = running.post(200).json()["id"]
    running.wait(job, lambda job: job["progress"]["complete"] > 3)
    free(running, GIB - 1)
    paused = running.wait(job, lambda job: job["state"] == "queued")
    assert "disk" in paused["reason"]
    ready = running.http.get("/ready")
    assert (ready.status_code, ready.json()["warnings"]) == (503, [])
    assert "jobs wait until more than 1.00 GiB are free" in ready.json()["problems"][0]
    other = running.post(1, archive="other").json()["id"]
    assert running.job(other)["state"] == "queued"
    free(running, 9 * GIB)
    ended = running.wait(job)
    assert (ended["state"], ended["progress"]["complete"]) == ("complete", 200)
    assert running.wait(other)["state"] == "complete"


def metrics(running: Any) -> Callable[[str], float]:
    """Return a function that finds one value in a scrape."""
    text = running.http.get("/metrics").text

    def value(name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        assert found, f"{name} is not in:\n{text}"
        return float(found[1])

    return value


def test_metrics_follow_a_job(start: Start) -> None:
    """A running job shows in gauges, an ended one in counters and histograms; so do requests and streams."""
    running = start(FakeEngine(pause=0.01))
    job = running.post(50).json()["id"]
    waiting = running.post(2, archive="second").json()["id"]
    with running.http.stream("GET", f"/v1/extractions/{job}/events") as stream:
        lines = stream.iter_lines()  # kept: its end would close the stream
        assert any(line.startswith("data") and json.loads(line[6:])["progress"]["complete"] for line in lines)
        value = metrics(running)
        assert value("sparcom_event_streams") == 1
    assert (value('sparcom_jobs{state="running"}'), value("sparcom_queue_length")) == (1, 1)
    assert 2 < value("sparcom_instructions_in_flight") < 52
    assert value("sparcom_tokens_per_second") > 0
    assert value("sparcom_connections") >= 1
    assert value("sparcom_disk_free_bytes") > 0
    assert value('sparcom_model_ready{model="fake"}') == 1
    running.wait(waiting)
    value = metrics(running)
    assert (value("sparcom_job_wait_seconds_count"), value('sparcom_jobs_ended_total{state="complete"}')) == (2, 2)
    assert value('sparcom_job_duration_seconds_count{state="complete"}') == 2
    assert value('sparcom_instructions_total{outcome="complete"}') == 52
    assert value('sparcom_http_request_seconds_count{method="POST",route="/v1/extractions",status="202"}') == 2
    route = "/v1/extractions/{job_id}"
    assert value(f'sparcom_http_request_seconds_count{{method="GET",route="{route}",status="200"}}') > 0
    assert (value("sparcom_instructions_in_flight"), value("sparcom_tokens_per_second")) == (0, 0)
    running.wait_for(lambda: metrics(running)("sparcom_event_streams") == 0)


def test_the_log_of_a_process_is_json(process: Start) -> None:
    """Every line is an object; requests have ids, and what the runner logs about a job has the job's."""
    running = process(log_format="json")
    answer = running.http.post(
        "/v1/extractions?secret=1",
        json={"instructions": [{"id": "a", "text": "a b"}]},
        headers={"X-Request-Id": "mine", "Authorization": "Bearer secret"},
    )
    job = answer.json()["id"]
    path = f"/v1/extractions/{job}"
    running.wait_for(lambda: running.http.get(path).json()["finished"])
    running.popen.terminate()
    running.popen.wait()
    text = running.log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert {"time", "level", "logger", "message"} <= set.intersection(*map(set, lines))
    (submission,) = [line for line in lines if line.get("method") == "POST"]
    assert (submission["request_id"], submission["path"]) == ("mine", "/v1/extractions")
    assert all(line["job_id"] == job for line in lines if line.get("path") == path)
    ended = [line for line in lines if line["logger"] == "sparcom_server.jobs.runner" and "complete" in line["message"]]
    assert [line["job_id"] for line in ended] == [job]
    assert "secret" not in text
