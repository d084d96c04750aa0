"""A fake engine that runs no model but writes real archives, to test the service without a model.

Its "tokenizer" gives one token per word. Instructions are committed one at a time, with pauses and failures that the
test sets. Masks or counts are random, and written when the archive is created.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_data.archive import open_archive
from sparcom_data.commit import ArchiveCommitter, CompletedInstruction
from sparcom_data.create import InstructionColumns, create_archive
from sparcom_data.errors import EngineError, SparcomError
from sparcom_data.instructions import Instruction
from sparcom_data.progress import Progress
from sparcom_data.schema import State
from sparcom_data.schema.layout import Layout, plan_layout
from sparcom_data.schema.metadata import ArchiveAttributes, DatasetInfo, EngineInfo, ModelInfo, MoeInfo
from sparcom_data.schema.options import ExtractionOptions
from sparcom_data.storage.identity import PinnedArchive
from sparcom_data.testing import count_masks, fill_array, random_attributes

LAYERS, NEURONS = 3, 20


class Texts(Sequence[str]):
    """The texts of instructions. They are not held in memory, as the instructions of a large job are not."""

    def __init__(self, instructions: Sequence[Instruction]) -> None:
        self._instructions = instructions

    def __len__(self) -> int:
        return len(self._instructions)

    def __getitem__(self, index: Any) -> Any:
        return self._instructions[index].text or ""

    def __iter__(self) -> Iterator[str]:
        return (instruction.text or "" for instruction in self._instructions)


@dataclass(slots=True)
class FakeExtraction:
    """Commits the instructions one by one; see `FakeEngine` for the settings."""

    engine: FakeEngine
    archive: PinnedArchive
    layout: Layout
    progress: Progress
    todo: list[int]
    warnings: Sequence[str] = ()
    prompts_sha256: str = ""
    alone: bool = False
    suspended: bool = False
    in_flight: frozenset[int] = frozenset()
    _cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def archive_run(self) -> str:
        """The run id of the archive."""
        return self.archive.run or ""

    async def run(self, report: Callable[[Progress], None]) -> Progress:
        """Commit the instructions until all are done, the job is cancelled, or the engine has an error."""
        try:
            if self.engine.gate is not None and not self._cancelled.is_set():
                await asyncio.to_thread(self.engine.gate.wait, 20)
            return await self._run(report)
        finally:
            self.archive.folder.unlock()

    async def _run(self, report: Callable[[Progress], None]) -> Progress:
        started = time.monotonic()
        committer = ArchiveCommitter(self.archive)
        while self.todo and not self._cancelled.is_set():
            await self._pause()
            if self._cancelled.is_set():
                break
            if self.engine.error and self.progress.complete >= self.engine.error_after:
                self.in_flight = frozenset(self.todo[:2])
                raise self.engine.error
            if self.todo[0] in self.engine.deadly:
                self.in_flight = frozenset(self.todo[:1] if self.alone else self.todo[:2])
                self.engine.healthy = False
                raise EngineError("the engine was killed by an instruction")
            await asyncio.to_thread(self._commit, committer, self.todo.pop(0))
            self._advance(started)
            report(self.progress)
        if self.suspended:
            return self.progress
        await asyncio.to_thread(committer.cancel, self.todo)
        await asyncio.to_thread(committer.close)
        self.progress = replace(self.progress, cancelled=len(self.todo), seconds_left=None)
        return self.progress

    def cancel(self) -> None:
        """Stop before the next instruction."""
        self._cancelled.set()

    def suspend(self) -> None:
        """Stop before the next instruction, and leave the archive open."""
        self.suspended = True
        self._cancelled.set()

    async def _pause(self) -> None:
        try:
            await asyncio.wait_for(self._cancelled.wait(), self.engine.pause)
        except TimeoutError:
            return

    def _commit(self, committer: ArchiveCommitter, index: int) -> None:
        self.engine.committed.append(index)
        rows = np.arange(self.layout.capacity[index], dtype=np.int32)
        committer.complete([CompletedInstruction(index, int(self.layout.token_start[index]), rows, rows)])

    def _advance(self, started: float) -> None:
        done, seconds = self.progress.complete + 1, max(1e-6, time.monotonic() - started)
        tokens = int(self.layout.token_start[self.todo[0]]) if self.todo else self.progress.tokens
        self.progress = replace(
            self.progress,
            complete=done,
            tokens_done=tokens,
            seconds=seconds,
            tokens_per_second=tokens / seconds,
            seconds_left=(self.progress.tokens - tokens) * seconds / max(1, tokens),
        )


@dataclass(slots=True)
class FakeEngine:
    """One "loaded model".

    pause: seconds before each instruction. max_prompt_tokens: prompts with more words fail; the job continues.
    moe: experts in its facts; its archives stay dense.
    warnings: warnings of every extraction.
    prepare_error: raised by `prepare`. start_error: raised by its start. error: raised by `run` once `error_after`
        instructions are complete.
    deadly: instructions that kill it. starts: how often it was started. tokenizer: others give other token ids.
    committed: indices that it ran, in order.
    gate: jobs wait until it is set, at most 20 s; jobs of other engines wait behind them.
    """

    name: str = "fake"
    pause: float = 0.0
    max_prompt_tokens: int = 64
    moe: MoeInfo | None = None
    prepare_error: SparcomError | None = None
    start_error: SparcomError | None = None
    error: SparcomError | None = None
    error_after: int = 0
    healthy: bool = True
    closed: bool = False
    warnings: Sequence[str] = ()
    gate: threading.Event | None = None
    deadly: frozenset[int] = frozenset()
    starts: int = 0
    committed: list[int] = field(default_factory=list)
    tokenizer: str = "words"

    @property
    def model(self) -> ModelInfo:
        """Facts of an invented model."""
        return random_attributes(LAYERS, NEURONS, moe=self.moe).model

    @property
    def engine(self) -> EngineInfo:
        """Facts of an invented engine."""
        return random_attributes(LAYERS, NEURONS).engine

    def prepare(
        self,
        instructions: Sequence[Instruction],
        options: ExtractionOptions,
        path: Path,
        dataset_name: str = "",
        *,
        resume: bool = False,
        run: str | None = None,
        alone: Collection[int] = (),
        failures: Mapping[int, str] | None = None,
        shown: Callable[[str], str] = str,
    ) -> FakeExtraction:
        """Create the archive with all masks or counts written and all instructions pending, or reopen it."""
        if self.prepare_error is not None:
            raise self.prepare_error
        lengths = [_words(instruction) for instruction in instructions]
        attributes, columns, layout = self.plan(instructions, options, dataset_name, run)
        model = attributes.model.model_copy(update={"id": shown(attributes.model.id)})
        attributes = attributes.model_copy(update={"model": model, "warnings": [*map(shown, attributes.warnings)]})
        if resume and path.exists():
            archive = PinnedArchive(path, run)
        else:
            archive = self._create(path, attributes, columns, layout)
        ArchiveCommitter(archive).fail(dict(failures or {}))
        states = open_archive(path).column("state")
        todo = [index for index, state in enumerate(states) if state in {State.PENDING, State.CANCELLED}]
        first = {index: place for place, index in enumerate(alone)}
        todo.sort(key=lambda index: first.get(index, len(first)))
        complete, failed = int((states == State.COMPLETE).sum()), int((states == State.FAILED).sum())
        progress = Progress(len(lengths), complete=complete, failed=failed, tokens=layout.tokens)
        return FakeExtraction(
            self,
            archive,
            layout,
            progress,
            todo,
            self.warnings,
            hashlib.sha256(repr((self.tokenizer, lengths)).encode()).hexdigest(),
            alone=bool(alone),
        )

    def plan(
        self, instructions: Sequence[Instruction], options: ExtractionOptions, dataset_name: str, run: str | None
    ) -> tuple[ArchiveAttributes, InstructionColumns, Layout]:
        """Return attributes, columns and layout of an archive."""
        lengths = [_words(instruction) for instruction in instructions]
        fits = [length <= self.max_prompt_tokens for length in lengths]
        attributes = random_attributes(
            LAYERS,
            NEURONS,
            positions=options.positions,
            max_tokens=options.max_tokens,
            granularity=options.granularity,
        ).model_copy(update={"dataset": DatasetInfo(name=dataset_name), "run": run})
        ids, categories, sources = zip(*((item.id, item.category, item.source) for item in instructions), strict=True)
        columns = InstructionColumns(
            id=ids,
            category=categories,
            source=sources,
            text=Texts(instructions),
            error=["" if fit else f"the prompt may have {self.max_prompt_tokens} tokens" for fit in fits],
        )
        return attributes, columns, plan_layout(lengths, options.positions, options.max_tokens, fits)

    def _create(
        self, path: Path, attributes: ArchiveAttributes, columns: InstructionColumns, layout: Layout
    ) -> PinnedArchive:
        archive = create_archive(path, attributes, columns, layout, chunk_tokens=8)
        masks = np.random.default_rng(0).random((layout.tokens, LAYERS, NEURONS)) < 0.4
        if attributes.capture.granularity == "count":
            fill_array(path, "neuron/count", count_masks(masks, layout))
        else:
            fill_array(path, "neuron/active", np.packbits(masks, axis=-1, bitorder="little"))
        return archive

    async def close(self) -> None:
        """Record that it was closed."""
        self.closed = True

    def source(self, loading: float = 0.0) -> FakeSource:
        """Return the model that takes `loading` seconds to load this engine."""
        return FakeSource(self, loading)


@dataclass(slots=True)
class FakeSource:
    """A listed model whose engine is fake. stuck: its start never ends."""

    engine: FakeEngine
    loading: float = 0.0
    stuck: bool = False

    async def start(self) -> FakeEngine:
        """Return the engine, alive."""
        await asyncio.sleep(self.loading)
        if self.stuck:
            await asyncio.to_thread(threading.Event().wait)
        if self.engine.start_error is not None:
            raise self.engine.start_error
        self.engine.healthy, self.engine.starts, self.engine.closed = True, self.engine.starts + 1, False
        return self.engine

    def check(self, instructions: Iterable[Instruction], options: ExtractionOptions) -> Iterator[Instruction]:
        """Yield the instructions."""
        yield from instructions

    def tokenize(self, instructions: Sequence[Instruction], options: ExtractionOptions) -> list[NDArray[np.int32]]:
        """Return one token per word."""
        first = len(self.engine.tokenizer)
        return [np.arange(first, first + _words(item), dtype=np.int32) for item in instructions]


def _words(instruction: Instruction) -> int:
    if instruction.token_ids is not None:
        return len(instruction.token_ids)
    if instruction.messages is not None:
        return sum(len(message.content.split()) for message in instruction.messages)
    return len((instruction.text or "").split())
