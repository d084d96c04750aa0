"""One extraction against a small stand-in for the engine, with the real worker mixin, sessions and files.

The stand-in runs prompts in pieces of a few tokens, interleaved; the bits of a row are a function of its token id and
position, so that a row in the wrong place is found.
"""

from __future__ import annotations

import asyncio
import errno
import importlib
import warnings
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sparcom_data import storage
from sparcom_data.archive import Archive, open_archive
from sparcom_data.errors import ArchiveExistsError, EngineError, InvalidInputError, StorageError
from sparcom_data.instructions import Instruction
from sparcom_data.progress import Progress
from sparcom_data.schema import State
from sparcom_data.schema.options import ExtractionOptions
from sparcom_data.testing import random_attributes
from sparcom_data.verify import verify_archive
from sparcom_extractor.capture.discovery.activations import SILU
from sparcom_extractor.capture.discovery.describe import Widths
from sparcom_extractor.capture.discovery.findings import Findings
from sparcom_extractor.capture.ops.step_buffers import StepBuffers
from sparcom_extractor.capture.transfer.queue import HostTransferQueue
from sparcom_extractor.extraction import Extraction, misalignment, prepare_extraction
from sparcom_extractor.worker.capture import WorkerCapture
from sparcom_extractor.worker.mixin import CaptureMixin
from sparcom_extractor.writer import chunks

LAYERS, NEURONS, PIECE, CONTEXT = 3, 21, 5, 64
EOS = 7


