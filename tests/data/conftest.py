"""Archives of random masks with their ground truth, and tools to damage them with plain zarr only."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zarr
from numpy.typing import NDArray

from sparcom_data import storage
from sparcom_data.create import InstructionColumns
from sparcom_data.testing import write_random_archive


@dataclass(frozen=True)
class Sample:
    """An archive on disk and the written values: masks, bool (tokens, layer, neuron), or counts, uint32
    (instruction, layer, neuron)."""

    path: Path
    truth: NDArray[Any]


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Ten instructions, number 3 failed; three layers of 20 neurons; chunks of 8 rows. Read-only for tests."""
    path = tmp_path_factory.mktemp("pristine") / "sample.zarr"
    return Sample(path, write_random_archive(path, failed=(3,)))


@pytest.fixture
def sample(pristine: Sample, tmp_path: Path) -> Sample:
    """Copy of `pristine`: syncing every file of a new archive per test would take longer than the tests."""
    shutil.copytree(pristine.path, tmp_path / "sample.zarr")
    return Sample(tmp_path / "sample.zarr", pristine.truth)


@pytest.fixture(scope="session")
def pristine_counts(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Like `pristine`, but with counts, in chunks of four instructions. Read-only for tests."""
    path = tmp_path_factory.mktemp("counts") / "sample.zarr"
    return Sample(path, write_random_archive(path, failed=(3,), granularity="count"))


@pytest.fixture
def counted(pristine_counts: Sample, tmp_path: Path) -> Sample:
    """Copy of `pristine_counts`."""
    shutil.copytree(pristine_counts.path, tmp_path / "counted.zarr")
    return Sample(tmp_path / "counted.zarr", pristine_counts.truth)


@pytest.fixture
def put() -> Callable[..., None]:
    """Return `put(path, array, index, value)`, which changes values of an archive with plain zarr."""

    def put(path: Path, name: str, index: Any, value: object) -> None:
        array = zarr.open_array(path / name, mode="r+")
        array.with_config({"write_empty_chunks": True})[index] = value

    return put


@pytest.fixture
def tree() -> Callable[[Path], dict[str, bytes]]:
    """Return `tree(folder)`, which maps every file below a folder to its bytes."""

    def read(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    return read


@pytest.fixture
def columns() -> Callable[..., InstructionColumns]:
    """Return `columns(n)`, which gives columns of n instructions i0, i1, …; keywords override columns."""

    def make(count: int, **given: list[str]) -> InstructionColumns:
        values = {name: [""] * count for name in ("category", "source", "text", "error")}
        return InstructionColumns(**({"id": [f"i{number}" for number in range(count)]} | values | given))

    return make


class WriteLog:
    """Log of durable writes, in order; from write number `fail_at` on (counted from 0) the disk is full."""

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self.fail_at: int | None = None

    def restart(self, fail_at: int | None = None) -> None:
        """Clear the log and count from 0 again."""
        self.paths, self.fail_at = [], fail_at


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> WriteLog:
    """Log of all writes; a failing write fails in the system call, after the file was opened."""
    log, real_write, real_bytes = WriteLog(), storage.write_durably, storage._write_all
    here = threading.local()  # zarr writes on several threads

    def write(path: Path, parts: Any) -> None:
        here.full = log.fail_at is not None and len(log.paths) >= log.fail_at
        log.paths.append(path)
        real_write(path, parts)

    def write_bytes(descriptor: int, view: memoryview) -> None:
        if here.full:
            os.write(descriptor, view[: len(view) // 2])
            raise OSError(28, "No space left on device")
        real_bytes(descriptor, view)

    monkeypatch.setattr(storage, "write_durably", write)
    monkeypatch.setattr(storage, "_write_all", write_bytes)
    return log
