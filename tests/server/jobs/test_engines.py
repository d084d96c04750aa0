"""Jobs, engines and models: dead engines, deadly instructions, pairs of models, and the order of the queue."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from fake_engine import FakeEngine
from sparcom_data.archive import open_archive
from sparcom_server import models
from sparcom_server.jobs import runner
from sparcom_server.schemas.reports import UNFINISHED

Start = Callable[..., Any]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let engines start again at once."""
    monkeypatch.setattr(models, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(models, "HEALTH_SECONDS", 0.05)
    monkeypatch.setattr(runner, "RETRY_SECONDS", 0.05)


def states(running: Any, name: str) -> list[int]:
    """Read `instruction/state` of an archive from disk."""
    return open_archive(running.archives / f"{name}.zarr").instructions.state.tolist()


def test_an_instruction_that_kills_the_engine_twice_alone_fails(start: Start) -> None:
    """It is marked failed with the reason, the others are complete, and the engine was started again three times."""
    engine = FakeEngine(deadly=frozenset({3}))
    running = start(engine)
    job = running.wait(running.post(8, archive="m").json()["id"])
    assert (job["state"], job["progress"]["complete"], job["progress"]["failed"]) == ("complete", 7, 1)
    assert states(running, "m") == [1, 1, 1, 2, 1, 1, 1, 1]
    assert [failure["id"] for failure in job["failures"]] == ["i3"]
    assert "died twice while this instruction ran alone" in job["failures"][0]["error"]
    assert sorted(engine.committed) == [0, 1, 2, 4, 5, 6, 7], "no instruction runs twice"
    assert engine.starts == 4


class Struck(frozenset[int]):
    """Kills an engine at its next instructions, whichever they are."""

    left = 3

    def __contains__(self, _: object) -> bool:
        self.left -= 1
        return self.left >= 0


def test_outside_kills_fail_no_instruction(start: Start) -> None:
    """An engine that is killed at each of its starts meets another suspect each time."""
    engine = FakeEngine(deadly=Struck())
    running = start(engine)
    job = running.wait(running.post(8, archive="m").json()["id"])
    assert (job["state"], job["progress"]["complete"], engine.starts) == ("complete", 8, 4)


def test_a_job_waits_for_its_engine_and_says_why(start: Start) -> None:
    """The engine dies between instructions: the job goes on by itself, without a failed instruction."""
    engine = FakeEngine(pause=0.02)
    running = start(engine)
    job = running.post(60, archive="m").json()["id"]
    running.wait(job, lambda job: job["progress"]["complete"] >= 3)
    engine.deadly = frozenset({40})
    running.wait_for(lambda: engine.starts > 1)
    engine.deadly = frozenset()
    ended = running.wait(job)
    assert (ended["state"], ended["progress"]["complete"], ended["error"]) == ("complete", 60, None)


def test_a_dead_idle_engine_starts_again(start: Start) -> None:
    """No job is needed to notice it."""
    engine = FakeEngine()
    running = start(engine)
    engine.healthy = False
    running.wait_for(lambda: engine.starts == 2)
    running.wait_for(lambda: running.http.get("/ready").status_code == 200)
    assert running.wait(running.post().json()["id"])["state"] == "complete"


def test_base_and_tuned_model_give_two_archives(start: Start) -> None:
    """One job runs both models on the same instructions; its progress is the sum, its archives have their own run."""
    running = start(FakeEngine("base"), FakeEngine("tuned"))
    job = running.post(4, model="base", tuned="tuned", archive="pair").json()
    assert [part["archive"] for part in job["archives"]] == ["pair", "pair-tuned"]
    ended = running.wait(job["id"])
    assert (ended["state"], ended["progress"]["instructions"], ended["progress"]["complete"]) == ("complete", 8, 8)
    assert [part["state"] for part in ended["archives"]] == ["complete"] * 2
    base, tuned = (open_archive(running.archives / f"{name}.zarr") for name in ("pair", "pair-tuned"))
    assert base.instructions.id == tuned.instructions.id
    assert [base.attributes.run, tuned.attributes.run] == [part["run"] for part in ended["archives"]]
    assert base.attributes.run != tuned.attributes.run


def test_a_job_that_is_analyzed_ends_once(start: Start) -> None:
    """A cancellation during the analysis does not end the job before it, nor a second time. A stop does not end it."""
    running = start()
    begun, go_on = asyncio.Event(), asyncio.Event()
    ended: list[str] = []

    async def analyze(_: Any) -> None:
        begun.set()
        await go_on.wait()

    running.service.runner._analyze = analyze
    running.service.runner._observer.job_ended = lambda state, _: ended.append(state)
    job = running.post(2, analysis=True).json()["id"]
    running.wait_for(begun.is_set)
    answer = running.http.delete(f"/v1/extractions/{job}")
    assert (answer.status_code, answer.json()["state"], ended) == (202, "cancelling", [])
    running.service.runner._task.get_loop().call_soon_threadsafe(go_on.set)
    assert (running.wait(job)["state"], ended) == ("complete", ["complete"])
    begun.clear()
    go_on.clear()
    other = running.post(2, analysis=True).json()["id"]
    running.wait_for(begun.is_set)
    running.stop()
    assert start(loading=60.0, ready=False).job(other)["state"] in UNFINISHED


def test_models_with_other_tokens_are_refused(start: Start) -> None:
    """The job fails before either model runs, and names the first prompt that differs."""
    base = FakeEngine("base")
    running = start(base, FakeEngine("tuned", tokenizer="letters"))
    job = running.wait(running.post(3, model="base", tuned="tuned", archive="pair").json()["id"])
    assert (job["state"], job["progress"]["complete"], base.committed) == ("failed", 0, [])
    assert "3 of 3 prompts differ; the first is 'i0'" in job["error"]["message"]
    assert running.files() == []
    answer = running.post(model="base", tuned="base")
    assert (answer.status_code, "another model" in answer.text) == (422, True)


def test_jobs_of_the_loaded_model_run_first(start: Start, gate: threading.Event) -> None:
    """Four jobs of two models in turn need one swap instead of three."""
    a, b = FakeEngine("a", gate=gate), FakeEngine("b")
    running = start(a, b)
    ids = [running.post(1, model=model).json()["id"] for model in ("a", "b", "a", "b")]
    gate.set()
    ended = [running.wait(job) for job in ids]
    assert sorted(ids, key=lambda job: ended[ids.index(job)]["started"]) == [ids[0], ids[2], ids[1], ids[3]]
    assert (a.starts, b.starts) == (1, 1)


def test_a_job_is_passed_over_for_a_bounded_time(start: Start, gate: threading.Event) -> None:
    """Without patience, jobs run in the order of submission, whatever is loaded."""
    a, b = FakeEngine("a", gate=gate), FakeEngine("b")
    running = start(a, b, passed_over_seconds=0)
    ids = [running.post(1, model=model).json()["id"] for model in ("a", "b", "a", "a", "a")]
    gate.set()
    ended = [running.wait(job) for job in ids]
    order = sorted(ids, key=lambda job: ended[ids.index(job)]["started"])
    assert order.index(ids[1]) <= 2, "it is passed over once: then its time has begun"
