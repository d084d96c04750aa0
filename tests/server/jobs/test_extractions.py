"""Jobs over REST, from submission to the archive on disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from fake_engine import FakeEngine
from helpers import error_of, instructions, problem_of
from sparcom_data.archive import open_archive
from sparcom_data.errors import EngineError, StorageError
from sparcom_server.database.database import now
from sparcom_server.schemas.reports import UNFINISHED

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
    jobs = [running.post().json() for _ in range(2)]
    names = {running.wait(job["id"])["archive"] for job in jobs}
    assert len(names) == 2
    assert {f"{name}.zarr" for name in names} == set(running.files())


def test_one_job_runs_and_the_others_wait_in_order(start: Start) -> None:
    """Two jobs never run at once, on one model or on two; they run in order of submission."""
    running = start(FakeEngine("a", pause=0.05), FakeEngine("b", pause=0.05), max_loaded_models=2)
    running.wait_for(lambda: "loading" not in running.service.models.states.values())
    ids = [running.post(3, model=model).json()["id"] for model in ("a", "b", "a", "b")]
    seen: list[tuple[str, ...]] = []
    while any(state in UNFINISHED for state in (seen[-1] if seen else ["queued"])):
        jobs = {job["id"]: job for job in running.http.get("/v1/extractions").json()["data"]}
        seen.append(tuple(jobs[id_]["state"] for id_ in ids))
        waiting = [jobs[id_]["queue_position"] for id_ in ids if jobs[id_]["state"] == "queued"]
        assert waiting == sorted(waiting)
    assert all(snapshot.count("running") + snapshot.count("loading") <= 1 for snapshot in seen)
    assert any(snapshot.count("running") == 1 and "queued" in snapshot for snapshot in seen)
    times = [running.job(id_)[what] for id_ in ids for what in ("started", "finished")]
    assert times == sorted(times)


def test_jobs_are_listed_newest_first_in_pages(start: Start) -> None:
    """`limit` and `after` select a part of the list; jobs submitted meanwhile move nothing."""
    running = start()
    ids = [running.post().json()["id"] for _ in range(3)]
    page = running.http.get("/v1/extractions", params={"limit": 2}).json()
    assert [job["id"] for job in page["data"]] == ids[:0:-1]
    assert (page["first_id"], page["last_id"], page["has_more"]) == (ids[2], ids[1], True)
    running.post()
    page = running.http.get("/v1/extractions", params={"limit": 2, "after": page["last_id"]}).json()
    assert ([job["id"] for job in page["data"]], page["has_more"]) == (ids[:1], False)
    assert running.http.get("/v1/extractions", params={"after": "none"}).status_code == 404


def test_jobs_are_listed_by_state_model_time_and_metadata(start: Start, gate: threading.Event) -> None:
    """Each filter selects the jobs that match, and several must all match."""
    running = start(FakeEngine("a"), FakeEngine("b", gate=gate), max_loaded_models=2)
    first = running.wait(running.post(model="a", metadata={"project": "x:y", "run": "1"}).json()["id"])
    second = running.post(model="b", metadata={"project": "x:y", "run": "2"}).json()

    def listed(**params: Any) -> list[str]:
        return [job["id"] for job in running.http.get("/v1/extractions", params=params).json()["data"]]

    both = [second["id"], first["id"]]
    assert listed(metadata="project:x:y") == both
    assert listed(metadata=["project:x:y", "run:1"]) == [first["id"]]
    assert listed(metadata="run:3") == []
    assert listed(state="complete") == [first["id"]]
    assert listed(state=["complete", "queued", "loading", "running"]) == both
    assert listed(model="b") == [second["id"]]
    assert listed(created_after=first["created"]) == [second["id"]]
    assert listed(created_before=second["created"]) == [first["id"]]
    assert listed(created_before=second["created"], model="b") == []
    for wrong in ({"metadata": "project"}, {"state": "done"}, {"created_after": "yesterday"}, {"limit": 0}):
        assert running.http.get("/v1/extractions", params=wrong).status_code == 422, wrong
    gate.set()


def test_a_repeated_request_gets_the_job_of_the_first(start: Start) -> None:
    """With one Idempotency-Key, one body is one job, even from eight clients at once; another body is refused."""
    running = start()
    body = {"instructions": instructions(3), "archive": "once"}

    def post(**more: Any) -> httpx.Response:
        return running.http.post("/v1/extractions", json=body | more, headers={"Idempotency-Key": "k-1"})

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(), range(8)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sorted("Idempotent-Replayed" in answer.headers for answer in answers) == [False] + [True] * 7
    running.wait(answers[0].json()["id"])
    assert post().json()["state"] == "complete"
    assert (post(archive="other").status_code, problem_of(post(archive="other"))) == (422, "idempotency")
    assert len(running.http.get("/v1/extractions").json()["data"]) == 1


def test_expired_outputs_are_deleted(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its time, an ended job vanishes with its archive. Jobs without expiry stay, and an unfinished one too."""
    monkeypatch.setattr("sparcom_server.service.EXPIRY_SECONDS", 0.05)
    running = start()
    expiry = {"anchor": "created_at", "seconds": 3600}
    kept = running.wait(running.post(archive="kept").json()["id"])
    job = running.wait(running.post(archive="gone", output_expires_after=expiry).json()["id"])
    assert (kept["expires"], job["expires"] > job["created"]) == (None, True)
    assert running.files() == ["gone.zarr", "kept.zarr"]
    later = now() + 3_600_000
    monkeypatch.setattr("sparcom_server.jobs.store.now", lambda: later)
    running.wait_for(lambda: running.http.get(f"/v1/extractions/{job['id']}").status_code == 404)
    assert running.files() == ["kept.zarr"]
    assert running.job(kept["id"])["state"] == "complete"
    assert running.post(archive="gone").status_code == 202


