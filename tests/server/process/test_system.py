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
    """While models load, /health gives 200, /ready 503, and a submission 503 with Retry-After and no archive."""
    running = start(FakeEngine(), loading=0.5, ready=False)
    assert running.http.get("/health").json() == {"status": "ok"}
    ready = running.http.get("/ready")
    assert (ready.status_code, ready.json()) == (503, {"ready": False, "models": {"fake": "loading"}})
    refused = running.post()
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
    assert running.post(model="other").status_code == 404
    assert running.http.get("/v1/models").json()["models"][0]["state"] == "loading"
    running.wait_for(lambda: running.http.get("/ready").status_code == 200)
    assert running.files() == []
    assert running.post().status_code == 202


def test_models_are_described(start: Start) -> None:
    """Every served model is listed in the operator's order with its facts; dense models have no expert facts."""
    moe = MoeInfo(layer_ids=[1], experts=8, experts_per_token=2, neurons=64, shared_neurons=1024)
    models = start(FakeEngine("b"), FakeEngine("a", moe=moe)).http.get("/v1/models").json()["models"]
    assert [model["name"] for model in models] == ["b", "a"]
    assert models[0]["model"]["neurons"] == 20
    assert [model["model"]["moe"] for model in models] == [None, moe.model_dump()]
    assert models[0]["engine"]["device"] == "cpu"
    assert (models[0]["healthy"], models[0]["max_prompt_tokens"]) == (True, 64)


def test_a_server_needs_a_model() -> None:
    """Creating the app without a model is an error."""
    with pytest.raises(InvalidInputError, match="at least one model"):
        create_app({}, ServerSettings())


def test_a_model_that_cannot_be_started_ends_the_server(tmp_path: Any) -> None:
    """The server stops, the caller gets the error, and loaded engines are closed."""
    good = FakeEngine("good")

    async def bad() -> FakeEngine:
        raise UnsupportedModelError("its neurons cannot be captured")

    with pytest.raises(UnsupportedModelError, match="cannot be captured"):
        run_server({"good": good.starter(), "bad": bad}, ServerSettings(port=0, data_dir=tmp_path))
    assert good.closed


def test_engines_are_closed_at_the_end(start: Start) -> None:
    """A stop closes every engine."""
    engines = [FakeEngine("a"), FakeEngine("b")]
    start(*engines).stop()
    assert [engine.closed for engine in engines] == [True, True]


def test_a_stop_does_not_wait_forever(start: Start) -> None:
    """A job that does not end is dropped after `stop_seconds`, and the service still stops."""

    class Stuck(FakeEngine):
        def prepare(self, *arguments: Any, **more: Any) -> Any:
            extraction = FakeEngine.prepare(self, *arguments, **more)
            return StuckExtraction(extraction.progress)

    class StuckExtraction:
        warnings = ()
        archive_run = "0" * 32

        def __init__(self, progress: Any) -> None:
            self.progress = progress

        def cancel(self) -> None: ...

        async def run(self, report: Any) -> Any:
            await asyncio.sleep(1000)

    running = start(Stuck(), stop_seconds=0.3)
    job = running.post().json()
    running.wait(job["id"], lambda job: job["state"] == "running")
    began = time.monotonic()
    running.stop()
    assert time.monotonic() - began < 5
    dropped = running.service.queue.get(job["id"])
    assert (dropped.state, dropped.error.type) == ("failed", "EngineError")


def metric(running: Any, name: str) -> float:
    """Return one value from /metrics."""
    text = running.http.get("/metrics").text
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found, f"{name} is not in:\n{text}"
    return float(found[1])


def test_metrics_count_all_jobs(start: Start) -> None:
    """Counters are sums over all jobs, including forgotten ones; gauges are current values."""
    engine = FakeEngine(max_prompt_tokens=5)
    running = start(engine, max_finished_jobs=1)
    assert metric(running, 'sparcom_instructions_total{outcome="complete"}') == 0
    for _ in range(3):
        batch = [{"id": "ok", "text": "a b"}, {"id": "long", "text": "a b c d e f"}]
        running.wait(running.post(instructions=batch).json()["id"])
    assert metric(running, 'sparcom_instructions_total{outcome="complete"}') == 3
    assert metric(running, 'sparcom_instructions_total{outcome="failed"}') == 3
    assert metric(running, "sparcom_tokens_total") == 6
    assert metric(running, 'sparcom_jobs{state="complete"}') == 1
    assert metric(running, 'sparcom_model_ready{model="fake"}') == 1
    engine.pause = 30
    running.post(4)
    assert metric(running, "sparcom_instructions_in_flight") == 4
    engine.healthy = False
    assert metric(running, 'sparcom_model_ready{model="fake"}') == 0


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
