"""One extraction over a fake vLLM: complete, failed and cancelled instructions, and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stand_in import (
    CONTEXT,
    EOS,
    PIECE,
    Engine,
    assert_right,
    instructions_of,
    many,
    open_sessions,
    run,
    small_chunks,
    states,
)

from sparcom_data.archive import open_archive
from sparcom_data.errors import ArchiveExistsError, InvalidInputError, StorageError
from sparcom_data.progress import Progress
from sparcom_data.schema import State
from sparcom_extractor.extraction import misalignment

pytestmark = pytest.mark.usefixtures("quiet_vllm")

MIXED = (3, 17, 8, 1, 30, 12, 5, 9, 22, 2)


def test_a_complete_archive_is_right(tmp_path: Path) -> None:
    """Prompts run in interleaved pieces; the archive passes every check and every bit is right."""
    engine, reports = Engine(), list[Progress]()
    progress = run(engine.plan(instructions_of(*MIXED), tmp_path / "a.zarr").run(reports.append))
    archive = open_archive(tmp_path / "a.zarr")
    assert states(tmp_path / "a.zarr") == [State.COMPLETE] * len(MIXED)
    assert archive.attributes.state == "complete"
    assert_right(archive)
    rows = sum(MIXED) + len(MIXED)
    assert (progress.complete, progress.tokens, progress.tokens_done) == (len(MIXED), rows, rows)
    assert [item.complete for item in reports] == sorted(item.complete for item in reports)
    assert reports[-1] == progress
    assert progress.seconds_left is None, "nothing is left to wait for"
    assert reports[-2].seconds_left is not None
    assert engine.llm.max_running == engine.max_in_flight
    assert engine.llm.calls[0] == "sparcom_open"
    assert engine.llm.calls[-1] == "sparcom_close"
    assert open_sessions(engine) == 0


@pytest.mark.parametrize(("positions", "first_row"), [("response", False), ("all", True)])
def test_response_rows_are_those_fed_to_the_model(tmp_path: Path, positions: str, first_row: bool) -> None:
    """The last generated token has no row. A response that ends at once has no rows and is complete."""
    engine = Engine()
    extraction = engine.plan(instructions_of(*MIXED), tmp_path / "a.zarr", positions=positions, max_tokens=6)
    run(extraction.run())
    archive = open_archive(tmp_path / "a.zarr")
    table = archive.instructions
    assert (table.token_length - (table.prompt_length if first_row else 0)).tolist() == [2] * len(MIXED)
    assert archive.strings("response") == ["answer"] * len(MIXED)
    assert_right(archive)


def test_a_response_without_rows_is_complete(tmp_path: Path) -> None:
    """A response of one token was never fed back, so the instruction has no rows and is complete."""
    engine = Engine()
    engine.llm.generated = [EOS]
    run(engine.plan(instructions_of(3, 4), tmp_path / "a.zarr", positions="response", max_tokens=4).run())
    table = open_archive(tmp_path / "a.zarr").instructions
    assert table.state.tolist() == [State.COMPLETE] * 2
    assert table.token_length.tolist() == [0, 0]


def test_only_a_prompt_that_cannot_run_fails(tmp_path: Path) -> None:
    """A prompt that exceeds the context or that vLLM rejects fails with the reason; the others complete."""
    engine = Engine()
    engine.llm.refused = {9}
    progress = run(engine.plan(instructions_of(3, CONTEXT, 8, 5), tmp_path / "a.zarr").run())
    assert states(tmp_path / "a.zarr") == [State.COMPLETE, State.FAILED, State.FAILED, State.COMPLETE]
    errors = open_archive(tmp_path / "a.zarr").strings("error")
    assert errors[1].startswith(f"a prompt may have at most {CONTEXT - 1} tokens")
    assert errors[2] == "vLLM rejected the prompt: not this one"
    assert (progress.complete, progress.failed, progress.seconds_left) == (2, 2, None)
    assert_right(open_archive(tmp_path / "a.zarr"))


def test_an_extraction_in_which_nothing_can_run_ends(tmp_path: Path) -> None:
    """If all prompts are too long, every instruction is failed, and the archive is complete and valid."""
    progress = run(Engine().plan(instructions_of(CONTEXT, CONTEXT + 1), tmp_path / "a.zarr").run())
    assert (progress.failed, progress.settled) == (2, 2)
    assert_right(open_archive(tmp_path / "a.zarr"))


def test_rows_of_other_tokens_are_never_complete(tmp_path: Path) -> None:
    """If the worker saw other token ids than were submitted, the instruction fails and names the row; others stay
    right."""
    engine = Engine()
    engine.llm.wrong_ids = {18}
    progress = run(engine.plan(instructions_of(*MIXED), tmp_path / "a.zarr").run())
    assert (progress.complete, progress.failed) == (len(MIXED) - 1, 1)
    assert states(tmp_path / "a.zarr")[1] == State.FAILED
    assert "row 0 of 18 differs. Do not use these masks" in open_archive(tmp_path / "a.zarr").strings("error")[1]
    assert_right(open_archive(tmp_path / "a.zarr"))


def test_rows_that_no_step_wrote_are_never_complete(tmp_path: Path) -> None:
    """A piece that never ran leaves a gap, and the instruction fails and names the row."""
    engine = Engine()
    engine.llm.skipped = {18}
    progress = run(engine.plan(instructions_of(*MIXED), tmp_path / "a.zarr").run())
    assert (progress.complete, progress.failed) == (len(MIXED) - 1, 1)
    assert f"the first is row {PIECE}" in open_archive(tmp_path / "a.zarr").strings("error")[1]


def test_a_missing_archive_is_a_storage_error(tmp_path: Path) -> None:
    """If the worker cannot open the masks' array, an error comes before any prompt runs."""
    engine = Engine()
    extraction = engine.plan(instructions_of(3), tmp_path / "a.zarr")
    for file in (tmp_path / "a.zarr" / "neuron" / "active").iterdir():
        file.unlink()
    with pytest.raises(StorageError, match="cannot be opened for writing"):
        run(extraction.run())
    assert engine.llm.started == []


