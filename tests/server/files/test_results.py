"""Results and errors of instructions as JSON lines, also while a job runs."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fake_engine import FakeEngine
from helpers import problem_of
from sparcom_data.archive import open_archive
from sparcom_data.commit import ArchiveCommitter
from sparcom_data.testing import write_random_archive
from sparcom_server.archives.results import result_lines

Start = Callable[..., Any]
BATCH = [
    {"id": "a", "text": "one two", "category": "QA"},
    {"id": "b\u2028", "text": "three", "category": "é"},
    {"id": "long", "text": "word " * 100},
]


def lines(running: Any, job: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """Return the lines of a job's results or errors."""
    response = running.http.get(job["links"][kind])
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/jsonl"
    return [json.loads(line) for line in response.text.splitlines()]


@pytest.mark.parametrize("granularity", ["token", "count"])
def test_results_and_errors_have_one_line_per_instruction(start: Start, granularity: str) -> None:
    """Complete instructions are in `results`, failed ones in `errors`, in order, with model, archive and index."""
    running = start()
    job = running.post(instructions=BATCH, archive="x", options={"granularity": granularity}).json()
    running.wait(job["id"])
    first, second = lines(running, job, "results")
    assert first == {
        "id": "a",
        "custom_id": "a",
        "model": "fake",
        "archive": "x",
        "index": 0,
        "state": "complete",
        "prompt_length": 2,
        "token_length": 2,
        "row": 0 if granularity == "token" else None,
        "response": "",
        "category": "QA",
    }
    assert (second["id"], second["row"]) == ("b\u2028", 2 if granularity == "token" else None)
    (error,) = lines(running, job, "errors")
    assert (error["id"], error["index"], error["state"], error["error"]["code"]) == ("long", 2, "failed", "failed")
    assert "64 tokens" in error["error"]["message"]


def test_a_running_job_shows_its_results(start: Start, gate: threading.Event) -> None:
    """Lines appear as instructions end; before the archive exists there are none, and cancelled ones are errors."""
    waiting = FakeEngine(gate=gate)
    running = start(waiting)
    job, queued = (running.post(3, archive=name).json() for name in ("x", "y"))
    running.wait(job["id"], lambda job: job["state"] == "running")
    assert lines(running, job, "results") == lines(running, queued, "results") == []
    archive = open_archive(running.archives / "x.zarr")
    ArchiveCommitter(running.archives / "x.zarr").fail({1: "because"})
    assert [line["error"]["message"] for line in lines(running, job, "errors")] == ["because"]
    running.http.delete(f"/v1/extractions/{queued['id']}")
    assert lines(running, queued, "errors") == []
    running.http.delete(f"/v1/extractions/{job['id']}")
    gate.set()
    running.wait(job["id"])
    states = [(line["id"], line["state"]) for line in lines(running, job, "errors")]
    assert ("i0", "cancelled") in states
    assert archive.attributes.run == running.job(job["id"])["run"]


def test_both_models_have_lines(start: Start) -> None:
    """A job with a tuned model has the lines of both archives."""
    running = start(FakeEngine(), FakeEngine(name="tuned"))
    job = running.post(2, model="fake", tuned="tuned", archive="x").json()
    running.wait(job["id"])
    found = [(line["model"], line["archive"], line["id"]) for line in lines(running, job, "results")]
    assert found == [("fake", "x", "i0"), ("fake", "x", "i1"), ("tuned", "x-tuned", "i0"), ("tuned", "x-tuned", "i1")]


def test_many_results_come_in_blocks(tmp_path: Path) -> None:
    """2,500 instructions, more than two blocks of strings, keep their order."""
    write_random_archive(tmp_path / "x.zarr", categories=["A"], per_category=2500, lengths=(1, 2), neurons=8)
    blocks = list(result_lines(open_archive(tmp_path / "x.zarr"), "results", "m", "x", str))
    assert [block.count(b"\n") for block in blocks] == [1024, 1024, 452]
    assert [json.loads(line)["index"] for line in b"".join(blocks).splitlines()] == list(range(2500))


def test_results_of_a_deleted_archive_are_not_found(start: Start) -> None:
    """Once the archive is deleted, or another has its place, there are no results: 404, not the other's lines."""
    running = start()
    job, other = (running.post(2, archive=name).json() for name in ("x", "y"))
    for one in (job, other):
        running.wait(one["id"])
    assert running.http.delete("/v1/archives/x").status_code == 204
    assert problem_of(running.http.get(job["links"]["results"])) == "archive-not-found"
    shutil.copytree(running.archives / "y.zarr", running.archives / "x.zarr")
    assert "another one has its name" in running.http.get(job["links"]["errors"]).json()["detail"]
    assert running.http.get("/v1/extractions/none/results").status_code == 404
