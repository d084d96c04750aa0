"""Workers of one engine: their replies are merged, and each writes its own chunks."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparcom_data.archive import open_archive
from sparcom_data.commit import ArchiveCommitter, CompletedInstruction
from sparcom_data.create import InstructionColumns, create_archive
from sparcom_data.errors import StorageError
from sparcom_data.schema.layout import plan_layout
from sparcom_data.schema.metadata import ArchiveAttributes, MoeInfo
from sparcom_data.testing import MoeTruth, random_attributes, write_random_moe_archive
from sparcom_data.verify import verify_archive
from sparcom_extractor.protocol import (
    DurableInstruction,
    FailedInstruction,
    FinishedRequest,
    PollReply,
    SessionError,
    WorkerDescription,
)
from sparcom_extractor.ranks import RankReplies, merge_descriptions
from sparcom_extractor.writer.counting import count_experts
from sparcom_extractor.writer.rows import RANGES, StepRows
from sparcom_extractor.writer.session import CaptureSession
from sparcom_extractor.writer.targets import RankPosition, archive_parts

IDS, POSITIONS = np.arange(3, dtype=np.int32).tobytes(), np.arange(3, dtype=np.int32).tobytes()


def done(index: int, ids: bytes = IDS) -> DurableInstruction:
    return DurableInstruction(index, ids, POSITIONS)


def test_an_instruction_is_complete_when_every_rank_has_it() -> None:
    """One rank is not enough; the order and time of the other ranks' reports do not matter."""
    ranks = RankReplies()
    assert ranks.merge([PollReply(completed=(done(0), done(1))), PollReply(completed=(done(1),))]).completed == (
        done(1),
    )
    assert ranks.merge([PollReply(), PollReply()]).completed == ()
    assert ranks.merge([PollReply(), PollReply(completed=(done(0),))]).completed == (done(0),)


def test_an_instruction_that_fails_on_one_rank_fails_once() -> None:
    """It is reported once and never complete, whether other ranks complete or fail it, before or afterwards."""
    ranks = RankReplies()
    first = ranks.merge(
        [
            PollReply(completed=(done(0),), failed=(FailedInstruction(1, "no row"),)),
            PollReply(failed=(FailedInstruction(0, "no chunk"),)),
        ]
    )
    assert (first.completed, first.failed) == ((), (FailedInstruction(1, "no row"), FailedInstruction(0, "no chunk")))
    second = ranks.merge([PollReply(), PollReply(completed=(done(1),), failed=(FailedInstruction(1, "again"),))])
    assert (second.completed, second.failed) == ((), ())


def test_ranks_with_different_tokens_fail_the_instruction() -> None:
    """Every worker runs the same step; if token ids differ, the rows do not belong to the instruction."""
    other = np.array([0, 1, 9], dtype=np.int32).tobytes()
    merged = RankReplies().merge([PollReply(completed=(done(0),)), PollReply(completed=(done(0, other),))])
    assert merged.completed == ()
    assert merged.failed[0].index == 0
    assert "their token ids differ" in merged.failed[0].reason


def test_errors_and_ends_are_those_of_all_ranks() -> None:
    """Any rank's error ends the session. It is drained when all ranks are. The longest wait and most rows are
    reported."""
    merged = RankReplies().merge(
        [
            PollReply(drained=True, backpressure_seconds=1.0, rows=5, written_bytes=3),
            PollReply(error=SessionError("storage", "full"), backpressure_seconds=2.0, written_bytes=4),
        ]
    )
    assert merged.error == SessionError("storage", "full")
    assert (merged.drained, merged.backpressure_seconds, merged.rows, merged.written_bytes) == (False, 2.0, 5, 7)
    assert RankReplies().merge([PollReply(drained=True), PollReply(drained=True)]).drained


MOE = MoeInfo(layer_ids=[1], experts=4, experts_per_token=2, neurons=16, shared_neurons=0)
DESCRIBED = WorkerDescription(layer_ids=(0,), neurons=32, moe=MOE, memory={"step_buffer_bytes": 10})


def described(**changed: Any) -> WorkerDescription:
    return replace(DESCRIBED, **changed)


def moe_of(description: WorkerDescription) -> MoeInfo:
    assert description.moe is not None
    return description.moe


def test_stages_capture_the_layers_of_all() -> None:
    """The layers of all stages are merged, even if a stage has no dense or no MoE layers; one refusal refuses the
    engine."""
    second = described(layer_ids=(), neurons=0, moe=MOE.model_copy(update={"layer_ids": [2, 3]}))
    merged = merge_descriptions([described(memory={"step_buffer_bytes": 7}), second])
    assert (merged.layer_ids, merged.neurons, moe_of(merged).layer_ids) == ((0,), 32, [1, 2, 3])
    assert merged.memory == {"step_buffer_bytes": 10}
    dense = described(layer_ids=(0, 1), moe=None)
    assert moe_of(merge_descriptions([dense, described(layer_ids=(), moe=second.moe)])).layer_ids == [2, 3]
    assert merge_descriptions([described(), WorkerDescription(refusal="no gate")]) == WorkerDescription(
        refusal="no gate"
    )
    wider = described(moe=MOE.model_copy(update={"neurons": 24}))
    assert "moe neurons is [16, 24]" in str(merge_descriptions([described(), wider]).refusal)
    assert "neurons is [32, 40]" in str(merge_descriptions([described(neurons=40), described()]).refusal)


