"""A small fake of vLLM's engine below the real `CaptureEngine`, with the real worker mixin, sessions and files.

It runs prompts in interleaved pieces of a few tokens. The bits of a row are a function of its token id and position, so
a misplaced row is detected.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sparcom_data.archive import Archive, open_archive
from sparcom_data.instructions import Instruction
from sparcom_data.schema import State
from sparcom_data.schema.options import ExtractionOptions
from sparcom_data.testing import random_attributes
from sparcom_data.verify import verify_archive
from sparcom_extractor.capture.discovery.activations import SILU
from sparcom_extractor.capture.discovery.describe import Widths
from sparcom_extractor.capture.discovery.findings import Findings
from sparcom_extractor.capture.ops.step_buffers import StepBuffers
from sparcom_extractor.capture.step import StepCapture
from sparcom_extractor.capture.transfer.queue import HostTransferQueue
from sparcom_extractor.engine import CaptureEngine
from sparcom_extractor.extraction import Extraction
from sparcom_extractor.settings import EngineSettings
from sparcom_extractor.worker.mixin import CaptureMixin, WorkerCapture

LAYERS, NEURONS, PIECE, CONTEXT = 3, 21, 5, 64
EOS = 7


def bits_of(token: int, position: int) -> NDArray[np.bool_]:
    """Return the active neurons at a token: bool (layer, neuron)."""
    return np.random.default_rng((token, position)).random((LAYERS, NEURONS)) < 0.4


class Letters:
    """A tokenizer with one token per letter, and 1 as BOS."""

    chat_template = None

    def __call__(self, texts: Sequence[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        return {"input_ids": [[1] * add_special_tokens + [ord(letter) for letter in text] for text in texts]}

    def __len__(self) -> int:
        return 1000


class Model:
    """Base class of the mixin: runs a piece of one request and leaves its rows where model runner V1 keeps them."""

    capture: WorkerCapture
    model_runner: Any
    layers: Sequence[int] = range(LAYERS)  # in running order
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
            self.capture.steps.buffers.dense.store(layer, torch.from_numpy(np.concatenate([gate, -gate], axis=1)), SILU)
        self.model_runner = SimpleNamespace(
            input_batch=SimpleNamespace(req_ids=[request], num_computed_tokens_cpu=np.array([first])),
            input_ids=SimpleNamespace(gpu=torch.tensor(ids, dtype=torch.int32)),
            positions=torch.from_numpy(positions),
        )


class Worker(CaptureMixin, Model):
    """A worker with the real mixin."""

    use_v2_model_runner = False
    vllm_config = SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_seqs=3),
        parallel_config=SimpleNamespace(rank=0, tensor_parallel_size=1, pipeline_parallel_size=1),
    )

    def __init__(self) -> None:
        buffers = StepBuffers(PIECE, Widths(range(LAYERS), NEURONS), torch.device("cpu"))
        self._capture = WorkerCapture(Findings([], []), "module", StepCapture(buffers, HostTransferQueue()))


class FakeLLM:
    """Replaces vLLM's AsyncLLM. The attributes below the line inject faults."""

    vllm_config: Any = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=CONTEXT, get_vocab_size=lambda: 1 << 30),
        scheduler_config=SimpleNamespace(max_num_seqs=3),
    )
    output_handler = None

    def __init__(self) -> None:
        self.worker = Worker()
        self.errored = False
        self.calls: list[str] = []
        self.running = 0
        self.max_running = 0
        self.aborted: list[str] = []
        self.started: list[list[int]] = []
        self.held = 0
        self.generated = [200, 201, EOS]
        # ----
        self.wrong_ids: set[int] = set()  # lengths of prompts whose ids the worker misreads
        self.skipped: set[int] = set()  # lengths of prompts of which one piece is never run
        self.refused: set[int] = set()
        self.dies_after: int | None = None
        self.dies_in_poll_after: int | None = None
        self._died = asyncio.Event()
        self.holds_after: int | None = None  # later requests stay open until they are aborted
        self.breaks_on: int | None = None

    def get_tokenizer(self) -> Letters:
        return Letters()

    def shutdown(self) -> None:
        self.errored = True

    async def collective_rpc(self, method: str, *, args: Sequence[Any] = ()) -> list[Any]:
        self.calls.append(method)
        if self.dies_in_poll_after is not None and len(self.started) > self.dies_in_poll_after:
            self.errored = True
            self._died.set()
        if self.errored:
            await asyncio.Event().wait()  # like vLLM, which never answers a pending call when the core dies
        return [await asyncio.to_thread(getattr(self.worker, method), *args)]

    async def generate(self, prompt: dict[str, Any], sampling_params: Any, request_id: str) -> AsyncIterator[Any]:
        from vllm.v1.engine.exceptions import EngineDeadError

        ids = prompt["prompt_token_ids"]
        self.started.append(ids)
        if self.dies_in_poll_after is not None and len(self.started) > self.dies_in_poll_after:
            await self._died.wait()  # however late the poll comes, it finds prompts running
        if len(ids) in self.refused:
            raise ValueError("not this one")
        if len(ids) == self.breaks_on:
            raise KeyError("a fault of our own")
        response = self.generated[: sampling_params.max_tokens]
        self.running += 1
        self.max_running = max(self.max_running, self.running)
        try:
            if self.holds_after is not None and len(self.started) > self.holds_after:
                self.held += 1
                await asyncio.Event().wait()
            await self._run(request_id, [*ids, *response[:-1]], len(ids), sampling_params)
            if self.dies_after is not None and len(self.started) > self.dies_after:
                self.errored = True
            if self.errored:
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


