"""`/ready` while engines start, die, and take each other's place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fake_engine import FakeEngine
from sparcom_data.errors import EngineError
from sparcom_server import models

Start = Callable[..., Any]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notice dead engines soon, and start them again after half a second."""
    monkeypatch.setattr(models, "FIRST_PAUSE_SECONDS", 0.5)
    monkeypatch.setattr(models, "HEALTH_SECONDS", 0.05)


def test_a_swap_of_models_keeps_the_service_ready(start: Start) -> None:
    """While the only loaded engine makes room for another model, the service stays ready: 200 all the time."""
    running = start(FakeEngine("a"), FakeEngine("b"), loading=0.3)
    seen = []
    for model in ("b", "a"):
        job = running.post(1, model=model).json()["id"]
        while running.job(job)["finished"] is None:
            answer = running.http.get("/ready")
            seen.append((answer.status_code, "ready" in answer.json()["models"].values()))
    assert {status for status, _ in seen} == {200}
    assert (200, False) in seen, "no poll fell into the swap"


def test_a_first_load_is_waited_for(start: Start) -> None:
    """Until an engine has run, the service is not ready, and says why."""
    running = start(FakeEngine("a"), loading=0.5, ready=False)
    answer = running.http.get("/ready")
    assert (answer.status_code, answer.json()["problems"]) == (503, ["no engine runs: a is loading"])
    running.wait_for(lambda: running.http.get("/ready").status_code == 200)


def test_a_dead_engine_is_not_ready(start: Start) -> None:
    """From its death until it runs again the service is not ready: jobs would wait for a start that may fail."""
    engine = FakeEngine()
    running = start(engine)
    engine.healthy = False
    seen = [running.http.get("/ready").status_code]
    while engine.starts < 2:
        seen.append(running.http.get("/ready").status_code)
    assert set(seen[:-1]) == {503}
    running.wait_for(lambda: running.http.get("/ready").status_code == 200)


def test_a_model_that_cannot_be_loaded_leaves_the_others(start: Start) -> None:
    """Its job fails. No engine runs then, but the first model can be loaded again: the service stays ready."""
    running = start(FakeEngine("a"), FakeEngine("b", start_error=EngineError("b has no weights.")))
    assert running.wait(running.post(1, model="b").json()["id"])["state"] == "failed"
    answer = running.http.get("/ready")
    assert (answer.status_code, answer.json()["models"]) == (200, {"a": "unloaded", "b": "failed"})
    assert running.wait(running.post(1, model="a").json()["id"])["state"] == "complete"