def attributes_of(tensor: int, pipeline: int) -> ArchiveAttributes:
    """Return attributes of a model with two dense layers, then three MoE layers."""
    moe = MoeInfo(layer_ids=[2, 3, 4], experts=6, experts_per_token=2, neurons=32, shared_neurons=64)
    attributes = random_attributes(2, 48, moe=moe)
    engine = {"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline}
    return attributes.model_copy(update={"engine": attributes.engine.model_copy(update=engine)})


# per worker: its rank, and the dense and MoE layers of its stage
PLACES = {
    "one process": (1, 1, [RankPosition()]),
    "two ranks": (2, 1, [RankPosition(0), RankPosition(1)]),
    "two stages": (1, 2, [RankPosition(0, [0, 1], [2]), RankPosition(0, [], [3, 4])]),
    "both": (2, 2, [RankPosition(r, *layers) for layers in (([0], []), ([1], [2, 3, 4])) for r in (0, 1)]),
}


def own(name: str, rows: np.ndarray[Any, Any], place: RankPosition, ranks: int) -> np.ndarray[Any, Any]:
    """Return a worker's part of rows (tokens, layer, …): its layers, and its slice of the neurons."""
    layers, first = (place.layer_ids, 0) if name == "neuron/active" else (place.moe_layer_ids, 2)
    if layers is not None:
        rows = rows[:, [layer - first for layer in layers]]
    if name.endswith("/active"):
        width = rows.shape[-1] // ranks
        rows = rows[..., place.rank * width : (place.rank + 1) * width]
    return np.ascontiguousarray(rows)


@pytest.mark.parametrize("case", PLACES)
def test_workers_together_write_what_one_writes(tmp_path: Path, case: str) -> None:
    """Ranks hold a slice of the neurons, stages hold layers; no chunk has two writers, and none is missing."""
    tensor, pipeline, places = PLACES[case]
    layout = plan_layout([9, 4, 11], "prompt", 0)
    path, columns = tmp_path / "a.zarr", InstructionColumns(["0", "1", "2"], *([""] * 3 for _ in range(4)))
    create_archive(path, attributes_of(tensor, pipeline), columns, layout, chunk_tokens=8)
    rng = np.random.default_rng(0)
    rows = {
        "neuron/active": rng.integers(0, 256, (24, 2, 6), dtype=np.uint8),
        "router/expert": rng.random((24, 3, 6)).argsort(axis=-1)[..., :2].astype(np.uint16),
        "router/weight": rng.random((24, 3, 2), dtype=np.float32),
        "expert_neuron/active": rng.integers(0, 256, (24, 3, 2, 4), dtype=np.uint8),
        "shared_expert_neuron/active": rng.integers(0, 256, (24, 3, 8), dtype=np.uint8),
    }
    written: list[Path] = []
    for place in places:
        before = set(path.rglob("c.*"))
        parts, instructions = archive_parts(path, place)
        write(CaptureSession(parts, instructions), {n: own(n, r, place, tensor) for n, r in rows.items()}, layout)
        written += set(path.rglob("c.*")) - before
    assert len(written) == len(set(written))
    commit(path, layout)
    archive = open_archive(path)
    assert [check.findings for check in verify_archive(archive, None)] == [[]] * 5
    for name, values in rows.items():
        np.testing.assert_array_equal(archive.read_rows(name, 0, 24), values)


def write(session: CaptureSession, rows: dict[str, Any], layout: Any) -> None:
    """Append and finish all instructions in one step, until everything is on disk."""
    starts = enumerate(zip(layout.token_start, layout.capacity, strict=True))
    ranges = np.array([(k, start, size, start, size, 0, -1) for k, (start, size) in starts], dtype=RANGES)
    session.append_rows(StepRows(ranges, rows, np.arange(24, dtype=np.int32), np.arange(24)))
    session.finish_requests([FinishedRequest(k, row, size, size) for k, row, size, *_ in ranges.tolist()])
    session.end_input()
    completed, deadline = 0, time.monotonic() + 20
    while not (found := session.poll()).drained:
        assert time.monotonic() < deadline
        completed += len(found.completed)
        time.sleep(0.01)
    assert found.error is None
    assert completed + len(found.completed) + len(session.poll().completed) == 3
    session.close()


def commit(path: Path, layout: Any) -> None:
    committer = ArchiveCommitter(path)
    committer.complete(
        [
            CompletedInstruction(k, int(start), np.zeros(size, np.int32), np.arange(size, dtype=np.int32))
            for k, (start, size) in enumerate(zip(layout.token_start, layout.capacity, strict=True))
        ]
    )
    committer.close()


@pytest.mark.parametrize("fate", ["removed", "replaced"])
def test_a_worker_writes_only_into_its_own_archive(tmp_path: Path, fate: str) -> None:
    """A worker has the archive's run id. If the folder is removed before its first chunk, writing fails and creates
    nothing. An archive with another run id is refused at once."""
    path = tmp_path / "a.zarr"
    run = new_archive(path)
    parts, instructions = archive_parts(path, run=run)
    session = CaptureSession(parts, instructions)
    shutil.rmtree(path)
    if fate == "replaced":
        new_archive(path)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert bool(before) == (fate == "replaced")
    masks = np.ones((5, 1, 1), dtype=np.uint8)
    session.append_rows(
        StepRows(
            np.array([(0, 0, 5, 0, 5, 0, -1)], dtype=RANGES),
            {"neuron/active": masks},
            np.arange(5, dtype=np.int32),
            np.arange(5),
        )
    )
    session.finish_requests([FinishedRequest(0, 0, 5, 5)])
    session.end_input()
    deadline = time.monotonic() + 20
    while not (found := session.poll()).error:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    session.close()
    assert (found.error.kind, found.completed) == ("storage", ())
    assert {"removed": "was removed", "replaced": "another archive took the place"}[fate] in found.error.reason
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert path.exists() == (fate == "replaced")
    with pytest.raises(StorageError, match={"removed": "was removed", "replaced": "another archive"}[fate]):
        archive_parts(path, run=run)


def new_archive(path: Path) -> str:
    """Make an archive of one instruction with five rows; return its run id."""
    columns = InstructionColumns(["0"], *([""] for _ in range(4)))
    return str(create_archive(path, random_attributes(1, 8), columns, plan_layout([5], "prompt", 0)).run)


def test_counts_of_experts_are_sums_of_the_masks(tmp_path: Path) -> None:
    """A counting session equals the count archive of the same data: dense neurons, routes, top-k and shared experts.
    Repeated rows count once, and a row past the end is subtracted."""
    truth = write_random_moe_archive(tmp_path / "masks.zarr", per_category=3, lengths=(12, 30))
    write_random_moe_archive(tmp_path / "truth.zarr", per_category=3, lengths=(12, 30), granularity="count")
    write_random_moe_archive(
        tmp_path / "counts.zarr", per_category=3, lengths=(12, 30), granularity="count", failed=range(6)
    )
    masks, expected = open_archive(tmp_path / "masks.zarr"), open_archive(tmp_path / "truth.zarr")
    for chunk in (tmp_path / "counts.zarr").glob("*/count/c.*"):
        chunk.unlink()
    count_again(tmp_path / "counts.zarr", masks, truth)
    for item in expected.captured:
        folder = open_archive(tmp_path / "counts.zarr").array(item.name)
        np.testing.assert_array_equal(folder[:], expected.array(item.name)[:], err_msg=item.name)


def test_an_expert_that_the_model_lacks_is_not_counted() -> None:
    """It would be counted in the next layer."""
    with pytest.raises(ValueError, match="below 6, the number of experts; a row has 6"):
        count_experts(np.full((1, 2, 2), 6, dtype=np.uint16), np.zeros((2, 6), dtype=np.uint32))


def count_again(path: Path, masks: Any, truth: MoeTruth) -> None:
    parts, instructions = archive_parts(path)
    session = CaptureSession(parts, instructions)
    spans = list(zip(truth.layout.token_start.tolist(), truth.layout.capacity.tolist(), strict=True))
    for k, (start, size) in enumerate(spans):
        for first, stop in ((0, 5), (3, 9), (9, size)):
            put_rows(session, masks, k, start, size, first, stop)
        put_rows(session, masks, k, start, size, size - 1, size, past=True)
    session.finish_requests([FinishedRequest(k, start, size + 1, size) for k, (start, size) in enumerate(spans)])
    session.end_input()
    deadline = time.monotonic() + 20
    while not (found := session.poll()).drained:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (found.error, found.failed) == (None, ())
    session.close()


def put_rows(
    session: Any, masks: Any, k: int, start: int, size: int, first: int, stop: int, past: bool = False
) -> None:
    """Append rows [first, stop) of instruction k; `past`: as the row after its end."""
    rows = {item.name: masks.read_rows(item.name, start + first, start + stop) for item in masks.captured}
    offset = size if past else first
    ranges = np.array([(k, start, size + 1, 0, stop - first, offset, -1)], dtype=RANGES)
    positions = np.arange(offset, offset + stop - first)
    session.append_rows(StepRows(ranges, rows, np.ones(stop - first, dtype=np.int32), positions))
