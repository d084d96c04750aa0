"""Run one extraction: send instructions through an engine into an archive.

    prepare   tokenize ─▶ plan the layout ─▶ create the archive (instructions are pending, or failed if too long)
    run       hand prompts to the engine, a bounded number at a time ─┐
              poll the workers ◀──── report requests that have run ───┘
                 └▶ durable instructions: compare token ids with the prompt's ─▶ commit

This side owns `instruction/` and `token/` of the archive; the workers own masks and counts.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sparcom_data.commit import ArchiveCommitter, CompletedInstruction
from sparcom_data.create import InstructionColumns, create_archive
from sparcom_data.errors import EngineError, InvalidInputError, StorageError
from sparcom_data.instructions import Instruction, check_batch, dataset_sha256
from sparcom_data.progress import Progress
from sparcom_data.schema.layout import Layout, plan_layout
from sparcom_data.schema.metadata import ArchiveAttributes, CaptureInfo, DatasetInfo, EngineInfo, ModelInfo, PromptInfo
from sparcom_data.schema.options import ExtractionOptions
from sparcom_data.storage.identity import PinnedArchive
from sparcom_extractor.origins import prompt_warnings
from sparcom_extractor.prompts import Prompt, make_prompts, special_token_ids
from sparcom_extractor.protocol import FinishedRequest, Plan, PollReply, from_wire, to_wire
from sparcom_extractor.ranks import RankReplies
from sparcom_extractor.vllm_surface.engine import CompletionLike

POLL_SECONDS = 1.0  # each poll commits; at 0.25 the commits took 1 % of a small machine
DRAIN_SECONDS = 0.02


class ExtractionEngine(Protocol):
    """The part of an engine that an extraction uses; see `CaptureEngine`."""

    model: ModelInfo
    engine: EngineInfo
    max_model_len: int
    max_in_flight: int
    vocabulary: int

    @property
    def tokenizer(self) -> Any: ...
    @property
    def healthy(self) -> bool: ...
    async def generate(self, ids: list[int], max_tokens: int, plan: Plan, request_id: str) -> CompletionLike: ...
    async def call_workers(self, method: str, *arguments: Any) -> list[Any]: ...


def prepare_extraction(
    engine: ExtractionEngine,
    instructions: Sequence[Instruction],
    options: ExtractionOptions,
    path: Path,
    dataset_name: str = "",
) -> Extraction:
    """Tokenize instructions, plan the layout and create the archive. Blocks for one second with
    thousands of instructions. Raises InvalidInputError if instructions or options are invalid, ArchiveExistsError if
    `path` exists, and StorageError if the archive could not be created. An error leaves no new files behind."""
    check_batch(instructions)
    tokenizer = engine.tokenizer
    limit = engine.max_model_len - max(1, options.max_tokens)
    if limit < 1:
        raise InvalidInputError(
            f"options.max_tokens: must leave room for a prompt in the model's context of {engine.max_model_len} "
            f"tokens; it is {options.max_tokens}. Lower it, or serve the model with a larger max_model_len"
        )
    prompts = make_prompts(tokenizer, instructions, options, limit, engine.vocabulary)
    runnable = [not prompt.error for prompt in prompts]
    layout = plan_layout([len(prompt.ids) for prompt in prompts], options.positions, options.max_tokens, runnable)
    names, origins = [item.id for item in instructions], [prompt.origin for prompt in prompts]
    bos, special = getattr(tokenizer, "bos_token_id", None), special_token_ids(tokenizer)
    attributes = ArchiveAttributes(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=engine.model,
        engine=engine.engine,
        capture=CaptureInfo(**options.model_dump(), components=engine.model.components),
        prompts=None if special is None else PromptInfo(special_token_ids=special),
        dataset=DatasetInfo(name=dataset_name, sha256=dataset_sha256(instructions)),
        warnings=prompt_warnings(names, [prompt.ids for prompt in prompts], origins, bos),
    )
    columns = InstructionColumns(
        id=names,
        category=[item.category for item in instructions],
        source=[item.source for item in instructions],
        text=[prompt.text for prompt in prompts],
        error=[prompt.error for prompt in prompts],
        origin=origins,
    )
    archive = create_archive(path, attributes, columns, layout)
    return Extraction(engine, archive, prompts, layout, options, attributes.warnings)


class Extraction:
    """A planned extraction. Call `run` once; use `progress` and `cancel` at any time."""

    def __init__(
        self,
        engine: ExtractionEngine,
        archive: PinnedArchive,
        prompts: Sequence[Prompt],
        layout: Layout,
        options: ExtractionOptions,
        warnings: Sequence[str],
    ) -> None:
        self.warnings = list(warnings)  # about prompts that can run but may not be intended
        self.rows_captured = 0  # by the workers, including rows recomputed after a preemption
        self._read_backs = 0  # see `PollReply`
        self._engine, self._archive, self._options = engine, archive, options
        self._prompts, self._layout = prompts, layout
        self._session = uuid.uuid4().hex
        self._cancelled = False
        self._requests: asyncio.Task[None] | None = None
        self._ranks = RankReplies()
        self._unreported: list[FinishedRequest] = []
        self._outputs: dict[int, tuple[NDArray[np.int32], str]] = {}  # expected token ids (rows,) and response
        self._failures: dict[int, str] = {}
        self._runnable = [index for index, prompt in enumerate(prompts) if not prompt.error]
        self._unfinished = set(self._runnable)
        self._finished_rows = 0  # rows planned for instructions that are complete or failed
        self._started = 0.0
        failed = len(prompts) - len(self._runnable)
        self.progress = Progress(instructions=len(prompts), failed=failed, tokens=layout.tokens)

    @property
    def archive_run(self) -> str:
        """The run id of the archive."""
        return self._archive.run or ""

    def cancel(self) -> None:
        """Request a stop. Complete instructions stay complete; the others become cancelled."""
        self._cancelled = True
        if self._requests is not None:
            self._requests.cancel()

    async def run(self, report: Callable[[Progress], None] = lambda _: None) -> Progress:
        """Run until every instruction is complete, failed or cancelled. Calls `report` with every new snapshot.
        Raises StorageError if writing failed, or the archive was removed or replaced. Raises EngineError if the engine
        died or rows are invalid. In both cases complete instructions stay complete; the others stay pending."""
        try:
            return await self._run(report)
        finally:
            self._archive.folder.unlock()

    async def _run(self, report: Callable[[Progress], None]) -> Progress:
        self._started = time.monotonic()
        committer = await asyncio.to_thread(ArchiveCommitter, self._archive)
        path = str(self._archive.path.resolve())
        errors = await self._engine.call_workers("sparcom_open", self._session, path, self._archive.run)
        if error := next(filter(None, errors), None):
            raise StorageError(error)
        self._requests = requests = asyncio.create_task(self._run_requests())
        if self._cancelled:
            requests.cancel()
        try:
            await self._commit_until_drained(requests, committer, report)
            await asyncio.to_thread(committer.close, read_backs=self._read_backs)
        finally:
            requests.cancel()
            await asyncio.gather(requests, return_exceptions=True)  # its error was raised above
            if self._engine.healthy:
                await self._engine.call_workers("sparcom_close", self._session)
        return self.progress

    async def _run_requests(self) -> None:
        """Hand prompts to the engine in order, `max_in_flight` at a time."""
        slots = asyncio.Semaphore(self._engine.max_in_flight)
        try:
            async with asyncio.TaskGroup() as group:
                for index in self._runnable:
                    await slots.acquire()
                    group.create_task(self._run_request(index)).add_done_callback(lambda _: slots.release())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from errors

    async def _run_request(self, index: int) -> None:
        options, (row, begin, end) = self._options, self._rows(index)
        ids, unknown, request_id = self._prompts[index].ids, options.positions != "prompt", f"{self._session}-{index}"
        plan = Plan(
            session=self._session, index=index, row=row, begin=begin, end=end, length_unknown=unknown, prompt=len(ids)
        )
        try:
            output = await self._engine.generate(ids.tolist(), options.max_tokens, plan, request_id)
        except ValueError as error:
            self._failures[index] = f"vLLM rejected the prompt: {error}"
            self._finish_request(index, -1)
            return
        response = np.array(output.token_ids, dtype=np.int32)[:-1]  # the last token was never fed back: no row
        parts = {"prompt": [ids], "response": [response], "all": [ids, response]}
        expected = np.concatenate(parts[options.positions])
        self._outputs[index] = (expected, output.text if options.max_tokens else "")
        self._finish_request(index, len(expected))

    def _rows(self, index: int) -> tuple[int, int, int]:
        """Return an instruction's first row, the position of that row, and the position after its last planned row."""
        begin = int(self._layout.first_position[index])
        return int(self._layout.token_start[index]), begin, begin + int(self._layout.capacity[index])

    def _finish_request(self, index: int, length: int) -> None:
        """Queue the report that an instruction has run. length: its number of rows; -1 drops them."""
        row, begin, end = self._rows(index)
        self._unreported.append(FinishedRequest(index=index, row=row, capacity=end - begin, length=length))
        self._unfinished.discard(index)

    async def _commit_until_drained(
        self, requests: asyncio.Task[None], committer: ArchiveCommitter, report: Callable[[Progress], None]
    ) -> None:
        """Poll the workers and commit durable instructions until all requests have ended and all rows are on disk."""
        ended, cancelled = False, list[int]()
        while True:
            await (asyncio.sleep(DRAIN_SECONDS) if ended else asyncio.wait({requests}, timeout=POLL_SECONDS))
            last = requests.done() and not ended
            if last:
                if not requests.cancelled():
                    requests.result()
                cancelled = sorted(self._unfinished)
                for index in cancelled:
                    self._finish_request(index, -1)
            finished, self._unreported = self._unreported, []
            answers = await self._engine.call_workers("sparcom_poll", self._session, to_wire(finished), last)
            reply = self._ranks.merge([from_wire(PollReply, answer) for answer in answers])
            ended = ended or last
            await self._commit(committer, reply)
            report(self.progress)
            if reply.error:
                raise (StorageError if reply.error.kind == "storage" else EngineError)(reply.error.reason)
            if ended and reply.drained:
                break
        await asyncio.to_thread(committer.cancel, cancelled)
        self._advance(cancelled=len(cancelled))
        self.progress = replace(self.progress, seconds_left=None)
        report(self.progress)

    async def _commit(self, committer: ArchiveCommitter, reply: PollReply) -> None:
        """Mark durable instructions complete if their rows match the submitted prompt, otherwise failed."""
        self.rows_captured, self._read_backs = reply.rows, reply.read_backs
        failures, self._failures = self._failures, {}
        failures |= {item.index: item.reason for item in reply.failed}
        complete = []
        for durable in reply.completed:
            index, (expected, response) = durable.index, self._outputs.pop(durable.index)
            row, begin, _ = self._rows(index)
            ids, positions = (np.frombuffer(part, dtype=np.int32) for part in (durable.ids, durable.positions))
            item = CompletedInstruction(index, row, ids, positions, response)
            if problem := misalignment(item, expected, begin):
                failures[index] = problem
            else:
                complete.append(item)
        for index in failures:
            self._outputs.pop(index, None)
        if complete:
            await asyncio.to_thread(committer.complete, complete)
        if failures:
            await asyncio.to_thread(committer.fail, failures)
        self._finished_rows += int(self._layout.capacity[[*(item.index for item in complete), *failures]].sum())
        self.progress = replace(self.progress, storage_wait_seconds=reply.backpressure_seconds)
        self._advance(complete=len(complete), failed=len(failures), tokens_done=sum(len(item.ids) for item in complete))

    def _advance(self, **counts: int) -> None:
        """Add counts to the progress and update its times."""
        sums = {name: getattr(self.progress, name) + count for name, count in counts.items()}
        now = replace(self.progress, seconds=time.monotonic() - self._started, **sums)
        fraction = self._finished_rows / now.tokens if now.tokens else 1.0
        self.progress = replace(
            now,
            tokens_per_second=now.tokens_done / now.seconds if now.seconds else 0.0,
            seconds_left=now.seconds * (1 - fraction) / fraction if fraction else None,
        )


def misalignment(item: CompletedInstruction, expected: NDArray[np.int32], first_position: int) -> str | None:
    """Return why captured rows do not belong to their instruction, or None (rule 6 of the archive format).
    expected: int32 (rows,), token ids that were submitted or generated. first_position: position of the first row."""
    if not np.array_equal(item.ids, expected):
        shorter = min(len(item.ids), len(expected))
        row = next((k for k in range(shorter) if item.ids[k] != expected[k]), shorter)
        return (
            f"captured token ids must equal those of the prompt and the response; row {row} of {len(expected)} "
            "differs. Do not use these masks, and report the model and vLLM version"
        )
    if not np.array_equal(item.positions, first_position + np.arange(len(expected))):
        return (
            f"captured positions must be consecutive from {first_position} on; they are not. Do not use these masks, "
            "and report the model and vLLM version"
        )
    return None