@pytest.fixture(scope="module", autouse=True)
def _vllm() -> None:
    """Importing vLLM takes seconds and warns of its own matters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("vllm.v1.engine.exceptions", "vllm.sampling_params"):
            importlib.import_module(name)


def bits_of(token: int, position: int) -> NDArray[np.bool_]:
    """The truth: which neurons fire at a token, bool (layer, neuron)."""
    return np.random.default_rng((token, position)).random((LAYERS, NEURONS)) < 0.4


class Tokenizer:
    """A token a letter."""

    chat_template = None

    def __call__(self, texts: Sequence[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        return {"input_ids": [[1] * add_special_tokens + [ord(letter) for letter in text] for text in texts]}

    def __len__(self) -> int:
        return 1000


class Model:
    """What the mixin's `super()` is: runs one request's piece and leaves its rows where model runner V1 has them."""

    capture: WorkerCapture
    model_runner: Any
    layers: Sequence[int] = range(LAYERS)  # that run, in this order
    nan_at: tuple[int, int, int] | None = None  # (token, position, layer)

    def execute_model(self, output: Any) -> None:
        (request,) = output.num_scheduled_tokens
        ids, first = output.tokens
        positions = first + np.arange(len(ids))
        gates = np.stack([bits_of(int(token), int(p)) for token, p in zip(ids, positions, strict=True)])
        for layer in self.layers:
            gate = np.where(gates[:, layer], 1.0, -1.0).astype(np.float32)
            if self.nan_at is not None and layer == self.nan_at[2]:
                gate[(np.array(ids) == self.nan_at[0]) & (positions == self.nan_at[1]), 3] = np.nan
            self.capture.buffers.dense.store(layer, torch.from_numpy(np.concatenate([gate, -gate], axis=1)), SILU)
        self.model_runner = SimpleNamespace(
            input_batch=SimpleNamespace(req_ids=[request], num_computed_tokens_cpu=np.array([first])),
            input_ids=SimpleNamespace(gpu=torch.tensor(ids, dtype=torch.int32)),
            positions=torch.from_numpy(positions),
        )


class Worker(CaptureMixin, Model):
    """The real mixin."""

    use_v2_model_runner = False
    vllm_config = SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_seqs=3),
        parallel_config=SimpleNamespace(rank=0, tensor_parallel_size=1, pipeline_parallel_size=1),
    )

    def __init__(self) -> None:
        buffers = StepBuffers(PIECE, Widths(LAYERS, NEURONS), torch.device("cpu"))
        self._capture = WorkerCapture(self.vllm_config, Findings([], []), buffers, "module", HostTransferQueue())


class Engine:
    """What an Extraction calls of an engine. The attributes set below make it misbehave."""

    max_model_len = CONTEXT
    vocabulary = 1 << 30
    max_in_flight = 3

    def __init__(self) -> None:
        self.tokenizer = Tokenizer()
        attributes = random_attributes(LAYERS, NEURONS)
        self.model, self.engine = attributes.model, attributes.engine
        self.llm = self
        self.worker = Worker()
        self.healthy = True
        self.calls: list[str] = []
        self.running = 0
        self.most_running = 0
        self.aborted: list[str] = []
        self.started: list[list[int]] = []
        self.wrong_ids: set[int] = set()  # prompts by their length whose ids the worker sees wrongly
        self.skipped: set[int] = set()  # prompts by their length of which a piece is never run
        self.refused: set[int] = set()
        self.dies_after: int | None = None
        self.dies_in_poll_after: int | None = None
        self.holds_after: int | None = None  # requests started later than so many stay open until they are aborted
        self.held = 0
        self.breaks_on: int | None = None
        self.generated = [200, 201, EOS]

    def prepare(self, instructions: Sequence[Instruction], path: Path, **options: Any) -> Extraction:
        return prepare_extraction(self, instructions, ExtractionOptions(**options), path)  # type: ignore[arg-type]

    def dead(self, error: BaseException) -> EngineError:
        return EngineError(f"the engine stopped: {error}")

    async def call_workers(self, method: str, *arguments: Any) -> list[Any]:
        self.calls.append(method)
        if self.dies_in_poll_after is not None and len(self.started) > self.dies_in_poll_after:
            self.healthy = False
        if not self.healthy:
            await asyncio.Event().wait()  # as vLLM does: a call on its way when the core dies is never answered
        return [await asyncio.to_thread(getattr(self.worker, method), *arguments)]

    async def generate(self, prompt: dict[str, Any], sampling: Any, request_id: str) -> AsyncIterator[Any]:
        from vllm.v1.engine.exceptions import EngineDeadError

        ids = prompt["prompt_token_ids"]
        self.started.append(ids)
        if len(ids) in self.refused:
            raise ValueError("not this one")
        if len(ids) == self.breaks_on:
            raise KeyError("a fault of our own")
        response = self.generated[: sampling.max_tokens]
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if self.holds_after is not None and len(self.started) > self.holds_after:
                self.held += 1
                await asyncio.Event().wait()
            await self._run(request_id, [*ids, *response[:-1]], len(ids), sampling)
            if self.dies_after is not None and len(self.started) > self.dies_after:
                self.healthy = False
            if not self.healthy:
                raise EngineDeadError
        except asyncio.CancelledError:
            self.aborted.append(request_id)
            raise
        finally:
            self.running -= 1
        yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=response, text="answer")])

    async def _run(self, request: str, tokens: list[int], prompt: int, sampling: Any) -> None:
        new = [SimpleNamespace(req_id=request, sampling_params=sampling)]
        for first in range(0, len(tokens), PIECE):
            await asyncio.sleep(0.002)
            ids = [token + (prompt in self.wrong_ids) for token in tokens[first : first + PIECE]]
            if first and prompt in self.skipped:
                return
            output = SimpleNamespace(
                finished_req_ids=set(),
                preempted_req_ids=None,
                scheduled_new_reqs=new,
                num_scheduled_tokens={request: len(ids)},
                total_num_scheduled_tokens=len(ids),
                tokens=(ids, first),
            )
            self.worker.execute_model(output)
            new = []


def instructions_of(*lengths: int) -> list[Instruction]:
    """Prompts of so many letters, no two alike; one token more with BOS."""
    return [
        Instruction(id=f"i{n}", text=f"{chr(97 + n % 26)}" + "x" * (length - 1)) for n, length in enumerate(lengths)
    ]


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run to the end, in reasonable time, leaving no task behind."""

    async def bounded() -> Any:
        try:
            return await asyncio.wait_for(coroutine, timeout=20)
        finally:
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, left

    return asyncio.run(bounded())


