"""Writing fails at random: no row is lost or mixed up, and the next job runs. Engines are fake, the writer is real."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import tree
from sparcom_data import storage
from sparcom_data.archive import Archive, open_archive
from sparcom_data.storage import PARTIAL_NAME
from sparcom_data.verify import verify_archive
from sparcom_server.jobs import runner
from writing_engine import WritingEngine, assert_rows

pytestmark = pytest.mark.slow

Start = Callable[..., Any]
COUNT = 16
BATCH = [{"id": f"i{n}", "text": " ".join([f"w{n}"] * (1 + n % 7)), "category": "C"} for n in range(COUNT)]
KINDS = ("full", "broken", "replaced", "removed", "moved", "slow")
FAILS = {"full": errno.ENOSPC, "broken": errno.EIO}


class Disk:
    """Counts the writes into the archives. From write `at` on it has a fault, until it is repaired.

    where: part of a write that fails: its `bytes`, their `sync`, or the sync of the `folder` after the rename.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.at, self.kind, self.where = 0, 0, "", "bytes"
        self.once: Callable[[], None] | None = None
        self._lock = threading.Lock()
        self._write, self._sync = storage._write_file, storage.sync_path
        monkeypatch.setattr(storage, "_write_file", self.write)
        monkeypatch.setattr(storage, "sync_path", self.sync)

    def arm(self, kind: str, at: int, where: str = "bytes", once: Callable[[], None] | None = None) -> None:
        """Begin to count. once: called at write `at`."""
        self.count, self.at, self.kind, self.where, self.once = 0, at, kind, where, once

    def repair(self) -> None:
        """Write normally from now on."""
        self.kind = ""

    def write(self, path: Path, parts: Any, mode: int) -> None:
        """Write a file, or half of it."""
        with self._lock:
            self.count += 1
            fails = bool(self.kind) and self.count >= self.at
            if fails and self.once is not None:
                once, self.once = self.once, None
                once()
        if fails and self.kind == "slow":
            time.sleep(0.01)
        if fails and self.kind in FAILS and self.where != "folder":
            whole = b"".join(bytes(part) for part in parts)
            self._write(path, [whole[: len(whole) // 2] if self.where == "bytes" else whole], mode)
            raise self._error()
        self._write(path, parts, mode)

    def sync(self, path: Path) -> None:
        """Sync a folder."""
        if self.kind in FAILS and self.count >= self.at and self.where == "folder":
            raise self._error()
        self._sync(path)

    def _error(self) -> OSError:
        number = FAILS[self.kind]
        return OSError(number, os.strerror(number))


def assert_right(path: Path, whole: Archive, model: str) -> int:
    """Check an archive: the verifier finds nothing, and each complete row is that of the undisturbed run."""
    archive = open_archive(path)
    assert [check.findings for check in verify_archive(archive, None) if not check.passed] == []
    assert archive.instructions.id == whole.instructions.id
    for index in archive.instructions.complete.tolist():
        start, stop = int(whole.instructions.token_start[index]), int(whole.instructions.token_start[index])
        stop += int(whole.instructions.token_length[index])
        if archive.granularity == "token":
            np.testing.assert_array_equal(archive.read_active(start, stop), whole.read_active(start, stop))
            for own, other in zip(archive.read_tokens(start, stop), whole.read_tokens(start, stop), strict=True):
                np.testing.assert_array_equal(own, other)
        else:
            rows = (one.read_counts(index, index + 1) for one in (archive, whole))
            np.testing.assert_array_equal(*rows)
    return assert_rows(archive, model)


@pytest.mark.parametrize("granularity", ["token", "count"])
@pytest.mark.parametrize("faults", [3, pytest.param(24, marks=pytest.mark.slow)])
def test_a_failing_disk_loses_and_mixes_nothing(
    start: Start, monkeypatch: pytest.MonkeyPatch, granularity: str, faults: int
) -> None:
    """A full disk pauses the job, and it completes later. Other faults fail it with the reason. Complete rows are those
    of an undisturbed run of the same model, a foreign archive keeps its bytes, and the next job is complete."""
    monkeypatch.setattr(runner, "RETRY_SECONDS", 0.02)
    disk, rng = Disk(monkeypatch), np.random.default_rng(faults)
    running = start(WritingEngine("a"), WritingEngine("b"), max_loaded_models=2)

    def submit(model: str, name: str) -> str:
        fields = {"instructions": BATCH, "model": model, "archive": name, "options": {"granularity": granularity}}
        return str(running.http.post("/v1/extractions", json=fields).json()["id"])

    whole, writes = {}, {}
    for model in "ab":
        disk.arm("", 0)
        assert running.wait(submit(model, f"whole-{model}"))["state"] == "complete"
        whole[model], writes[model] = open_archive(running.archives / f"whole-{model}.zarr"), disk.count
        assert assert_rows(whole[model], model) == COUNT
    before = {model: tree(running.archives / f"whole-{model}.zarr") for model in "ab"}
    for number in range(faults):
        kind, model = KINDS[number % len(KINDS)], "ab"[int(rng.integers(2))]
        path, moved = running.archives / f"j{number}.zarr", running.archives / f"moved{number}.zarr"
        other = "b" if model == "a" else "a"

        def change(kind: str = kind, path: Path = path, moved: Path = moved, other: str = other) -> None:
            if not path.exists():  # it is still being created
                disk.once = change
                return
            shutil.rmtree(path) if kind == "removed" else path.rename(moved)
            if kind == "replaced":
                shutil.copytree(running.archives / f"whole-{other}.zarr", path)

        where, at = str(rng.choice(["bytes", "sync", "folder"])), int(rng.integers(1, writes[model]))
        disk.arm(kind, at, where, None if kind in {"full", "broken", "slow"} else change)
        job = submit(model, f"j{number}")
        case = f"{number}: {kind} at write {at} of {writes[model]}, {where}"
        if kind == "full":
            running.wait(job, lambda job: "No space left" in (job["reason"] or ""))
            assert running.job(job)["finished"] is None, case
            assert not path.exists() or assert_right(path, whole[model], model) <= COUNT
            disk.repair()
        ended = running.wait(job)
        disk.repair()
        if kind in {"full", "slow"}:
            assert (ended["state"], ended["progress"]["complete"]) == ("complete", COUNT), (case, ended["error"])
            assert assert_right(path, whole[model], model) == COUNT, case
        else:
            assert (ended["state"], ended["error"]["type"]) == ("failed", "StorageError"), (case, ended["error"])
            expected = {"broken": "Input/output error", "replaced": "took the place|was removed"}
            message = ended["error"]["message"]
            assert any(words in message for words in expected.get(kind, "was removed").split("|")), (case, message)
            kept = path if kind == "broken" else moved
            done = assert_right(kept, whole[model], model) if kept.exists() else 0
            # The last commit may be in place although its sync failed.
            assert done >= ended["progress"]["complete"] or kind == "removed", case
            if kind == "replaced" and path.exists():
                assert tree(path) == before[other], case
            assert kind == "broken" or path.exists() == (kind == "replaced"), case
        following = running.wait(submit(other, f"next{number}"))
        assert following["state"] == "complete", (case, following["error"])
        assert assert_right(running.archives / f"next{number}.zarr", whole[other], other) == COUNT, case
    assert {model: tree(running.archives / f"whole-{model}.zarr") for model in "ab"} == before
    assert running.http.get("/health").status_code == 200
    assert running.http.get("/ready").json()["problems"] == []
    assert not [path for path in running.archives.rglob("*") if PARTIAL_NAME.fullmatch(path.name)]
