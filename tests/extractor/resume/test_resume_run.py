"""A suspended or interrupted extraction continues where it stopped, on a fake engine with real sessions and files."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_in import Engine, assert_kept, assert_right, instructions_of, many, open_sessions, run, small_chunks, states

from sparcom_data import resume
from sparcom_data.archive import open_archive
from sparcom_data.commit import ArchiveCommitter
from sparcom_data.errors import ArchiveExistsError, DiskFullError, EngineError, InvalidInputError, StorageError
from sparcom_data.instructions import Instruction
from sparcom_data.progress import Progress
from sparcom_data.schema import State
from sparcom_data.schema.options import ExtractionOptions
from sparcom_data.storage import storage_error, write_durably
from sparcom_extractor import extraction as extraction_module
from sparcom_extractor.extraction import Extraction
from sparcom_extractor.prompts import prompt_token_ids
from sparcom_extractor.worker import mixin
from sparcom_extractor.writer.session import CaptureSession

pytestmark = pytest.mark.usefixtures("quiet_vllm")
ALL = {"positions": "all", "max_tokens": 6}


@pytest.fixture(scope="session")
def quiet_vllm() -> None:
    """Import vLLM once, without its warnings."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import vllm.sampling_params
        import vllm.v1.engine.exceptions  # noqa: F401


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch)
    monkeypatch.setattr("sparcom_data.create.choose_chunk_instructions", lambda *_: 2)


def resumed(engine: Engine, path: Path, instructions: list[Instruction] | None = None, **given: Any) -> Extraction:
    options = {name: given.pop(name) for name in list(given) if name in ExtractionOptions.model_fields}
    return engine.prepare(instructions or many(), ExtractionOptions(**options), path, resume=True, **given)


def stop_after(extraction: Extraction, complete: int) -> Callable[[Progress], None]:
    return lambda progress: extraction.suspend() if progress.complete >= complete else None


def values_of(path: Path) -> list[Any]:
    """Return every value of an archive that depends on the run."""
    archive = open_archive(path)
    names = [item.name for item in archive.captured]
    if archive.granularity == "token":
        names += ["token/id", "token/position"]
    names += ["instruction/state", "instruction/token_length"]
    values = [archive.read_rows(name, 0, archive.array(name).shape[0]).tolist() for name in names]
    return [*values, archive.strings("response"), archive.attributes.state]


@pytest.mark.parametrize("options", [{}, ALL, {"granularity": "count"}, ALL | {"granularity": "count"}])
@pytest.mark.parametrize("seed", range(3))
def test_suspended_again_and_again_it_ends_like_an_undisturbed_run(
    options: dict[str, Any], seed: int, tmp_path: Path
) -> None:
    """Every value is equal, reserved rows included; each stop keeps what is complete, and each run adds to it. No
    instruction that was complete runs again."""
    rng, path = np.random.default_rng(seed), tmp_path / "a.zarr"
    run(Engine().plan(many(), tmp_path / "whole.zarr", **options).run())
    while not path.exists() or open_archive(path).attributes.state == "open":
        engine = Engine()
        engine.llm.generated = engine.llm.generated if seed else [200]  # a shorter response than the reserved rows
        extraction = resumed(engine, path, **options)
        before = extraction.progress.complete
        progress = run(extraction.run(stop_after(extraction, before + int(rng.integers(1, 30)))))
        assert len(engine.llm.started) <= 60 - before
        assert open_sessions(engine) == 0
        assert progress.complete > before
        if extraction.suspended:
            assert progress.complete == assert_kept_of(path)
            assert (progress.seconds_left, progress.cancelled) == (None, 0)
    if seed:
        assert values_of(path) == values_of(tmp_path / "whole.zarr")
    assert states(path) == [State.COMPLETE] * 60


def assert_kept_of(path: Path) -> int:
    archive = open_archive(path)
    if archive.granularity == "token":
        return assert_kept(path, 60)
    assert set(archive.instructions.state.tolist()) <= {State.COMPLETE, State.PENDING}
    return len(archive.instructions.complete)


def test_suspended_before_it_runs(tmp_path: Path) -> None:
    """Nothing runs, everything stays pending, and it is resumed."""
    engine, path = Engine(), tmp_path / "a.zarr"
    extraction = resumed(engine, path)
    extraction.suspend()
    assert run(extraction.run()).settled == 0
    assert (extraction.suspended, engine.llm.started, set(states(path))) == (True, [], {State.PENDING})
    last = resumed(Engine(), path)
    assert run(last.run()).complete == 60
    assert not last.suspended
    with pytest.raises(ArchiveExistsError):
        resumed(Engine(), path)


def test_progress_starts_from_what_is_there(tmp_path: Path) -> None:
    """Earlier instructions and tokens count, but not for the rate and the time that is left."""
    path, reports = tmp_path / "a.zarr", list[Progress]()
    first = resumed(Engine(), path, [*many(), *instructions_of(70)[:0]])
    done = run(first.run(stop_after(first, 20)))
    extraction = resumed(Engine(), path)
    assert (extraction.progress.complete, extraction.progress.tokens_done) == (done.complete, done.tokens_done)
    run(extraction.run(reports.append))
    for report in reports:
        new = report.tokens_done - done.tokens_done
        assert report.tokens_per_second == pytest.approx(new / report.seconds)
        if report.seconds_left is not None and new:
            assert report.seconds_left == pytest.approx(report.seconds * (60 * 21 - done.tokens_done - new) / new)