def assert_right(archive: Archive) -> None:
    """Every check of the archive passes and every complete instruction's bits are the truth."""
    assert [check.findings for check in verify_archive(archive, archive_tokenizer) if not check.passed] == []
    table = archive.instructions
    for index in table.complete:
        start, stop = int(table.token_start[index]), int(table.token_start[index] + table.token_length[index])
        ids, positions = archive.read_tokens(start, stop)
        masks = np.unpackbits(archive.read_active(start, stop), axis=-1, bitorder="little")[..., :NEURONS]
        for row in range(stop - start):
            assert np.array_equal(masks[row], bits_of(int(ids[row]), int(positions[row]))), table.id[index]


def archive_tokenizer(texts: Sequence[str]) -> list[list[int]]:
    return Tokenizer()(texts)["input_ids"]


def states(path: Path) -> list[int]:
    return open_archive(path).instructions.state.tolist()


MIXED = (3, 17, 8, 1, 30, 12, 5, 9, 22, 2)


def test_a_complete_archive_is_right(tmp_path: Path) -> None:
    """Prompts in pieces, several at once: the archive passes every check and every bit is the truth."""
    engine, reports = Engine(), list[Progress]()
    progress = run(engine.prepare(instructions_of(*MIXED), tmp_path / "a.zarr").run(reports.append))
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
    assert engine.most_running == engine.max_in_flight
    assert engine.calls[0] == "sparcom_open"
    assert engine.calls[-1] == "sparcom_close"
    assert engine.worker.open_sessions == ()


@pytest.mark.parametrize(("positions", "first_row"), [("response", False), ("all", True)])
def test_response_rows_are_those_fed_to_the_model(tmp_path: Path, positions: str, first_row: bool) -> None:
    """The last generated token has no row; an answer that ends at once has none at all and is complete."""
    engine = Engine()
    extraction = engine.prepare(instructions_of(*MIXED), tmp_path / "a.zarr", positions=positions, max_tokens=6)
    run(extraction.run())
    archive = open_archive(tmp_path / "a.zarr")
    table = archive.instructions
    assert (table.token_length - (table.prompt_length if first_row else 0)).tolist() == [2] * len(MIXED)
    assert archive.strings("response") == ["answer"] * len(MIXED)
    assert_right(archive)


def test_an_answer_without_rows_is_complete(tmp_path: Path) -> None:
    """A response of one token was never fed back: no rows, and the instruction is complete all the same."""
    engine = Engine()
    engine.generated = [EOS]
    run(engine.prepare(instructions_of(3, 4), tmp_path / "a.zarr", positions="response", max_tokens=4).run())
    table = open_archive(tmp_path / "a.zarr").instructions
    assert table.state.tolist() == [State.COMPLETE] * 2
    assert table.token_length.tolist() == [0, 0]


def test_a_prompt_that_cannot_run_fails_alone(tmp_path: Path) -> None:
    """Too long for the context, or refused by the engine: failed with the reason, the others complete."""
    engine = Engine()
    engine.refused = {9}
    progress = run(engine.prepare(instructions_of(3, CONTEXT, 8, 5), tmp_path / "a.zarr").run())
    assert states(tmp_path / "a.zarr") == [State.COMPLETE, State.FAILED, State.FAILED, State.COMPLETE]
    errors = open_archive(tmp_path / "a.zarr").strings("error")
    assert errors[1].startswith(f"a prompt may have at most {CONTEXT - 1} tokens")
    assert errors[2] == "the engine refused the prompt: not this one"
    assert (progress.complete, progress.failed, progress.seconds_left) == (2, 2, None)
    assert_right(open_archive(tmp_path / "a.zarr"))


def test_an_extraction_in_which_nothing_can_run_ends(tmp_path: Path) -> None:
    """All prompts too long: every instruction failed, the archive is complete and sound."""
    progress = run(Engine().prepare(instructions_of(CONTEXT, CONTEXT + 1), tmp_path / "a.zarr").run())
    assert (progress.failed, progress.settled) == (2, 2)
    assert_right(open_archive(tmp_path / "a.zarr"))


