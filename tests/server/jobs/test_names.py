"""A name belongs to one job at a time and an archive to the job that made it; nothing else is written."""

from __future__ import annotations

import os
import re
import shutil
import stat
import threading
from collections.abc import Callable
from typing import Any

import pytest

from fake_engine import FakeEngine
from helpers import error_of, tree
from sparcom_data import create
from sparcom_data.archive import open_archive
from sparcom_data.testing import write_random_archive

Start = Callable[..., Any]


def test_one_model_s_masks_never_come_under_another_s_name(start: Start, gate: threading.Event) -> None:
    """The trial: A waits, its folder is removed, B asks for the name: 409; A ends failed with the reason, nothing of it
    is made again, the name is free from then on, and B's archive then is B's alone."""
    running = start(FakeEngine("base", gate=gate), FakeEngine("tuned"))
    first = running.post(model="base", archive="first").json()["id"]
    waiting = running.post(model="base", archive="m3").json()["id"]
    shutil.rmtree(running.archives / "m3.zarr")
    refused = running.post(model="tuned", archive="m3")
    assert refused.status_code == 409
    assert f"'m3' belongs to extraction {waiting}, which is queued" in error_of(refused)
    gate.set()
    assert running.wait(first)["state"] == "complete"
    ended = running.wait(waiting)
    assert (ended["state"], ended["error"]["type"], ended["progress"]["complete"]) == ("failed", "StorageError", 0)
    assert "m3.zarr was removed" in ended["error"]["message"]
    assert running.files() == ["first.zarr"]
    second = running.wait(running.post(model="tuned", archive="m3").json()["id"])
    assert second["state"] == "complete"
    assert open_archive(running.archives / "m3.zarr").attributes.run == second["run"] != ended["run"]


def test_an_archive_put_in_place_of_a_waiting_job_s_is_not_touched(start: Start, gate: threading.Event) -> None:
    """By hand, past the service: the job fails, what lies there stays to the byte."""
    running = start(FakeEngine("base", gate=gate))
    running.post(archive="first")
    job = running.post(archive="m3").json()["id"]
    shutil.rmtree(running.archives / "m3.zarr")
    write_random_archive(running.archives / "m3.zarr")
    before = tree(running.archives / "m3.zarr")
    gate.set()
    ended = running.wait(job)
    assert (ended["state"], ended["failures"]) == ("failed", [])
    assert "another archive took the place" in ended["error"]["message"]
    assert tree(running.archives / "m3.zarr") == before


@pytest.mark.parametrize("fate", ["removed", "replaced"])
def test_a_running_job_fails_when_its_archive_is_removed(start: Start, fate: str) -> None:
    """It ran for a while; it never becomes complete, and writes nothing more to the path."""
    running = start(FakeEngine(pause=0.02))
    job = running.post(200, archive="m3").json()["id"]
    running.wait(job, lambda job: job["progress"]["complete"] >= 2)
    write_random_archive(running.archives.parent / "other")
    before = tree(running.archives.parent / "other") if fate == "replaced" else {}
    (running.archives / "m3.zarr").rename(running.archives.parent / "moved")
    if fate == "replaced":
        (running.archives.parent / "other").rename(running.archives / "m3.zarr")
    ended = running.wait(job)
    assert ended["state"] == "failed"
    assert re.search("was removed|took the place", ended["error"]["message"]), "it may look between two renames"
    assert 2 <= ended["progress"]["complete"] < 200
    assert ended["progress"]["seconds_left"] is None
    assert tree(running.archives / "m3.zarr") == before


def test_a_waiting_job_whose_archive_is_gone_can_be_cancelled(start: Start, gate: threading.Event) -> None:
    """The service answers, the job has ended with the reason, the next job runs."""
    running = start(FakeEngine("base", gate=gate))
    first = running.post(archive="first").json()["id"]
    running.wait(first, lambda job: job["state"] == "running")
    job = running.post(archive="m3").json()["id"]
    shutil.rmtree(running.archives / "m3.zarr")
    answer = running.http.delete(f"/v1/extractions/{job}")
    assert (answer.status_code, answer.json()["state"]) == (200, "failed")
    assert "m3.zarr was removed" in answer.json()["error"]["message"]
    gate.set()
    assert running.wait(running.post(archive="m3").json()["id"])["state"] == "complete"


def test_only_complete_counts_as_complete(start: Start) -> None:
    """A cancelled job counts complete and cancelled instructions, and leaves no seconds; so does its archive."""
    running = start(FakeEngine(pause=0.02))
    job = running.post(60, archive="m").json()["id"]
    running.wait(job, lambda job: job["progress"]["complete"] >= 2 and job["progress"]["seconds_left"])
    running.http.delete(f"/v1/extractions/{job}")
    progress = running.wait(job)["progress"]
    done = progress["complete"]
    assert (progress["cancelled"], progress["seconds_left"]) == (60 - done, None)
    (listed,) = running.http.get("/v1/archives").json()["archives"]
    counts = {"pending": 0, "complete": done, "failed": 0, "cancelled": 60 - done}
    assert (listed["state"], listed["instructions"]) == ("incomplete", counts)
    facts = running.http.get("/v1/archives/m").json()
    assert (facts["state"], facts["attributes"]["state"], facts["instructions"]) == ("incomplete", "complete", counts)


def test_the_list_says_how_far_an_archive_is(start: Start) -> None:
    """Open while it is written, complete with the last instruction; the list is up to date at each look."""
    running = start(FakeEngine(pause=0.02))
    job = running.post(40, archive="m").json()["id"]
    seen = set()
    while running.job(job)["finished"] is None:
        (listed,) = running.http.get("/v1/archives").json()["archives"]
        seen.add((listed["state"], listed["instructions"]["complete"]))
    assert len({complete for state, complete in seen if state == "open"}) > 2
    (listed,) = running.http.get("/v1/archives").json()["archives"]
    assert (listed["state"], listed["instructions"]["complete"]) == ("complete", 40)


def test_a_name_lost_to_another_process_is_a_conflict(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken between the check and the rename, by an archive or an empty folder: 409, never 507."""
    running, build = start(), create._build

    def lose(*arguments: Any) -> None:
        build(*arguments)
        (running.archives / "m.zarr").mkdir()

    monkeypatch.setattr(create, "_build", lose)
    answer = running.post(archive="m")
    assert (answer.status_code, answer.json()["error"]["type"]) == (409, "ArchiveExistsError")
    assert running.files() == ["m.zarr"]
    assert list((running.archives / "m.zarr").iterdir()) == []


def test_what_the_service_writes_is_its_owner_s_alone(start: Start) -> None:
    """Whatever the umask: 0600 and 0700, of the archive and of the folders made for it."""
    before = os.umask(0)
    try:
        running = start()
        assert running.wait(running.post(archive="m").json()["id"])["state"] == "complete"
    finally:
        os.umask(before)
    data = running.archives.parent
    modes = {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in [data, *data.rglob("*")]}
    assert modes == {(True, 0o700), (False, 0o600)}