def test_cancelled_before_it_runs(tmp_path: Path) -> None:
    """Nothing runs; runnable instructions become cancelled, the others stay failed."""
    engine = Engine()
    extraction = engine.plan(instructions_of(3, CONTEXT, 8), tmp_path / "a.zarr")
    extraction.cancel()
    progress = run(extraction.run())
    assert (progress.cancelled, progress.failed, progress.complete) == (2, 1, 0)
    assert states(tmp_path / "a.zarr") == [State.CANCELLED, State.FAILED, State.CANCELLED]
    assert engine.llm.started == []
    assert_right(open_archive(tmp_path / "a.zarr"))


def test_cancelled_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Complete instructions stay and are right, the rest is cancelled, and requests in the engine are aborted."""
    small_chunks(monkeypatch)
    engine = Engine()
    engine.llm.holds_after = 30
    extraction = engine.plan(many(), tmp_path / "a.zarr")

    def cancel_when_requests_are_held(snapshot: Progress) -> None:
        if snapshot.complete > 3 and engine.llm.held == engine.max_in_flight:
            extraction.cancel()

    progress = run(extraction.run(cancel_when_requests_are_held))
    assert progress.complete > 3
    assert progress.cancelled
    assert progress.settled == 60
    assert set(states(tmp_path / "a.zarr")) == {State.COMPLETE, State.CANCELLED}
    assert len(engine.llm.aborted) == engine.max_in_flight
    assert engine.llm.running == 0
    assert open_archive(tmp_path / "a.zarr").attributes.state == "complete"
    assert_right(open_archive(tmp_path / "a.zarr"))


def test_invalid_input_leaves_nothing_behind(tmp_path: Path) -> None:
    """An empty batch, duplicates, no room for a prompt or an existing path are refused before anything is created."""
    engine = Engine()
    with pytest.raises(InvalidInputError, match="must not be empty"):
        engine.plan([], tmp_path / "a.zarr")
    with pytest.raises(InvalidInputError, match="'i0' occurs 2 times"):
        engine.plan(instructions_of(3) * 2, tmp_path / "a.zarr")
    with pytest.raises(InvalidInputError, match=f"context of {CONTEXT} tokens; it is {CONTEXT}"):
        engine.plan(instructions_of(3), tmp_path / "a.zarr", positions="all", max_tokens=CONTEXT)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.zarr").touch()
    with pytest.raises(ArchiveExistsError):
        engine.plan(instructions_of(3), tmp_path / "a.zarr")


@pytest.mark.parametrize(
    ("ids", "positions", "reason"),
    [
        ([4, 5, 6], [2, 3, 4], None),
        ([4, 5, 7], [2, 3, 4], "row 2 of 3 differs"),
        ([4, 5], [2, 3], "row 2 of 3 differs"),
        ([4, 5, 6, 7], [2, 3, 4, 5], "row 3 of 3 differs"),
        ([4, 5, 6], [0, 1, 2], "positions must be consecutive from 2 on"),
        ([4, 5, 6], [2, 4, 3], "positions must be consecutive from 2 on"),
    ],
)
def test_misaligned_rows_are_reported(ids: list[int], positions: list[int], reason: str | None) -> None:
    """Token ids, their number and their positions must equal those that were submitted."""
    from sparcom_data.commit import CompletedInstruction

    item = CompletedInstruction(0, 0, np.array(ids, dtype=np.int32), np.array(positions, dtype=np.int32))
    found = misalignment(item, np.array([4, 5, 6], dtype=np.int32), 2)
    assert (found is None) == (reason is None)
    assert reason is None or reason in str(found)