def test_rows_of_other_tokens_are_never_complete(tmp_path: Path) -> None:
    """If the worker saw other token ids than were sent the instruction fails and says where; others stay right."""
    engine = Engine()
    engine.wrong_ids = {18}
    progress = run(engine.prepare(instructions_of(*MIXED), tmp_path / "a.zarr").run())
    assert (progress.complete, progress.failed) == (len(MIXED) - 1, 1)
    assert states(tmp_path / "a.zarr")[1] == State.FAILED
    assert (
        "row 0 of 18 differs. The masks belong to something else"
        in open_archive(tmp_path / "a.zarr").strings("error")[1]
    )
    assert_right(open_archive(tmp_path / "a.zarr"))


def test_rows_that_no_step_wrote_are_never_complete(tmp_path: Path) -> None:
    """A piece that never ran leaves a hole: failed with the row."""
    engine = Engine()
    engine.skipped = {18}
    progress = run(engine.prepare(instructions_of(*MIXED), tmp_path / "a.zarr").run())
    assert (progress.complete, progress.failed) == (len(MIXED) - 1, 1)
    assert f"the first is row {PIECE}" in open_archive(tmp_path / "a.zarr").strings("error")[1]


def many(count: int = 60) -> list[Instruction]:
    return instructions_of(*([20] * count))


def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of two prompts, so that instructions become complete on the way."""
    monkeypatch.setattr("sparcom_data.create.choose_chunk_tokens", lambda *_: 42)
    monkeypatch.setattr("sparcom_extractor.extraction.POLL_SECONDS", 0.01)


def assert_kept(path: Path, instructions: int) -> int:
    """After a failure: some complete and right, the rest pending, nothing else; how many are complete."""
    archive = open_archive(path)
    assert archive.attributes.state == "open"
    assert set(archive.instructions.state.tolist()) <= {State.COMPLETE, State.PENDING}
    assert len(archive.instructions) == instructions
    assert_right(archive)
    return len(archive.instructions.complete)


@pytest.mark.parametrize("when", ["dies_after", "dies_in_poll_after"])
def test_the_engine_s_death_keeps_what_is_complete(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The core dies under a prompt, or under a poll, which vLLM then never answers: run raises, and soon."""
    small_chunks(monkeypatch)
    monkeypatch.setattr("sparcom_extractor.extraction.HEALTH_SECONDS", 0.1)
    engine = Engine()
    setattr(engine, when, 30)
    extraction = engine.prepare(many(), tmp_path / "a.zarr")
    with pytest.raises(EngineError, match="the engine stopped"):
        run(extraction.run())
    assert 0 < assert_kept(tmp_path / "a.zarr", 60) < 60
    assert len(engine.started) < 60, "prompts were sent to a dead engine"
    engine.worker.sparcom_close(extraction._session)


def test_a_full_disk_keeps_what_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up under the masks: StorageError with the reason, the rest pending, requests aborted."""
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
        run(engine.prepare(many(), tmp_path / "a.zarr").run())
    assert 0 < assert_kept(tmp_path / "a.zarr", 60) <= 20
    assert engine.running == 0
    assert engine.worker.open_sessions == ()


@pytest.mark.parametrize("name", ["token/id", "token/position", "instruction/token_length", "instruction/state"])
def test_a_full_disk_while_committing_keeps_what_is_complete(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever array of a commit is refused, no instruction is complete that is not all there."""
    small_chunks(monkeypatch)
    engine = Engine()
    extraction = engine.prepare(many(), tmp_path / "a.zarr")
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
    assert engine.worker.open_sessions == ()