def test_jobs_survive_a_restart(start: Start) -> None:
    """Ended jobs are still listed, and those that waited or ran continue where they were, without a second row."""
    running = start(FakeEngine(pause=0.02))
    ended = running.wait(running.post(2, archive="ended").json()["id"])
    runs, waits = (running.post(30, archive=name).json()["id"] for name in ("runs", "waits"))
    running.wait(runs, lambda job: job["progress"]["complete"] >= 3)
    running.stop()
    before = [row for row, state in enumerate(states(running, "runs")) if state == 1]
    assert 3 <= len(before) < 30
    engine = FakeEngine()
    running = start(engine)
    kept = running.job(ended["id"])
    assert [kept[name] for name in _FACTS] == [ended[name] for name in _FACTS]
    for job_id in (runs, waits):
        job = running.wait(job_id)
        assert (job["state"], job["progress"]["complete"]) == ("complete", 30)
    assert states(running, "runs") == [1] * 30
    assert sorted(engine.committed) == sorted([*range(30), *(row for row in range(30) if row not in before)])


_FACTS = ("state", "archive", "run", "created", "started", "finished", "progress", "error", "failures", "metadata")


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


@pytest.mark.parametrize("error", [StorageError("the disk is broken"), EngineError("the rows are invalid")])
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
    assert "second.zarr" not in running.files(), "it was never created"
    assert running.post(archive="second").status_code == 202, "its name is free"
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
    assert problem_of(response) == "job-state"
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
    assert [job["archive"] for job in running.http.get("/v1/extractions").json()["data"]] == ["b", "a"]


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
    assert "a, b" in error_of(response)


def test_a_job_has_the_warnings_of_its_extraction(start: Start) -> None:
    """Warnings about prompts are in the job's report once it has started."""
    running = start(FakeEngine(warnings=["1 of 5 instructions ('i0'): the prompt begins with BOS twice."]))
    job = running.wait(running.post(5).json()["id"])
    assert job["warnings"] == ["1 of 5 instructions ('i0'): the prompt begins with BOS twice."]
    assert FakeEngine().warnings == ()


def test_polls_follow_the_job_and_the_address(start: Start, gate: threading.Event) -> None:
    """At every state, a poll says what the list of jobs says, under the address that the client used, and when to ask
    again."""
    running = start(FakeEngine(gate=gate))
    ids = [running.post(metadata={"run": str(number)}).json()["id"] for number in range(3)]
    port = running.url.rpartition(":")[2]
    addresses = dict.fromkeys(("links", "archives"))

    def check() -> list[str]:
        listed = {job["id"]: job for job in running.http.get("/v1/extractions").json()["data"]}
        for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
            for id_ in ids:
                answer = running.http.get(f"/v1/extractions/{id_}", headers={"Host": host})
                job = answer.json()
                assert job["links"]["self"] == f"http://{host}/v1/extractions/{id_}"
                assert job | addresses == listed[id_] | addresses
                assert answer.headers.get("Retry-After") == (None if job["finished"] else "5")
        return [listed[id_]["state"] for id_ in ids]

    running.wait(ids[0], until=lambda job: job["state"] == "running")
    assert check() == ["running", "queued", "queued"]
    running.http.delete(f"/v1/extractions/{ids[1]}")
    assert check() == ["running", "cancelled", "queued"]
    gate.set()
    running.wait(ids[2])
    assert check() == ["complete", "cancelled", "complete"]


def test_positions_follow_the_queue(start: Start, gate: threading.Event) -> None:
    """The answer to a submission, polls and the list count the jobs that run before, after each change of the queue."""
    running = start(FakeEngine(gate=gate))
    running.wait(running.post().json()["id"], until=lambda job: job["state"] == "running")
    posted = [running.post().json() for _ in range(4)]
    assert [job["queue_position"] for job in posted] == [1, 2, 3, 4]
    running.http.delete(f"/v1/extractions/{posted[1]['id']}")
    posted[1:2] = []
    posted += [running.post().json() for _ in range(2)]
    assert [job["queue_position"] for job in posted[3:]] == [4, 5]
    listed = {job["id"]: job["queue_position"] for job in running.http.get("/v1/extractions").json()["data"]}
    for position, job in enumerate(posted, start=1):
        assert running.job(job["id"])["queue_position"] == listed[job["id"]] == position
    gate.set()
    assert running.wait(posted[-1]["id"])["queue_position"] is None
