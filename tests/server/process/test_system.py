"""Health, readiness, metrics, pages, and starts and stops of models."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fake_engine import FakeEngine
from sparcom_data.errors import InvalidInputError, UnsupportedModelError
from sparcom_data.schema.metadata import MoeInfo
from sparcom_server.app import create_app
from sparcom_server.run import run_server
from sparcom_server.settings import ServerSettings

Start = Callable[..., Any]


def test_it_answers_while_models_load(start: Start) -> None:
    """While models load, /health gives 200 and /ready 503; a submission is accepted and runs later."""
    running = start(FakeEngine(), loading=1.0, ready=False)
    assert running.http.get("/health").json() == {"status": "ok", "problems": []}
    ready = running.http.get("/ready")
    assert (ready.status_code, ready.json()["ready"], ready.json()["models"]) == (503, False, {"fake": "loading"})
    assert running.post(model="other").status_code == 404
    assert running.http.get("/v1/models").json()["models"][0]["state"] == "loading"
    job = running.post()
    assert (job.status_code, running.files()) == (202, [])
    assert running.wait(job.json()["id"])["state"] == "complete"
    assert running.http.get("/ready").status_code == 200


def test_models_are_described(start: Start) -> None:
    """Every served model is listed in the operator's order with its facts; dense models have no expert facts."""
    moe = MoeInfo(layer_ids=[1], experts=8, experts_per_token=2, neurons=64, shared_neurons=1024)
    models = two_loaded(start, FakeEngine("b"), FakeEngine("a", moe=moe)).http.get("/v1/models").json()["models"]
    assert [model["name"] for model in models] == ["b", "a"]
    assert models[0]["model"]["neurons"] == 20
    assert [model["model"]["moe"] for model in models] == [None, moe.model_dump()]
    assert models[0]["engine"]["device"] == "cpu"
    assert (models[0]["healthy"], models[0]["max_prompt_tokens"]) == (True, 64)


def two_loaded(start: Start, *engines: FakeEngine) -> Any:
    """Return a server with both models in memory."""
    running = start(*engines, max_loaded_models=2)
    running.wait_for(lambda: set(running.service.models.states.values()) == {"ready"})
    return running


def test_one_model_is_in_memory_by_default(start: Start) -> None:
    """The others are listed as unloaded, until a job needs one; then it takes the place of the first."""
    engines = FakeEngine("a"), FakeEngine("b")
    running = start(*engines)
    assert running.service.models.states == {"a": "ready", "b": "unloaded"}
    assert running.wait(running.post(model="b").json()["id"])["state"] == "complete"
    assert running.service.models.states == {"a": "unloaded", "b": "ready"}
    assert [engine.closed for engine in engines] == [True, False]


def test_a_later_model_that_cannot_be_started_fails_its_jobs(start: Start) -> None:
    """The job has the reason, new jobs for the model are refused, and the other model goes on."""
    running = start(FakeEngine("good"), FakeEngine("bad", start_error=UnsupportedModelError("cannot be captured")))
    job = running.wait(running.post(model="bad").json()["id"])
    assert (job["state"], job["error"]["message"]) == ("failed", "cannot be captured")
    assert running.post(model="bad").status_code == 503
    assert running.service.models.states["bad"] == "failed"
    assert running.wait(running.post(model="good").json()["id"])["state"] == "complete"


def test_a_server_needs_a_model() -> None:
    """Creating the app without a model is an error."""
    with pytest.raises(InvalidInputError, match="at least one model"):
        create_app({}, ServerSettings())


def test_a_model_that_cannot_be_started_ends_the_server(tmp_path: Any) -> None:
    """The server stops, the caller gets the error, and loaded engines are closed."""
    good = FakeEngine("good")
    bad = FakeEngine("bad", start_error=UnsupportedModelError("its neurons cannot be captured"))
    settings = ServerSettings(port=0, data_dir=tmp_path, max_loaded_models=2)
    with pytest.raises(UnsupportedModelError, match="cannot be captured"):
        run_server({"good": good.source(), "bad": bad.source()}, settings)
    assert good.closed


def test_engines_are_closed_at_the_end(start: Start) -> None:
    """A stop closes every engine."""
    engines = [FakeEngine("a"), FakeEngine("b")]
    two_loaded(start, *engines).stop()
    assert [engine.closed for engine in engines] == [True, True]