def test_an_archive_that_was_only_not_closed_is_closed(tmp_path: Path) -> None:
    """A kill after the last commit leaves an open archive without pending instructions."""
    path = tmp_path / "a.zarr"
    run(Engine().plan(many(), path).run())
    ArchiveCommitter(path)._write_attributes({"state": "open"})
    engine = Engine()
    assert run(resumed(engine, path).run()).complete == 60
    assert (engine.llm.started, open_archive(path).attributes.state) == ([], "complete")


def test_failed_instructions_are_not_run_again(tmp_path: Path) -> None:
    """Neither those that failed before nor those given as failures. Those alone run first, one at a time."""
    path, lengths = tmp_path / "a.zarr", [20, 18, 16, 14, 12, 70]
    engine = Engine()
    engine.llm.wrong_ids = {19}
    first = resumed(engine, path, instructions_of(*lengths))
    first_run = first.run(stop_after(first, 0))
    run(first_run)
    given = {"failures": {2: "it ended the engine twice"}, "alone": [4, 3]}
    engine = Engine()
    extraction = resumed(engine, path, instructions_of(*lengths), **given)
    states_before = states(path)
    progress = run(extraction.run())
    archive = open_archive(path)
    assert archive.strings("error")[2] == "it ended the engine twice" or states_before[2] == State.COMPLETE
    assert progress.settled == progress.complete + progress.failed == 6
    assert_right(archive)


def test_what_is_shown_of_the_model_may_be_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive stores the changed id and warnings, and can be resumed with the same change alone."""
    monkeypatch.setattr("sparcom_extractor.preparation.prompt_warnings", lambda *_: ["no BOS"])
    path, texts = tmp_path / "a.zarr", instructions_of(20, 18, 16)
    first = resumed(Engine(), path, texts, shown=str.upper)
    first.suspend()
    run(first.run())
    attributes = open_archive(path).attributes
    assert attributes.model.id == Engine().model.id.upper() != Engine().model.id
    assert attributes.warnings == ["NO BOS"]
    with pytest.raises(InvalidInputError, match="model"):
        resumed(Engine(), path, texts)
    assert run(resumed(Engine(), path, texts, shown=str.upper).run()).complete == 3


def test_those_alone_run_first_and_one_at_a_time(tmp_path: Path) -> None:
    """Nothing else is in the engine. A death then leaves exactly one suspect."""
    engine, path = Engine(), tmp_path / "a.zarr"
    engine.llm.dies_after = 1
    extraction = resumed(engine, path, alone=[40, 7], failures={5: "it ended the engine twice"})
    with pytest.raises(EngineError):
        run(extraction.run())
    assert extraction.in_flight == {7}
    assert (engine.llm.max_running, [ids[1] for ids in engine.llm.started]) == (1, [97 + 40 % 26, 97 + 7])
    assert states(path)[5] == State.FAILED
    assert open_archive(path).strings("error")[5] == "it ended the engine twice"


def test_in_flight_names_the_suspects_of_a_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only instructions that the engine had received and not finished; they are pending, and run when resumed."""
    monkeypatch.setattr("sparcom_extractor.engine.HEALTH_SECONDS", 0.1)
    engine, path = Engine(), tmp_path / "a.zarr"
    engine.llm.dies_after = 30
    extraction = resumed(engine, path)
    with pytest.raises(EngineError):
        run(extraction.run())
    assert 0 < len(extraction.in_flight) <= engine.max_in_flight
    assert all(states(path)[index] == State.PENDING for index in extraction.in_flight)
    monkeypatch.setattr(resume, "LOCK_SECONDS", 0.2)
    with pytest.raises(StorageError, match="another process still writes"):
        resumed(Engine(), path)  # the dead engine's worker holds the archive until it ends
    engine.llm.worker.sparcom_close(extraction._session)
    assert run(resumed(Engine(), path).run()).complete == 60
    assert_right(open_archive(path))


