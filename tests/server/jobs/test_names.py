"""A name belongs to one job at a time and an archive to the job that made it; nothing else is written or removed."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from sparcom_analysis import analyze
from sparcom_cli.delete import delete
from sparcom_cli.shared.client import ServerError
from sparcom_data import create
from sparcom_data.archive import open_archive
from sparcom_data.errors import ArchiveNotFoundError, DamagedArchiveError
from sparcom_data.storage import partial_name
from sparcom_data.testing import write_random_archive
from sparcom_data.verify import verify_archive
from sparcom_server.testing import FakeEngine

Start = Callable[..., Any]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def error_of(response: Any) -> str:
    return str(response.json()["error"]["message"])


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Jobs of a `Held` engine run once it is set."""
    event = threading.Event()
    yield event
    event.set()


class Held(FakeEngine):
    """Its jobs wait for a gate; those of other engines wait behind them."""

    gate: threading.Event

    def prepare(self, *arguments: Any, **more: Any) -> Any:
        extraction = FakeEngine.prepare(self, *arguments, **more)
        run = extraction.run

        async def held(report: Any) -> Any:
            if not extraction._cancelled.is_set():
                await asyncio.to_thread(self.gate.wait, 20)
            return await run(report)

        return _Wrapped(extraction, held)


class _Wrapped:
    def __init__(self, extraction: Any, run: Any) -> None:
        self._extraction, self.run = extraction, run

    def __getattr__(self, name: str) -> Any:
        return getattr(self._extraction, name)


def held_engine(gate: threading.Event) -> FakeEngine:
    engine = Held("base")
    engine.gate = gate
    return engine


def test_one_model_s_masks_never_come_under_another_s_name(start: Start, gate: threading.Event) -> None:
    """The trial: A waits, its folder is removed, B asks for the name: 409; A ends failed and says why, nothing of it
    is made again, the name is free from then on, and B's archive then is B's alone."""
    running = start(held_engine(gate), FakeEngine("tuned"))
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
    running = start(held_engine(gate))
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
def test_a_running_job_whose_archive_goes_fails(start: Start, fate: str) -> None:
    """It ran for a while; it never says complete, and writes nothing more to the path."""
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
    """The service answers, the job has ended and says why, the next job runs."""
    running = start(held_engine(gate))
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
    """A cancelled job says how many are complete and how many cancelled, and leaves no seconds; so does its archive."""
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


def test_an_archive_is_deleted(start: Start) -> None:
    """204, then 404; nothing of it is left, others stay, and the name can be used again."""
    running = start()
    running.wait(running.post(archive="other").json()["id"])
    running.wait(running.post(archive="m").json()["id"])
    answer = running.http.delete("/v1/archives/m")
    assert (answer.status_code, answer.content) == (204, b"")
    assert running.files() == ["other.zarr"]
    assert running.http.delete("/v1/archives/m").status_code == 404
    assert running.http.get("/v1/archives").json()["total"] == 1
    assert running.wait(running.post(archive="m").json()["id"])["state"] == "complete"


def test_an_archive_is_not_deleted_while_a_job_holds_it(start: Start, gate: threading.Event) -> None:
    """409 with the job's id, waiting or running, also where the folder is gone; once it has ended it is deleted."""
    running = start(held_engine(gate))
    jobs = {name: running.post(archive=name).json()["id"] for name in ("runs", "waits", "gone")}
    running.wait(jobs["runs"], lambda job: job["state"] == "running")
    shutil.rmtree(running.archives / "gone.zarr")
    for name, state in {"runs": "running", "waits": "queued", "gone": "queued"}.items():
        answer = running.http.delete(f"/v1/archives/{name}")
        assert answer.status_code == 409
        assert f"belongs to extraction {jobs[name]}, which is {state}" in error_of(answer)
    gate.set()
    for name in ("runs", "waits"):
        assert running.wait(jobs[name])["state"] == "complete"
        assert running.http.delete(f"/v1/archives/{name}").status_code == 204
    assert running.files() == []