def test_a_stop_does_not_wait_forever(start: Start) -> None:
    """A job that does not suspend is dropped after `stop_seconds`; it is queued again, and the service still stops."""

    class Stuck(FakeEngine):
        def prepare(self, *arguments: Any, **more: Any) -> Any:
            extraction = FakeEngine.prepare(self, *arguments, **more)
            return StuckExtraction(extraction.progress)

    class StuckExtraction:
        warnings = ()
        archive_run = "0" * 32
        prompts_sha256 = ""
        suspended = False

        def __init__(self, progress: Any) -> None:
            self.progress = progress

        def suspend(self) -> None: ...

        async def run(self, report: Any) -> Any:
            await asyncio.sleep(1000)

    running = start(Stuck(), stop_seconds=0.3)
    job = running.post().json()
    running.wait(job["id"], lambda job: job["state"] == "running")
    began = time.monotonic()
    running.stop()
    assert time.monotonic() - began < 5
    running = start()
    ended = running.wait(job["id"])
    assert ended["state"] == "complete", ended["error"]


def metric(running: Any, name: str) -> float:
    """Return one value from /metrics."""
    text = running.http.get("/metrics").text
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found, f"{name} is not in:\n{text}"
    return float(found[1])


def test_metrics_count_all_jobs(start: Start) -> None:
    """Counters are sums over all jobs; gauges are current values."""
    engine = FakeEngine(max_prompt_tokens=5)
    running = start(engine)
    assert metric(running, 'sparcom_instructions_total{outcome="complete"}') == 0
    for _ in range(3):
        batch = [{"id": "ok", "text": "a b"}, {"id": "long", "text": "a b c d e f"}]
        running.wait(running.post(instructions=batch).json()["id"])
    assert metric(running, 'sparcom_instructions_total{outcome="complete"}') == 3
    assert metric(running, 'sparcom_instructions_total{outcome="failed"}') == 3
    assert metric(running, "sparcom_tokens_total") == 6
    assert metric(running, 'sparcom_jobs{state="complete"}') == 3
    assert metric(running, 'sparcom_model_ready{model="fake"}') == 1
    engine.pause = 30
    running.wait(running.post(4).json()["id"], lambda job: job["state"] == "running")
    assert metric(running, "sparcom_instructions_in_flight") == 4


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_load_nothing_from_elsewhere(start: Start, path: str) -> None:
    """A page names no other host, and its policy forbids requests to any."""
    response = start().http.get(path)
    assert response.status_code == 200
    assert not re.findall(r"""(?:src|href|url\()\s*=?\s*["'(]?(?:https?:)?//""", response.text)
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]


def test_the_reference_describes_every_route(start: Start) -> None:
    """openapi.json has each route of version 1 with a description, and docs/rest.md names it."""
    document = (Path(__file__).parents[3] / "docs" / "rest.md").read_text()
    api = start().http.get("/openapi.json").json()
    routes = {(method.upper(), path) for path, methods in api["paths"].items() for method in methods}
    assert routes == {
        ("POST", "/v1/extractions"),
        ("GET", "/v1/extractions"),
        ("GET", "/v1/extractions/{job_id}"),
        ("DELETE", "/v1/extractions/{job_id}"),
        ("GET", "/v1/extractions/{job_id}/events"),
        ("GET", "/v1/extractions/{job_id}/results"),
        ("GET", "/v1/extractions/{job_id}/errors"),
        ("GET", "/v1/extractions/{job_id}/analysis/{key}"),
        ("POST", "/v1/files"),
        ("GET", "/v1/files"),
        ("GET", "/v1/files/{file_id}"),
        ("GET", "/v1/files/{file_id}/content"),
        ("DELETE", "/v1/files/{file_id}"),
        ("POST", "/v1/keys"),
        ("GET", "/v1/keys"),
        ("DELETE", "/v1/keys/{key_id}"),
        ("GET", "/v1/archives"),
        ("GET", "/v1/archives/{name}"),
        ("DELETE", "/v1/archives/{name}"),
        ("GET", "/v1/archives/{name}/zarr/{key}"),
        ("GET", "/v1/models"),
        ("GET", "/health"),
        ("GET", "/ready"),
        ("GET", "/metrics"),
    }
    for method, path in routes:
        assert api["paths"][path][method.lower()]["description"]
        assert f"`{method} {path}`" in document


def test_every_setting_is_documented() -> None:
    """docs/rest.md names each setting."""
    document = (Path(__file__).parents[3] / "docs" / "rest.md").read_text()
    for name in ServerSettings.model_fields:
        assert f"`{name}`" in document, name
