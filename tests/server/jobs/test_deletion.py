"""Archives are deleted and crash leftovers swept; archives that a job or another process writes are left alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fake_engine import FakeEngine
from helpers import error_of, tree
from sparcom_cli.remote.delete import delete
from sparcom_client import ServerError
from sparcom_data.storage import partial_name
from sparcom_data.testing import write_random_archive

Start = Callable[..., Any]


def test_an_archive_is_deleted(start: Start) -> None:
    """DELETE gives 204, then 404. Nothing of the archive is left, others stay, and the name can be reused."""
    running = start()
    running.wait(running.post(archive="other").json()["id"])
    running.wait(running.post(archive="m").json()["id"])
    answer = running.http.delete("/v1/archives/m")
    assert (answer.status_code, answer.content) == (204, b"")
    assert running.files() == ["other.zarr"]
    assert running.http.delete("/v1/archives/m").status_code == 404
    assert running.http.get("/v1/archives").json()["data"][0]["name"] == "other"
    assert running.wait(running.post(archive="m").json()["id"])["state"] == "complete"


def test_an_archive_is_not_deleted_while_a_job_holds_it(start: Start, gate: threading.Event) -> None:
    """DELETE gives 409 with the id of the queued or running job, also before it exists. After the job it works."""
    running = start(FakeEngine("base", gate=gate))
    jobs = {name: running.post(archive=name).json()["id"] for name in ("runs", "waits")}
    running.wait(jobs["runs"], lambda job: job["state"] == "running")
    for name, job in jobs.items():
        answer = running.http.delete(f"/v1/archives/{name}")
        assert answer.status_code == 409
        assert f"belongs to extraction {job}" in error_of(answer)
    gate.set()
    for name in jobs:
        assert running.wait(jobs[name])["state"] == "complete"
        assert running.http.delete(f"/v1/archives/{name}").status_code == 204
    assert running.files() == []


def test_deletion_follows_no_link(start: Start, tmp_path: Path) -> None:
    """A link in place of an archive is not an archive; a link inside one is removed, but not its target."""
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
from fake_engine import FakeEngine
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
    """Start an offline extraction in the folder of archives: it has one archive and is creating another."""
    path = tmp_path / "data" / "archives" / "offline.zarr"
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],  # for fake_engine.py
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "made\n"
    yield process, path
    process.stdin.close()
    process.stdout.close()
    process.wait(20)


def test_archives_of_another_process_are_left_alone(
    start: Start, other_process: tuple[subprocess.Popen[str], Path]
) -> None:
    """They are neither swept nor deleted while it runs. After it is killed, the next start sweeps them."""
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
    running.wait_for(running.service.swept.done)
    return running.service.swept.exception() is None


def test_a_start_sweeps_only_crash_leftovers(start: Start, tmp_path: Path) -> None:
    """It removes only our own incomplete folders and files, and nothing behind a link."""
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


def run_delete(running: Any, *arguments: str, answer: str = "") -> Result:
    return CliRunner().invoke(delete, ["--server", running.url, *arguments], input=answer)


def test_the_command_asks_and_deletes(start: Start) -> None:
    """It shows the archive and asks; any answer but yes keeps it; --yes does not ask."""
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


def test_the_command_shows_the_refusal(start: Start, gate: threading.Event) -> None:
    """It shows the server's message if a job holds the archive, and for an unknown name."""
    running = start(FakeEngine("base", gate=gate))
    job = running.post(archive="m").json()["id"]
    with pytest.raises(ServerError, match=f"belongs to extraction {job}"):
        raise run_delete(running, "m", "--yes").exception or AssertionError
    with pytest.raises(ServerError, match="there is no archive"):
        raise run_delete(running, "none").exception or AssertionError