def test_deletion_follows_no_link(start: Start, tmp_path: Path) -> None:
    """A link in place of an archive is none; a link inside one is removed and not what it leads to."""
    running = start()
    outside = tmp_path / "outside.zarr"
    write_random_archive(outside)
    before = tree(outside)
    running.archives.mkdir(parents=True, exist_ok=True)
    (running.archives / "linked.zarr").symlink_to(outside)
    write_random_archive(running.archives / "m.zarr")
    shutil.rmtree(running.archives / "m.zarr" / "neuron")
    (running.archives / "m.zarr" / "neuron").symlink_to(outside / "neuron")
    assert running.http.delete("/v1/archives/linked").status_code == 404
    for name in ("..%2Foutside", "m.zarr", ".."):
        assert running.http.delete(f"/v1/archives/{name}").status_code in {404, 405}
    assert running.http.delete("/v1/archives/m").status_code == 204
    assert (tree(outside), running.files()) == (before, ["linked.zarr"])


OTHER = """
import sys
from pathlib import Path
from sparcom_server.testing import FakeEngine
from sparcom_data.instructions import Instruction
from sparcom_data.schema.options import ExtractionOptions
extraction = FakeEngine().prepare([Instruction(id="a", text="a b")], ExtractionOptions(), Path(sys.argv[1]))
building = Path(sys.argv[1]).with_name("new.zarr." + "0" * 32 + ".partial")
from sparcom_data.create import _new_folder
held = _new_folder(building)
(Path(sys.argv[1]) / "neuron" / ("c.9.0.0." + "1" * 32 + ".partial")).write_bytes(b"half")
print("made", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other_process(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """An offline extraction into the folder of archives: it has one archive, and is making another."""
    path = tmp_path / "data" / "archives" / "offline.zarr"
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "made\n"
    yield process, path
    process.stdin.close()
    process.stdout.close()
    process.wait(20)


def test_what_another_process_writes_is_left_alone(
    start: Start, other_process: tuple[subprocess.Popen[str], Path]
) -> None:
    """Neither swept nor deleted while it lives; swept at the next start when it was killed."""
    process, path = other_process
    before, names = tree(path), sorted(item.name for item in path.parent.iterdir())
    assert len(names) == 2
    running = start()
    assert finished_sweep(running)
    assert (running.files(), tree(path)) == (names, before)
    answer = running.http.delete("/v1/archives/offline")
    assert answer.status_code == 409
    assert "another process writes" in error_of(answer)
    assert (running.files(), tree(path)) == (names, before)
    running.stop()
    process.kill()
    process.wait(20)
    running = start()
    assert finished_sweep(running)
    assert running.files() == ["offline.zarr"]
    assert tree(path) == {name: data for name, data in before.items() if not name.endswith(".partial")}
    assert running.http.delete("/v1/archives/offline").status_code == 204


def finished_sweep(running: Any) -> bool:
    running.wait_for(running.service._sweeping.done)
    return running.service._sweeping.exception() is None


def test_a_start_sweeps_what_a_crash_left_and_nothing_else(start: Start, tmp_path: Path) -> None:
    """Folders and files of ours that were never whole, no file of others, nothing behind a link."""
    archives, outside = tmp_path / "data" / "archives", tmp_path / "outside"
    write_random_archive(archives / "whole.zarr")
    write_random_archive(archives / "broken.zarr")
    metadata = archives / "broken.zarr" / "zarr.json"
    metadata.write_text(metadata.read_text().replace('"state": "complete"', '"state": "open"'))
    kept = {path: tree(archives / path) for path in ("whole.zarr", "broken.zarr")}
    outside.mkdir()
    (outside / "precious").write_bytes(b"precious")
    left = partial_name(archives / "new.zarr")
    shutil.copytree(archives / "whole.zarr", left)
    (left / "link").symlink_to(outside)
    partial_name(archives / "broken.zarr" / "neuron" / "active" / "c.0.0.0").write_bytes(b"half")
    partial_name(archives / "linked.zarr").symlink_to(outside)
    (archives / "mine.partial").mkdir()
    (archives / "notes.0123.partial").write_bytes(b"mine")
    running = start()
    assert finished_sweep(running)
    names = running.files()
    assert [name for name in names if not name.startswith("linked.zarr.")] == [
        "broken.zarr",
        "mine.partial",
        "notes.0123.partial",
        "whole.zarr",
    ]
    assert {path: tree(archives / path) for path in kept} == kept
    assert (outside / "precious").read_bytes() == b"precious"


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


@pytest.mark.parametrize(
    "inner", ["neuron", "instruction", "instruction/category/c", "instruction/state/c/0", "zarr.json"]
)
def test_no_route_follows_a_link_inside_an_archive(start: Start, tmp_path: Path, inner: str) -> None:
    """Files, facts and list: what a link leads to is not given."""
    running = start()
    secret, path = tmp_path / "secret.zarr", running.archives / "m.zarr"
    write_random_archive(secret, categories=("SECRET", "CODE"))
    write_random_archive(path)
    target = path / inner
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    target.symlink_to(secret / inner)
    for file in (
        [secret / inner] if (secret / inner).is_file() else [f for f in (secret / inner).rglob("*") if f.is_file()]
    ):
        key = f"{inner}/{file.relative_to(secret / inner)}" if file != secret / inner else inner
        assert running.http.get(f"/v1/archives/m/zarr/{key}").status_code == 404, key
    answers = running.http.get("/v1/archives").text + running.http.get("/v1/archives/m").text
    assert "SECRET" not in answers
    if inner.startswith("instruction"):
        assert running.http.get("/v1/archives/m").status_code in {404, 500}


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


def test_a_reader_of_an_address_does_not_mix_two_archives(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive is deleted and another of the name is made under a reader: an error at the next look."""
    monkeypatch.setattr("sparcom_data.archive.REMOTE_CHECK_SECONDS", 0.0)
    running = start()
    address = running.wait(running.post(archive="m").json()["id"])["links"]["zarr"]
    archive = open_archive(address)
    assert archive.read_active(0, 8).any()
    running.http.delete("/v1/archives/m")
    for read in (lambda: archive.read_active(0, 8), archive.require_same):
        with pytest.raises(ArchiveNotFoundError, match="was removed"):
            read()
    running.wait(running.post(archive="m").json()["id"])
    for read in (lambda: archive.read_active(0, 8), archive.require_same):
        with pytest.raises(DamagedArchiveError, match="another archive took the place"):
            read()
    np.testing.assert_array_equal(open_archive(address).instructions.state, [1] * 3)


