"""Faults during an extraction: dead engines, full disks, lost archives, invalid gates and steps."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from stand_in import (
    Engine,
    archive_tokenizer,
    assert_kept,
    instructions_of,
    many,
    open_sessions,
    run,
    small_chunks,
    states,
)

from sparcom_data import storage
from sparcom_data.archive import open_archive
from sparcom_data.errors import EngineError, StorageError
from sparcom_data.schema import State
from sparcom_data.verify import verify_archive
from sparcom_extractor.writer import chunks

pytestmark = pytest.mark.usefixtures("quiet_vllm")


@pytest.mark.parametrize("when", ["dies_after", "dies_in_poll_after"])
def test_the_death_of_the_engine_keeps_what_is_complete(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The core dies during a prompt, or during a poll, which vLLM then never answers; `run` raises promptly."""
    small_chunks(monkeypatch)
    monkeypatch.setattr("sparcom_extractor.engine.HEALTH_SECONDS", 0.1)
    engine = Engine()
    setattr(engine.llm, when, 30)
    extraction = engine.plan(many(), tmp_path / "a.zarr")
    with pytest.raises(EngineError, match="the engine of model 'stand-in' stopped"):
        run(extraction.run())
    assert 0 < assert_kept(tmp_path / "a.zarr", 60) < 60
    assert len(engine.llm.started) < 60, "prompts were sent to a dead engine"
    engine.llm.worker.sparcom_close(extraction._session)


def test_a_full_disk_keeps_what_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up while masks are written: StorageError with the reason, the rest pending, requests aborted."""
    small_chunks(monkeypatch)
    written, real = [], chunks.write_durably

    def write(path: Path, parts: Any) -> None:
        if len(written) == 10:
            raise storage.storage_error(path, OSError(errno.ENOSPC, "No space left on device"))
        written.append(path)
        real(path, parts)

    monkeypatch.setattr(chunks, "write_durably", write)
    engine = Engine()
    with pytest.raises(StorageError, match="No space left on device"):
        run(engine.plan(many(), tmp_path / "a.zarr").run())
    assert 0 < assert_kept(tmp_path / "a.zarr", 60) <= 20
    assert engine.llm.running == 0
    assert open_sessions(engine) == 0


@pytest.mark.parametrize("name", ["token/id", "token/position", "instruction/token_length", "instruction/state"])
def test_a_full_disk_while_committing_keeps_what_is_complete(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever array of a commit fails, no instruction is complete without all its data."""
    small_chunks(monkeypatch)
    engine = Engine()
    extraction = engine.plan(many(), tmp_path / "a.zarr")
    written, real = [], storage.write_durably

    def write(path: Path, parts: Any) -> None:
        if name in str(path):
            written.append(path)
            if len(written) > 2:
                raise storage.storage_error(path, OSError(errno.ENOSPC, "No space left on device"))
        real(path, parts)

    monkeypatch.setattr(storage, "write_durably", write)
    with pytest.raises(StorageError, match="No space left on device"):
        run(extraction.run())
    assert 0 < assert_kept(tmp_path / "a.zarr", 60) < 60
    assert open_sessions(engine) == 0


