"""The disk watch warns before the disk is full, and reports it as full below the minimum."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparcom_server.observe.disk import DiskWatch

GIB = 2**30


class Disk:
    """A disk with a free space that the test sets."""

    free: int | OSError = 10 * GIB

    def statvfs(self, _: Path) -> Any:
        if isinstance(self.free, OSError):
            raise self.free
        return SimpleNamespace(f_bavail=self.free // 4096, f_frsize=4096)

    def watch(self) -> DiskWatch:
        return DiskWatch(Path(), 5 * GIB, GIB, self.statvfs)


def test_it_warns_before_it_is_full(caplog: pytest.LogCaptureFixture) -> None:
    """Little space is a problem, too little is `full`; each change is logged once."""
    disk = Disk()
    watch = disk.watch()
    watch.check()
    assert (watch.free_bytes, watch.full, watch.problem) == (10 * GIB, False, "")
    disk.free = 5 * GIB - 4096
    watch.check()
    watch.check()
    assert not watch.full
    assert "has 5.00 GiB left; jobs wait below 1.00 GiB" in watch.problem
    disk.free = GIB - 4096
    watch.check()
    watch.check()
    assert watch.full
    assert "jobs wait until more than 1.00 GiB are free" in watch.problem
    disk.free = 10 * GIB
    watch.check()
    assert (watch.full, watch.problem) == (False, "")
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    assert caplog.messages[-1] == "the disk of the data folder has enough free space again"


def test_a_full_disk_stays_full_until_a_tenth_more_is_free() -> None:
    """A job does not go on and pause again for each freed block."""
    disk = Disk()
    watch = disk.watch()
    for free, full in ((GIB - 4096, True), (GIB + 4096, True), (int(1.11 * GIB), False), (GIB + 4096, False)):
        disk.free = free
        watch.check()
        assert watch.full == full


def test_an_unreadable_disk_holds_the_jobs() -> None:
    """If the data folder is gone, jobs wait and the problem names the reason."""
    disk = Disk()
    disk.free = OSError(116, "Stale file handle")
    watch = disk.watch()
    watch.check()
    assert (watch.full, watch.free_bytes) == (True, None)
    assert "Stale file handle" in watch.problem
    disk.free = 10 * GIB
    watch.check()
    assert (watch.full, watch.problem) == (False, "")


def test_the_real_disk_is_read_until_the_task_is_cancelled(tmp_path: Path) -> None:
    """`run` reads the free bytes of the folder's disk."""
    read: list[Path] = []

    async def run() -> int | None:
        ready, loop = asyncio.Event(), asyncio.get_running_loop()

        def statvfs(folder: Path) -> os.statvfs_result:
            read.append(folder)
            loop.call_soon_threadsafe(ready.set)
            return os.statvfs(folder)

        watch = DiskWatch(tmp_path, 0, 0, statvfs)
        task = asyncio.create_task(watch.run())
        await ready.wait()
        task.cancel()
        await asyncio.wait([task])
        return watch.free_bytes

    asyncio.run(run())
    assert read == [tmp_path]