@pytest.mark.parametrize("fate", ["removed", "replaced"])
@pytest.mark.parametrize("chunks_before", [0, 7, 29])
def test_a_job_never_writes_into_another_s_archive(
    fate: str, chunks_before: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive goes after so many chunks, the last one included: StorageError, what lies there stays to the byte,
    no folder is made again, requests are aborted."""
    small_chunks(monkeypatch)
    engine, path, before, written = Engine(), tmp_path / "a.zarr", dict[Path, bytes](), list[Path]()
    extraction, real = engine.prepare(many(), path), chunks.write_durably

    def files() -> dict[Path, bytes]:
        return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}

    def write(to: Path, parts: Any) -> None:
        real(to, parts)
        written.append(to)
        if len(written) == chunks_before + 1:
            path.rename(tmp_path / "moved")
            if fate == "replaced":
                Engine().prepare(many(), path)
            before.update(files())

    monkeypatch.setattr(chunks, "write_durably", write)
    with pytest.raises(StorageError, match=r"a\.zarr"):
        run(extraction.run())
    assert extraction.progress.complete < 60
    assert files() == before
    assert path.exists() == (fate == "replaced")
    assert (engine.running, engine.worker.open_sessions) == (0, ())


def test_a_fault_of_our_own_ends_the_session_too(tmp_path: Path) -> None:
    """Whatever feeding raises reaches the caller, and the worker's session is closed before."""
    engine = Engine()
    engine.breaks_on = 9
    with pytest.raises(KeyError, match="a fault of our own"):
        run(engine.prepare(instructions_of(3, 8, 5), tmp_path / "a.zarr").run())
    assert engine.worker.open_sessions == ()
    assert engine.running == 0


@pytest.mark.parametrize("granularity", ["token", "count"])
@pytest.mark.parametrize("where", ["prompt", "response"])
def test_a_gate_that_is_not_finite_fails_its_instruction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, granularity: Any, where: str
) -> None:
    """One NaN in layer 1 at one token of one instruction, of masks and of counts: that instruction is failed with the
    layer and the position, the others are complete."""
    engine = Engine()
    at = {"prompt": (ord("b"), 1, 1), "response": (200, 7, 1)}[where]
    monkeypatch.setattr(engine.worker, "nan_at", at)
    path = tmp_path / "a.zarr"
    extraction = engine.prepare(instructions_of(3, 6, 5), path, positions="all", max_tokens=3, granularity=granularity)
    progress = run(extraction.run())
    assert (progress.complete, progress.failed) == (2, 1)
    archive = open_archive(path)
    assert states(path) == [State.COMPLETE, State.FAILED, State.COMPLETE]
    place = "position 1 of the prompt" if where == "prompt" else "position 0 of the response"
    assert f"layer 1 has gates that are NaN or infinite at {place}" in archive.strings("error")[1]
    assert [check.findings for check in verify_archive(archive, archive_tokenizer) if not check.passed] == []


@pytest.mark.parametrize("layers", [[0], [0, 1, 1]])
def test_an_untrusted_step_ends_the_extraction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: list[int]
) -> None:
    """A step that a layer was left out of, or ran twice in: EngineError, and nothing of it is complete."""
    engine = Engine()
    monkeypatch.setattr(engine.worker, "layers", layers)
    with pytest.raises(EngineError, match=f"layer 1 wrote {len(layers) - 1} times"):
        run(engine.prepare(instructions_of(3, 8), tmp_path / "a.zarr").run())
    assert assert_kept(tmp_path / "a.zarr", 2) == 0


def test_an_archive_that_is_gone_is_a_storage_error(tmp_path: Path) -> None:
    """The worker cannot open the masks' array: said before any prompt runs."""
    engine = Engine()
    extraction = engine.prepare(instructions_of(3), tmp_path / "a.zarr")
    for file in (tmp_path / "a.zarr" / "neuron" / "active").iterdir():
        file.unlink()
    with pytest.raises(StorageError, match="cannot be opened for writing"):
        run(extraction.run())
    assert engine.started == []


def test_cancelled_before_it_runs(tmp_path: Path) -> None:
    """Nothing is run; every instruction that could have is cancelled, the others stay failed."""
    engine = Engine()
    extraction = engine.prepare(instructions_of(3, CONTEXT, 8), tmp_path / "a.zarr")
    extraction.cancel()
    progress = run(extraction.run())
    assert (progress.cancelled, progress.failed, progress.complete) == (2, 1, 0)
    assert states(tmp_path / "a.zarr") == [State.CANCELLED, State.FAILED, State.CANCELLED]
    assert engine.started == []
    assert_right(open_archive(tmp_path / "a.zarr"))