def test_each_chunk_is_written_once_per_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of an interrupted run do not make chunks count as full, so none is written for each new row."""
    path, written = tmp_path / "a.zarr", list[str]()

    def write(to: Path, parts: Any) -> None:
        written.append(to.name)
        write_durably(to, parts)

    monkeypatch.setattr(mixin, "CaptureSession", partial(CaptureSession, write=write))
    while not path.exists() or open_archive(path).attributes.state == "open":
        extraction = resumed(Engine(), path)
        progress = run(extraction.run(stop_after(extraction, extraction.progress.complete + 10)))
        assert len(written) == len(set(written)), "a chunk was written twice"
        assert extraction._read_backs == 0
        written.clear()
    assert progress.complete == 60


class Disk:
    """Writes chunks; from write `at` on, with a fault."""

    def __init__(self, fault: str, at: int, path: Path, other: Callable[[], object]) -> None:
        self.fault, self.at, self.path, self.other = fault, at, path, other
        self.count, self.lock = 0, threading.Lock()

    def write(self, to: Path, parts: Any) -> None:
        with self.lock:
            self.count += 1
            now = self.count
            if now == self.at and self.fault in {"removed", "replaced"}:
                self.path.rename(self.path.with_name("moved.zarr"))
                self.other()
        if now >= self.at and self.fault == "slow":
            threading.Event().wait(0.01)
        if now >= self.at and self.fault in {"full", "broken"}:
            number = errno.ENOSPC if self.fault == "full" else errno.EIO
            raise storage_error(to, OSError(number, self.fault))
        write_durably(to, parts)


@pytest.mark.parametrize("fault", ["full", "broken", "slow", "removed", "replaced"])
@pytest.mark.parametrize("seed", range(4))
def test_faults_of_storage_at_random_moments(
    fault: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Complete instructions stay readable and right, a foreign archive keeps its bytes, and resuming completes the
    rest. A full disk has its own error class, through the wire."""
    path, rng = tmp_path / "a.zarr", np.random.default_rng((seed, len(fault)))
    foreign = dict[Path, bytes]()

    def replace() -> None:
        if fault == "replaced":
            Engine().plan(many(9), path)
            foreign.update(files(path))

    engine = Engine()
    engine.llm.holds_after = 20  # no more than these complete before it is stopped
    first = resumed(engine, path)
    run(first.run(stop_after(first, int(rng.integers(0, 10)))))  # so the fault meets a resumed run
    disk = Disk(fault, int(rng.integers(1, 15)), path, replace)
    engine = Engine()
    extraction = resumed(engine, path)
    with monkeypatch.context() as patched:
        patched.setattr(mixin, "CaptureSession", partial(CaptureSession, write=disk.write))
        if fault == "slow":
            assert run(extraction.run()).complete == 60
            assert_right(open_archive(path))
            return
        with pytest.raises(DiskFullError if fault == "full" else StorageError) as raised:
            run(extraction.run())
    assert isinstance(raised.value, DiskFullError) == (fault == "full")
    assert (engine.llm.running, open_sessions(engine)) == (0, 0)
    assert files(path) == foreign or fault in {"full", "broken"}
    kept = path if fault in {"full", "broken"} else tmp_path / "moved.zarr"
    assert assert_kept(kept, 60) < 60
    assert run(resumed(Engine(), kept).run()).complete == 60
    assert_right(open_archive(kept))
    assert list(kept.rglob("*.partial")) == []


def files(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_stuck_disk_does_not_hold_up_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that never returns: `run` returns in time, and the archive stays locked, because it may still land."""
    monkeypatch.setattr(extraction_module, "SUSPEND_SECONDS", 0.3)
    monkeypatch.setattr(resume, "LOCK_SECONDS", 0.2)
    begun, free = threading.Event(), threading.Event()

    def write(to: Path, parts: Any) -> None:
        begun.set()
        assert free.wait(20)
        write_durably(to, parts)

    monkeypatch.setattr(mixin, "CaptureSession", partial(CaptureSession, write=write))
    engine, path = Engine(), tmp_path / "a.zarr"
    extraction = resumed(engine, path)
    run(extraction.run(lambda _: extraction.suspend() if begun.is_set() else None))
    assert extraction.suspended
    with pytest.raises(StorageError, match="another process still writes"):
        resumed(Engine(), path)
    free.set()
    engine.llm.worker.sparcom_close(extraction._session)
    extraction._archive.folder.unlock()
    assert resumed(Engine(), path).progress.complete == 0


def test_alignment_of_two_models_can_be_checked(demo_model: Path, tmp_path: Path) -> None:
    """Equal prompts have equal hashes; a boundary that moves changes it. Token ids need no engine."""
    one, two, three = (instructions_of(*lengths) for lengths in [(3, 5), (3, 5), (4, 4)])
    hashes = [Engine().plan(batch, tmp_path / f"{n}.zarr").prompts_sha256 for n, batch in enumerate((one, two, three))]
    assert (hashes[0] == hashes[1], hashes[0] == hashes[2]) == (True, False)
    (ids,) = prompt_token_ids(str(demo_model), [Instruction(id="a", text="Hello there")], ExtractionOptions())
    assert (ids.dtype, len(ids)) == (np.dtype(np.int32), 2)


def test_another_batch_is_refused(tmp_path: Path) -> None:
    """The error lists every difference, and the archive can still be resumed."""
    path = tmp_path / "a.zarr"
    first = resumed(Engine(), path)
    run(first.run(stop_after(first, 10)))
    with pytest.raises(InvalidInputError, match=r"capture\.granularity(.|\n)*SHA-256"):
        resumed(Engine(), path, [*many(59), many()[-1].model_copy(update={"text": "z" * 20})], granularity="count")
    assert run(resumed(Engine(), path).run()).complete == 60