class Engine(CaptureEngine):
    """The real engine on top of the fake."""

    def __init__(self) -> None:
        attributes = random_attributes(LAYERS, NEURONS)
        super().__init__(EngineSettings(model="stand-in"), FakeLLM(), attributes.model, attributes.engine)
        self.max_in_flight = 3

    def plan(self, instructions: Sequence[Instruction], path: Path, **options: Any) -> Extraction:
        return self.prepare(instructions, ExtractionOptions(**options), path)


def open_sessions(engine: Engine) -> int:
    return len(engine.llm.worker.capture.steps.open_sessions)


def instructions_of(*lengths: int) -> list[Instruction]:
    """Return prompts of these numbers of letters, all different. BOS adds one token."""
    return [
        Instruction(id=f"i{n}", text=f"{chr(97 + n % 26)}" + "x" * (length - 1)) for n, length in enumerate(lengths)
    ]


def many(count: int = 60) -> list[Instruction]:
    return instructions_of(*([20] * count))


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run to the end within a time limit; no task may remain."""

    async def bounded() -> Any:
        try:
            return await asyncio.wait_for(coroutine, timeout=20)
        finally:
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, left

    return asyncio.run(bounded())


def assert_right(archive: Archive) -> None:
    """Check that the archive passes every check and that every complete instruction has the right bits."""
    assert [check.findings for check in verify_archive(archive, archive_tokenizer) if not check.passed] == []
    table = archive.instructions
    for index in table.complete:
        start, stop = int(table.token_start[index]), int(table.token_start[index] + table.token_length[index])
        ids, positions = archive.read_tokens(start, stop)
        masks = np.unpackbits(archive.read_active(start, stop), axis=-1, bitorder="little")[..., :NEURONS]
        for row in range(stop - start):
            assert np.array_equal(masks[row], bits_of(int(ids[row]), int(positions[row]))), table.id[index]


def assert_kept(path: Path, instructions: int) -> int:
    """After a failure, check that some instructions are complete and right, and all others pending. Return the number
    complete."""
    archive = open_archive(path)
    assert archive.attributes.state == "open"
    assert set(archive.instructions.state.tolist()) <= {State.COMPLETE, State.PENDING}
    assert len(archive.instructions) == instructions
    assert_right(archive)
    return len(archive.instructions.complete)


def archive_tokenizer(texts: Sequence[str]) -> list[list[int]]:
    return Letters()(texts)["input_ids"]


def states(path: Path) -> list[int]:
    return open_archive(path).instructions.state.tolist()


def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make chunks of two prompts, so that instructions become complete during the run."""
    monkeypatch.setattr("sparcom_data.create.choose_chunk_tokens", lambda *_: 42)
    monkeypatch.setattr("sparcom_extractor.extraction.POLL_SECONDS", 0.01)