def test_cancelled_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is complete stays and is right, the rest is cancelled, requests in the engine are aborted."""
    small_chunks(monkeypatch)
    engine = Engine()
    engine.holds_after = 30
    extraction = engine.prepare(many(), tmp_path / "a.zarr")

    def cancel_when_requests_are_held(snapshot: Progress) -> None:
        if snapshot.complete > 3 and engine.held == engine.max_in_flight:
            extraction.cancel()

    progress = run(extraction.run(cancel_when_requests_are_held))
    assert progress.complete > 3
    assert progress.cancelled
    assert progress.settled == 60
    assert set(states(tmp_path / "a.zarr")) == {State.COMPLETE, State.CANCELLED}
    assert len(engine.aborted) == engine.max_in_flight
    assert engine.running == 0
    assert open_archive(tmp_path / "a.zarr").attributes.state == "complete"
    assert_right(open_archive(tmp_path / "a.zarr"))


def test_a_task_that_is_cancelled_from_outside_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's shutdown cancels the task: requests are aborted, the session closed, what is complete stays."""
    small_chunks(monkeypatch)
    engine = Engine()
    extraction = engine.prepare(many(), tmp_path / "a.zarr")

    async def cancel_soon() -> None:
        seen = asyncio.Event()
        task = asyncio.create_task(extraction.run(lambda snapshot: seen.set() if snapshot.complete else None))
        await seen.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(cancel_soon())
    assert 0 < assert_kept(tmp_path / "a.zarr", 60) < 60
    assert engine.running == 0
    assert engine.worker.open_sessions == ()


def test_what_breaks_a_rule_leaves_nothing_behind(tmp_path: Path) -> None:
    """Empty, duplicate, no room for a prompt, something at the path: refused before anything is made."""
    engine = Engine()
    with pytest.raises(InvalidInputError, match="must not be empty"):
        engine.prepare([], tmp_path / "a.zarr")
    with pytest.raises(InvalidInputError, match="'i0' occurs 2 times"):
        engine.prepare(instructions_of(3) * 2, tmp_path / "a.zarr")
    with pytest.raises(InvalidInputError, match=f"context of {CONTEXT} tokens; it is {CONTEXT}"):
        engine.prepare(instructions_of(3), tmp_path / "a.zarr", positions="all", max_tokens=CONTEXT)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.zarr").touch()
    with pytest.raises(ArchiveExistsError):
        engine.prepare(instructions_of(3), tmp_path / "a.zarr")


@pytest.mark.parametrize(
    ("ids", "positions", "reason"),
    [
        ([4, 5, 6], [2, 3, 4], None),
        ([4, 5, 7], [2, 3, 4], "row 2 of 3 differs"),
        ([4, 5], [2, 3], "row 2 of 3 differs"),
        ([4, 5, 6, 7], [2, 3, 4, 5], "row 3 of 3 differs"),
        ([4, 5, 6], [0, 1, 2], "positions must run from 2 on"),
        ([4, 5, 6], [2, 4, 3], "positions must run from 2 on"),
    ],
)
def test_misaligned_rows_are_told(ids: list[int], positions: list[int], reason: str | None) -> None:
    """Token ids, their number and their positions must be those that were sent."""
    from sparcom_data.commit import CompletedInstruction

    item = CompletedInstruction(0, 0, np.array(ids, dtype=np.int32), np.array(positions, dtype=np.int32))
    found = misalignment(item, np.array([4, 5, 6], dtype=np.int32), 2)
    assert (found is None) == (reason is None)
    assert reason is None or reason in str(found)


def test_no_room_for_counters_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    """A device without room for counters: the sentence says what to change, and no session is left behind."""
    engine = Engine()

    def no_room() -> None:
        raise torch.OutOfMemoryError("tried to allocate 400 MiB")

    engine.worker.capture.counters = SimpleNamespace(allocate=no_room)
    extraction = engine.prepare(instructions_of(3), tmp_path / "a.zarr", granularity="count")
    with pytest.raises(StorageError, match=r"400 MiB.*lower gpu_memory_utilization or max_num_seqs"):
        run(extraction.run())
    assert engine.worker.open_sessions == ()
