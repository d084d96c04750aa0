"""Jobs over REST, from submission to the archive on disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from fake_engine import FakeEngine
from sparcom_data.archive import open_archive
from sparcom_data.errors import EngineError, StorageError

Start = Callable[..., Any]


def states(running: Any, name: str) -> list[int]:
    """Read `instruction/state` of an archive from disk."""
    return open_archive(running.archives / f"{name}.zarr").instructions.state.tolist()


def test_a_submitted_batch_becomes_an_archive(start: Start) -> None:
    """An accepted job ends complete, and its archive holds every instruction, complete and in order."""
    running = start()
    response = running.post(5, archive="run-1", dataset={"name": "mini"})
    job = response.json()
    assert response.status_code == 202
    assert response.headers["Location"] == job["links"]["self"] == f"{running.url}/v1/extractions/{job['id']}"
    ended = running.wait(job["id"])
    assert ended["state"] == "complete"
    assert ended["progress"]["complete"] == ended["progress"]["instructions"] == 5
    assert ended["progress"]["tokens_done"] == ended["progress"]["tokens"] == 20
    archive = open_archive(ended["archive_path"])
    assert archive.instructions.id == ["i0", "i1", "i2", "i3", "i4"]
    assert archive.instructions.state.tolist() == [1] * 5
    assert archive.attributes.state == "complete"
    assert archive.attributes.dataset.name == "mini"
    assert archive.read_active(0, 20).any()


def test_a_missing_name_is_derived(start: Start) -> None:
    """Two jobs without a name get different archives."""
    running = start()
    names = {running.post().json()["archive"] for _ in range(2)}
    assert len(names) == 2
    assert {f"{name}.zarr" for name in names} == set(running.files())


def test_one_job_runs_and_the_others_wait_in_order(start: Start) -> None:
    """Two jobs never run at once, on one model or on two; they run in order of submission."""
    running = start(FakeEngine("a", pause=0.05), FakeEngine("b", pause=0.05))
    ids = [running.post(3, model=model).json()["id"] for model in ("a", "b", "a", "b")]
    seen: list[tuple[str, ...]] = []
    while any(state in {"queued", "running"} for state in (seen[-1] if seen else ["queued"])):
        jobs = {job["id"]: job for job in running.http.get("/v1/extractions").json()["extractions"]}
        seen.append(tuple(jobs[id_]["state"] for id_ in ids))
        waiting = [jobs[id_]["queue_position"] for id_ in ids if jobs[id_]["state"] == "queued"]
        assert waiting == sorted(waiting)
    assert all(snapshot.count("running") <= 1 for snapshot in seen)
    assert any(snapshot.count("running") == 1 and "queued" in snapshot for snapshot in seen)
    times = [running.job(id_)[what] for id_ in ids for what in ("started", "finished")]
    assert times == sorted(times)


def test_jobs_are_listed_newest_first_in_pages(start: Start) -> None:
    """`limit` and `offset` select a part of the list; `total` counts all jobs."""
    running = start()
    ids = [running.post().json()["id"] for _ in range(3)]
    page = running.http.get("/v1/extractions", params={"limit": 2}).json()
    assert [job["id"] for job in page["extractions"]] == ids[:0:-1]
    assert page["total"] == 3
    page = running.http.get("/v1/extractions", params={"limit": 2, "offset": 2}).json()
    assert [job["id"] for job in page["extractions"]] == ids[:1]


def test_finished_jobs_are_forgotten_and_their_archives_stay(start: Start) -> None:
    """`max_finished_jobs` bounds memory; nothing on disk changes."""
    running = start(max_finished_jobs=2)
    ids = [running.wait(running.post().json()["id"])["id"] for _ in range(4)]
    assert running.http.get("/v1/extractions").json()["total"] == 2
    assert running.http.get(f"/v1/extractions/{ids[0]}").status_code == 404
    assert len(running.files()) == 4


def test_an_instruction_that_fails_does_not_end_the_job(start: Start) -> None:
    """A prompt longer than the context fails with a reason, and the others run."""
    running = start(FakeEngine(max_prompt_tokens=5))
    batch = [{"id": "ok", "text": "a b"}, {"id": "long", "text": "a b c d e f"}, {"id": "ok2", "text": "a"}]
    job = running.wait(running.post(instructions=batch).json()["id"])
    assert job["state"] == "complete"
    assert (job["progress"]["complete"], job["progress"]["failed"]) == (2, 1)
    assert job["failures"] == [{"id": "long", "error": "the prompt may have 5 tokens"}]


def test_no_more_than_twenty_failures_are_listed(start: Start) -> None:
    """The job lists the first twenty failures and counts all."""
    running = start(FakeEngine(max_prompt_tokens=3))
    job = running.wait(running.post(30).json()["id"])
    assert job["progress"]["failed"] == 30
    assert [failure["id"] for failure in job["failures"]] == [f"i{n}" for n in range(20)]


@pytest.mark.parametrize("error", [StorageError("the disk is full"), EngineError("the engine died")])
def test_a_failed_job_keeps_complete_instructions(start: Start, error: Exception) -> None:
    """The job has the reason, complete instructions stay complete, and the next job runs."""
    engine = FakeEngine(error=error, error_after=2)  # type: ignore[arg-type]
    running = start(engine)
    job = running.wait(running.post(5, archive="broken").json()["id"])
    assert job["state"] == "failed"
    assert job["error"] == {"type": type(error).__name__, "message": str(error)}
    assert job["progress"]["complete"] == 2
    assert states(running, "broken") == [1, 1, 0, 0, 0]
    engine.error = None
    assert running.wait(running.post().json()["id"])["state"] == "complete"


def test_an_unexpected_error_fails_only_its_job(start: Start) -> None:
    """An internal error ends one job, whose report names it, but not the service."""
    engine = FakeEngine(error=ZeroDivisionError("by zero"))  # type: ignore[arg-type]
    running = start(engine)
    job = running.wait(running.post().json()["id"])
    assert job["error"] == {"type": "InternalError", "message": "ZeroDivisionError: by zero"}
    engine.error = None
    assert running.wait(running.post().json()["id"])["state"] == "complete"


def test_a_queued_job_is_cancelled_at_once(start: Start) -> None:
    """DELETE answers 200 with the cancelled job; none of its instructions stays pending. The running job continues."""
    gate = threading.Event()
    running = start(FakeEngine(gate=gate))
    first = running.post(3).json()["id"]
    second = running.post(3, archive="second").json()["id"]
    response = running.http.delete(f"/v1/extractions/{second}")
    assert (response.status_code, response.json()["state"]) == (200, "cancelled")
    assert response.json()["progress"]["cancelled"] == 3
    assert response.json()["started"] is None
    assert states(running, "second") == [3, 3, 3]
    gate.set()
    assert running.wait(first)["state"] == "complete"


def test_a_running_job_is_cancelled_soon(start: Start) -> None:
    """DELETE answers 202; complete instructions stay complete, and the others become cancelled."""
    running = start(FakeEngine(pause=0.05))
    job = running.post(50, archive="long").json()
    running.wait(job["id"], lambda job: job["progress"]["complete"] >= 2)
    assert running.http.delete(f"/v1/extractions/{job['id']}").status_code == 202
    ended = running.wait(job["id"])
    assert ended["state"] == "cancelled"
    done = ended["progress"]["complete"]
    assert 2 <= done < 50
    assert states(running, "long") == [1] * done + [3] * (50 - done)


def test_a_finished_job_cannot_be_cancelled(start: Start) -> None:
    """DELETE gives 409 for an ended job and 404 for an unknown job."""
    running = start()
    job = running.wait(running.post().json()["id"])
    response = running.http.delete(f"/v1/extractions/{job['id']}")
    assert response.status_code == 409
    assert response.json()["error"]["type"] == "JobStateError"
    assert running.http.delete("/v1/extractions/none").status_code == 404


def test_the_queue_is_bounded(start: Start) -> None:
    """One job runs and `max_queued_jobs` wait; one more gets 429 and leaves no archive."""
    running = start(FakeEngine(pause=0.2), max_queued_jobs=1)
    first = running.post(20, archive="a").json()["id"]
    running.wait(first, lambda job: job["state"] == "running")
    assert running.post(archive="b").status_code == 202
    response = running.post(archive="c")
    assert response.status_code == 429
    assert response.headers["Retry-After"]
    assert running.files() == ["a.zarr", "b.zarr"]


def test_two_requests_for_one_name_make_one_archive(start: Start) -> None:
    """Of simultaneous requests for one name exactly one is accepted, and its archive is complete."""
    running = start()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: running.post(archive="same"), range(8)))
    assert sorted(answer.status_code for answer in answers) == [202] + [409] * 7
    job = next(answer.json() for answer in answers if answer.status_code == 202)
    assert running.wait(job["id"])["state"] == "complete"
    assert np.all(np.array(states(running, "same")) == 1)


def test_the_model_is_optional_if_one_is_served(start: Start) -> None:
    """With one model the name is optional; with two models it is required."""
    assert start().post().json()["model"] == "fake"
    several = start(FakeEngine("a"), FakeEngine("b"))
    response = several.post()
    assert response.status_code == 422
    assert "a, b" in response.json()["error"]["message"]


def test_a_job_has_the_warnings_of_its_extraction(start: Start) -> None:
    """Warnings about prompts are in the job's report from its submission, also after its end."""
    running = start(FakeEngine(warnings=["1 of 5 instructions ('i0'): the prompt begins with BOS twice."]))
    job = running.post(5).json()
    assert job["warnings"] == ["1 of 5 instructions ('i0'): the prompt begins with BOS twice."]
    assert running.wait(job["id"])["warnings"] == job["warnings"]
    assert FakeEngine().warnings == ()
