"""A name belongs to one job at a time, and an archive to the job that made it. Jobs write to no other archive."""

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


def test_masks_never_reach_the_archive_of_another_job(start: Start, gate: threading.Event) -> None:
    """Job A runs, its folder is removed, and B requests the name: 409. A fails with the reason and recreates nothing.
    Then the name is free, and B's archive holds only B's data."""
    running = start(FakeEngine("base", gate=gate), FakeEngine("tuned"), max_loaded_models=2)
    holder = running.post(model="base", archive="m3").json()["id"]
    running.wait(holder, lambda job: job["state"] == "running")
    shutil.rmtree(running.archives / "m3.zarr")
    refused = running.post(model="tuned", archive="m3")
    assert refused.status_code == 409
    assert f"'m3' belongs to extraction {holder}" in error_of(refused)
    gate.set()
    ended = running.wait(holder)
    assert (ended["state"], ended["error"]["type"], ended["progress"]["complete"]) == ("failed", "StorageError", 0)
    assert "m3.zarr was removed" in ended["error"]["message"]
    assert running.files() == []
    second = running.wait(running.post(model="tuned", archive="m3").json()["id"])
    assert second["state"] == "complete"
    assert open_archive(running.archives / "m3.zarr").attributes.run == second["run"] != ended["run"]


def test_an_archive_in_the_place_of_a_waiting_jobs_is_not_touched(start: Start, gate: threading.Event) -> None:
    """If another process writes an archive under the job's name, the job fails, and that archive stays unchanged."""
    running = start(FakeEngine("base", gate=gate))
    running.wait(running.post(archive="first").json()["id"], lambda job: job["state"] == "running")
    job = running.post(archive="m3").json()["id"]
    write_random_archive(running.archives / "m3.zarr")
    before = tree(running.archives / "m3.zarr")
    gate.set()
    ended = running.wait(job)
    assert (ended["state"], ended["failures"]) == ("failed", [])
    assert "another archive took the place" in ended["error"]["message"]
    assert tree(running.archives / "m3.zarr") == before


@pytest.mark.parametrize("fate", ["removed", "replaced"])
def test_a_running_job_fails_when_its_archive_is_removed(start: Start, fate: str) -> None:
    """The job fails midway, never becomes complete, and writes nothing more to the path."""
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


@pytest.mark.parametrize("fate", ["removed", "replaced"])
def test_an_archive_that_vanished_while_the_service_was_down_fails_its_job(start: Start, fate: str) -> None:
    """The job is not begun again in silence: it ends with the reason, and nothing is written to a replacement."""
    running = start(FakeEngine(pause=0.02))
    job = running.post(200, archive="m3").json()["id"]
    running.wait(job, lambda job: job["progress"]["complete"] >= 2)
    running.stop()
    shutil.rmtree(running.archives / "m3.zarr")
    if fate == "replaced":
        write_random_archive(running.archives / "m3.zarr")
    before = tree(running.archives / "m3.zarr")
    running = start(FakeEngine())
    ended = running.wait(job)
    assert (ended["state"], ended["error"]["type"]) == ("failed", "StorageError")
    assert re.search("was removed|took the place", ended["error"]["message"])
    assert tree(running.archives / "m3.zarr") == before


def test_only_complete_counts_as_complete(start: Start) -> None:
    """A cancelled job, like its archive, counts complete and cancelled instructions and has no seconds left."""
    running = start(FakeEngine(pause=0.02))
    job = running.post(60, archive="m").json()["id"]
    running.wait(job, lambda job: job["progress"]["complete"] >= 2 and job["progress"]["seconds_left"])
    running.http.delete(f"/v1/extractions/{job}")
    progress = running.wait(job)["progress"]
    done = progress["complete"]
    assert (progress["cancelled"], progress["seconds_left"]) == (60 - done, None)
    (listed,) = running.http.get("/v1/archives").json()["data"]
    counts = {"pending": 0, "complete": done, "failed": 0, "cancelled": 60 - done}
    assert (listed["state"], listed["instructions"]) == ("incomplete", counts)
    facts = running.http.get("/v1/archives/m").json()
    assert (facts["state"], facts["attributes"]["state"], facts["instructions"]) == ("incomplete", "complete", counts)


def test_the_list_shows_the_state_of_an_archive(start: Start) -> None:
    """It is open while written and complete with the last instruction; each request shows the current state."""
    running = start(FakeEngine(pause=0.02))
    job = running.post(40, archive="m").json()["id"]
    running.wait_for(lambda: "m.zarr" in running.files())
    seen = set()
    while running.job(job)["finished"] is None:
        (listed,) = running.http.get("/v1/archives").json()["data"]
        seen.add((listed["state"], listed["instructions"]["complete"]))
    assert len({complete for state, complete in seen if state == "open"}) > 2
    (listed,) = running.http.get("/v1/archives").json()["data"]
    assert (listed["state"], listed["instructions"]["complete"]) == ("complete", 40)


def test_a_name_lost_to_another_process_is_a_conflict(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a name is taken between check and rename, by an archive or an empty folder, the job fails with the reason."""
    running, build = start(), create._build

    def lose(*arguments: Any) -> None:
        build(*arguments)
        (running.archives / "m.zarr").mkdir()

    monkeypatch.setattr(create, "_build", lose)
    job = running.wait(running.post(archive="m").json()["id"])
    assert (job["state"], job["error"]["type"]) == ("failed", "ArchiveExistsError")
    assert running.files() == ["m.zarr"]
    assert list((running.archives / "m.zarr").iterdir()) == []


def test_files_are_private_to_the_owner(start: Start) -> None:
    """With any umask, the archive and its new folders have modes 0600 and 0700."""
    before = os.umask(0)
    try:
        running = start()
        assert running.wait(running.post(archive="m").json()["id"])["state"] == "complete"
    finally:
        os.umask(before)
    data = running.archives.parent
    modes = {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in [data, *data.rglob("*")]}
    assert modes == {(True, 0o700), (False, 0o600)}