@pytest.mark.parametrize("command", ["analyze", "verify"])
def test_a_command_over_an_address_is_of_one_archive(
    command: str, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another archive takes the name after the last look of the passes: an error, and no results."""
    monkeypatch.setattr("sparcom_data.archive.REMOTE_CHECK_SECONDS", 1e9)
    running = start()
    write_random_archive(running.archives / "m.zarr")
    write_random_archive(tmp_path / "other.zarr")  # of the same shape: every chunk is there

    def replace(*_: float) -> None:
        if (tmp_path / "other.zarr").exists():
            assert running.http.delete("/v1/archives/m").status_code == 204
            (tmp_path / "other.zarr").rename(running.archives / "m.zarr")

    address, results = f"{running.url}/v1/archives/m/zarr", tmp_path / "results"
    run = {
        "verify": lambda: verify_archive(open_archive(address), None, replace),
        "analyze": lambda: analyze(address, results, epsilon=0.5, resamples=0, permutations=0, progress=replace),
    }[command]
    with pytest.raises(DamagedArchiveError, match="another archive took the place"):
        run()
    assert not (tmp_path / "other.zarr").exists()
    assert not (results / "metrics.json").exists()


def run_delete(running: Any, *arguments: str, answer: str = "") -> Result:
    return CliRunner().invoke(delete, ["--server", running.url, *arguments], input=answer)


def test_the_command_asks_and_deletes(start: Start) -> None:
    """It shows what would go; anything but yes leaves it; --yes does not ask."""
    running = start(FakeEngine(max_prompt_tokens=3))
    for name in ("a", "b"):
        running.wait(running.post(2, archive=name).json()["id"])
    result = run_delete(running, "a", answer="n\n")
    assert result.exit_code == 1
    assert "a.zarr: random, 0 of 2 instructions complete, 2 failed, 0.0 MB" in result.output
    assert running.files() == ["a.zarr", "b.zarr"]
    assert run_delete(running, "a", answer="y\n").exit_code == 0
    assert run_delete(running, "b", "--yes").output == "deleted b\n"
    assert running.files() == []


def test_the_command_says_why_not(start: Start, gate: threading.Event) -> None:
    """The server's own words, for a job that holds it and for a name that nothing has."""
    running = start(held_engine(gate))
    job = running.post(archive="m").json()["id"]
    with pytest.raises(ServerError, match=f"belongs to extraction {job}"):
        raise run_delete(running, "m", "--yes").exception or AssertionError
    with pytest.raises(ServerError, match="there is no archive"):
        raise run_delete(running, "none").exception or AssertionError