@pytest.mark.parametrize("fate", ["removed", "replaced"])
@pytest.mark.parametrize("chunks_before", [0, 7, 29])
def test_a_job_never_writes_into_the_archive_of_another(
    fate: str, chunks_before: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive is replaced after some chunks or the last one. StorageError is raised, the other archive keeps its
    bytes, no folder is created again, and requests are aborted."""
    small_chunks(monkeypatch)
    engine, path, before, written = Engine(), tmp_path / "a.zarr", dict[Path, bytes](), list[Path]()
    extraction, real = engine.plan(many(), path), chunks.write_durably

    def files() -> dict[Path, bytes]:
        return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}

    def write(to: Path, parts: Any) -> None:
        real(to, parts)
        written.append(to)
        if len(written) == chunks_before + 1:
            path.rename(tmp_path / "moved")
            if fate == "replaced":
                Engine().plan(many(), path)
            before.update(files())

    monkeypatch.setattr(chunks, "write_durably", write)
    with pytest.raises(StorageError, match=r"a\.zarr"):
        run(extraction.run())
    assert extraction.progress.complete < 60
    assert files() == before
    assert path.exists() == (fate == "replaced")
    assert (engine.llm.running, open_sessions(engine)) == (0, 0)


def test_an_error_of_our_own_ends_the_session_too(tmp_path: Path) -> None:
    """Any error of the task that feeds the engine reaches the caller, after the worker's session is closed."""
    engine = Engine()
    engine.llm.breaks_on = 9
    with pytest.raises(KeyError, match="a fault of our own"):
        run(engine.plan(instructions_of(3, 8, 5), tmp_path / "a.zarr").run())
    assert open_sessions(engine) == 0
    assert engine.llm.running == 0


@pytest.mark.parametrize("granularity", ["token", "count"])
@pytest.mark.parametrize("where", ["prompt", "response"])
def test_a_nonfinite_gate_fails_its_instruction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, granularity: Any, where: str
) -> None:
    """With one NaN in layer 1 at one token, with masks and counts, only that instruction fails and names layer and
    position. The others are complete."""
    engine = Engine()
    at = {"prompt": (ord("b"), 1, 1), "response": (200, 7, 1)}[where]
    monkeypatch.setattr(engine.llm.worker, "nan_at", at)
    path = tmp_path / "a.zarr"
    extraction = engine.plan(instructions_of(3, 6, 5), path, positions="all", max_tokens=3, granularity=granularity)
    progress = run(extraction.run())
    assert (progress.complete, progress.failed) == (2, 1)
    archive = open_archive(path)
    assert states(path) == [State.COMPLETE, State.FAILED, State.COMPLETE]
    place = "position 1 of the prompt" if where == "prompt" else "position 0 of the response"
    assert f"layer 1 has gates that are NaN or infinite at {place}" in archive.strings("error")[1]
    assert [check.findings for check in verify_archive(archive, archive_tokenizer) if not check.passed] == []


@pytest.mark.parametrize("layers", [[0], [0, 1, 1]])
def test_an_invalid_step_ends_the_extraction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: list[int]
) -> None:
    """A step that bypassed a layer, or ran it twice, raises EngineError, and none of its instructions is complete."""
    engine = Engine()
    monkeypatch.setattr(engine.llm.worker, "layers", layers)
    with pytest.raises(EngineError, match=f"layer 1 wrote {len(layers) - 1} times"):
        run(engine.plan(instructions_of(3, 8), tmp_path / "a.zarr").run())
    assert assert_kept(tmp_path / "a.zarr", 2) == 0


def test_a_task_that_is_cancelled_from_outside_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's shutdown cancels the task: requests are aborted, the session is closed, complete instructions
    stay."""
    small_chunks(monkeypatch)
    engine = Engine()
    extraction = engine.plan(many(), tmp_path / "a.zarr")

    async def cancel_soon() -> None:
        seen = asyncio.Event()
        task = asyncio.create_task(extraction.run(lambda snapshot: seen.set() if snapshot.complete else None))
        await seen.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(cancel_soon())
    assert 0 < assert_kept(tmp_path / "a.zarr", 60) < 60
    assert engine.llm.running == 0
    assert open_sessions(engine) == 0


def test_missing_memory_for_counters_is_reported(tmp_path: Path) -> None:
    """If a device has no memory for counters, the error has a remedy, and no session remains."""
    engine = Engine()

    def no_room() -> None:
        raise torch.OutOfMemoryError("tried to allocate 400 MiB")

    engine.llm.worker.capture.steps.counters = SimpleNamespace(allocate=no_room)
    extraction = engine.plan(instructions_of(3), tmp_path / "a.zarr", granularity="count")
    with pytest.raises(StorageError, match=r"400 MiB.*lower gpu_memory_utilization or max_num_seqs"):
        run(extraction.run())
    assert open_sessions(engine) == 0
