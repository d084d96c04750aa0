"""One extraction: instructions through an engine into an archive.

    prepare   tokenise ─▶ plan the layout ─▶ create the archive (every instruction pending, or failed if too long)
    run       feed prompts, a bounded number at a time ─┐
              poll the worker ◀──── settle what has run ┘
                 └▶ what is durable: compare its token ids with the prompt's ─▶ commit

It owns `instruction/` and `token/` of the archive; the worker owns the masks.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparcom_data.commit import ArchiveCommitter, CompletedInstruction
from sparcom_data.create import InstructionColumns, create_archive
from sparcom_data.errors import EngineError, InvalidInputError, StorageError
from sparcom_data.instructions import Instruction, check_batch, dataset_sha256
from sparcom_data.progress import Progress
from sparcom_data.schema.layout import Layout, plan_layout
from sparcom_data.schema.metadata import ArchiveAttributes, CaptureInfo, DatasetInfo, PromptInfo
from sparcom_data.schema.options import ExtractionOptions
from sparcom_data.storage.identity import PinnedArchive
from sparcom_extractor.origins import prompt_warnings
from sparcom_extractor.prompts import Prompt, make_prompts, special_token_ids
from sparcom_extractor.protocol import PLAN_KEY, FinishedRequest, Plan, PollReply, from_wire, to_wire
from sparcom_extractor.ranks import RankReplies

if TYPE_CHECKING:
    from sparcom_extractor.engine import CaptureEngine

POLL_SECONDS = 1.0  # each poll commits; at 0.25 the commits took 1 % of a small machine
DRAIN_SECONDS = 0.02
HEALTH_SECONDS = 1.0  # how often an engine that does not answer is asked whether it lives


def prepare_extraction(
    engine: CaptureEngine,
    instructions: Sequence[Instruction],
    options: ExtractionOptions,
    path: Path,
    dataset_name: str = "",
) -> Extraction:
    """Everything before the first token runs. Blocking: a second for some thousands of instructions.

    Raises:
        InvalidInputError: a rule of the batch or of the prompt format is broken; nothing was created.
        ArchiveExistsError: there is something at `path`.
        StorageError: the archive could not be created; nothing is left behind.
    """
    check_batch(instructions)
    limit = engine.max_model_len - max(1, options.max_tokens)
    if limit < 1:
        raise InvalidInputError(
            [
                f"options.max_tokens: must leave room for a prompt in the model's context of {engine.max_model_len} "
                f"tokens; it is {options.max_tokens}. Lower it, or serve the model with a larger max_model_len"
            ]
        )
    prompts = make_prompts(engine.tokenizer, instructions, options, limit, engine.vocabulary)
    layout = plan_layout(
        [len(prompt.ids) for prompt in prompts],
        options.positions,
        options.max_tokens,
        [not prompt.error for prompt in prompts],
    )
    special = special_token_ids(engine.tokenizer)
    warnings = prompt_warnings(
        [item.id for item in instructions],
        [prompt.ids for prompt in prompts],
        [prompt.origin for prompt in prompts],
        getattr(engine.tokenizer, "bos_token_id", None),
    )
    attributes = ArchiveAttributes(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=engine.model,
        engine=engine.engine,
        capture=CaptureInfo(**options.model_dump(), components=engine.model.components),
        prompts=None if special is None else PromptInfo(special_token_ids=special),
        dataset=DatasetInfo(name=dataset_name, sha256=dataset_sha256(instructions)),
        warnings=warnings,
    )
    columns = InstructionColumns(
        id=[item.id for item in instructions],
        category=[item.category for item in instructions],
        source=[item.source for item in instructions],
        text=[prompt.text for prompt in prompts],
        error=[prompt.error for prompt in prompts],
        origin=[prompt.origin for prompt in prompts],
    )
    archive = create_archive(path, attributes, columns, layout)
    return Extraction(engine, archive, prompts, layout, options, warnings)


@dataclass(frozen=True, slots=True)
class _Ran:
    """What the engine said of an instruction that has run. expected: the token ids its rows must have, int32."""

    expected: NDArray[np.int32]
    response: str


class Extraction:
    """A planned extraction. `run` once; `progress` and `cancel` at any time. `warnings` are about its prompts."""

    def __init__(
        self,
        engine: CaptureEngine,
        archive: PinnedArchive,
        prompts: Sequence[Prompt],
        layout: Layout,
        options: ExtractionOptions,
        warnings: Sequence[str] = (),
    ) -> None:
        self.warnings = list(warnings)
        self._engine = engine
        self._archive = archive
        self._prompts = prompts
        self._layout = layout
        self._options = options
        self._session = uuid.uuid4().hex
        self._cancelled = asyncio.Event()
        self._ranks = RankReplies()
        self._finished: list[FinishedRequest] = []
        self._ran: dict[int, _Ran] = {}
        self._failures: dict[int, str] = {}
        self._runnable = [index for index, prompt in enumerate(prompts) if not prompt.error]
        self._unsettled = set(self._runnable)
        self._dropped: list[int] = []
        self.rows_captured = 0  # by the worker, those computed again after a preemption included
        self._rows_settled = 0
        self._started = 0.0
        self.progress = Progress(
            instructions=len(prompts), failed=len(prompts) - len(self._runnable), tokens=layout.tokens
        )

    @property
    def archive_run(self) -> str:
        """The run id of the archive."""
        return self._archive.run or ""

    def cancel(self) -> None:
        """Stop soon: what is complete stays, the rest becomes cancelled."""
        self._cancelled.set()

    async def run(self, report: Callable[[Progress], None] = lambda _: None) -> Progress:
        """Run until every instruction is complete, failed or cancelled.

        Raises:
            StorageError: writing failed, or the archive was removed or replaced; the rest stays pending, what was
                complete stays complete.
            EngineError: the engine died, or rows could not be trusted.
        """
        try:
            return await self._run(report)
        finally:
            self._archive.folder.unlock()

    async def _run(self, report: Callable[[Progress], None]) -> Progress:
        self._started = time.monotonic()
        committer = await asyncio.to_thread(ArchiveCommitter, self._archive)
        path = str(self._archive.path.resolve())
        errors = await self._call_workers("sparcom_open", self._session, path, self._archive.run)
        if error := next(filter(None, errors), None):
            raise StorageError(error)
        feeding = asyncio.create_task(self._feed())
        try:
            await self._follow(feeding, committer, report)
            await asyncio.to_thread(committer.close)
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)  # what it raised was raised above
            if self._engine.healthy:
                await self._call_workers("sparcom_close", self._session)
        return self.progress

    async def _call_workers(self, method: str, *arguments: Any) -> list[Any]:
        """The workers' answers. vLLM never answers a call that was on its way when the engine's process died."""
        call = asyncio.ensure_future(self._engine.call_workers(method, *arguments))
        try:
            while not (await asyncio.wait({call}, timeout=HEALTH_SECONDS))[0]:
                if not self._engine.healthy:
                    raise self._engine.dead(RuntimeError("its process ended"))
            return call.result()
        finally:
            call.cancel()

    async def _feed(self) -> None:
        """Hand prompts to the engine in order, so many ahead of what it runs at once, until all ran or cancelled."""
        ended: asyncio.Queue[asyncio.Task[Any]] = asyncio.Queue()
        stopping: asyncio.Task[Any] = asyncio.create_task(self._cancelled.wait())
        stopping.add_done_callback(ended.put_nowait)
        waiting = iter(self._runnable)
        running: set[asyncio.Task[Any]] = set()
        try:
            while not self._cancelled.is_set():
                for index in islice(waiting, self._engine.max_in_flight - len(running)):
                    running.add(task := asyncio.create_task(self._run_one(index)))
                    task.add_done_callback(ended.put_nowait)
                if not running:
                    break
                task = await ended.get()
                running.discard(task)
                task.result()
        finally:
            stopping.cancel()
            for task in running:
                task.cancel()
            await asyncio.gather(stopping, *running, return_exceptions=True)

    async def _run_one(self, index: int) -> None:
        """One instruction through the engine, settled when it has run."""
        prompt = self._prompts[index]
        try:
            output = await self._generate(index, prompt)
        except (EngineError, asyncio.CancelledError):
            raise
        except ValueError as error:  # vLLM's word that this prompt cannot run
            self._failures[index] = f"the engine refused the prompt: {error}"
            self._settle(index, -1)
            return
        generated = np.array(output.token_ids, dtype=np.int32)
        parts = {"prompt": [prompt.ids], "response": [generated[:-1]], "all": [prompt.ids, generated[:-1]]}
        expected = np.concatenate(parts[self._options.positions])
        response = output.text if self._options.max_tokens else ""
        self._ran[index] = _Ran(expected, response)
        self._settle(index, len(expected))

    async def _generate(self, index: int, prompt: Prompt) -> Any:
        """The engine's last word on one prompt: token_ids and text of what was generated."""
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        stream = self._engine.llm.generate(
            {"type": "token", "prompt_token_ids": prompt.ids.tolist()},
            self._sampling(index, prompt),
            request_id=f"{self._session}-{index}",
        )
        result = None
        try:
            async for output in stream:
                result = output
        except (EngineDeadError, EngineGenerateError) as error:
            raise self._engine.dead(error) from error
        if result is None or not result.outputs:
            raise self._engine.dead(RuntimeError(f"no output for instruction {index}"))
        return result.outputs[0]

    def _sampling(self, index: int, prompt: Prompt) -> Any:
        """Greedy. Where only the prompt counts one token is sampled and thrown away: the engine has to sample."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        begin = int(self._layout.first_position[index])
        plan = Plan(
            session=self._session,
            index=index,
            row=int(self._layout.token_start[index]),
            begin=begin,
            end=begin + int(self._layout.capacity[index]),
            length_unknown=self._options.positions != "prompt",
            prompt=len(prompt.ids),
        )
        return SamplingParams(
            max_tokens=max(1, self._options.max_tokens),
            temperature=0.0,
            detokenize=bool(self._options.max_tokens),
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args={PLAN_KEY: to_wire(plan)},
        )

    def _settle(self, index: int, length: int) -> None:
        capacity = int(self._layout.capacity[index])
        self._finished.append(FinishedRequest(index, int(self._layout.token_start[index]), capacity, length))
        self._unsettled.discard(index)

    async def _follow(
        self, feeding: asyncio.Task[None], committer: ArchiveCommitter, report: Callable[[Progress], None]
    ) -> None:
        """Poll the worker and commit what is durable, until everything is."""
        finished = False
        while True:
            await (asyncio.sleep(DRAIN_SECONDS) if finished else asyncio.wait({feeding}, timeout=POLL_SECONDS))
            last = feeding.done() and not finished
            if last:
                feeding.result()
                self._forget_the_rest()
            requests, self._finished = self._finished, []
            answers = await self._call_workers("sparcom_poll", self._session, to_wire(requests), last)
            reply = self._ranks.merge([from_wire(PollReply, answer) for answer in answers])
            finished = finished or last
            await self._commit(committer, reply)
            report(self.progress)
            if reply.error:
                raise (StorageError if reply.error.kind == "storage" else EngineError)(reply.error.reason)
            if finished and reply.drained:
                break
        await asyncio.to_thread(committer.cancel, self._dropped)
        self._count(cancelled=len(self._dropped))
        self.progress = replace(self.progress, seconds_left=None)
        report(self.progress)

    def _forget_the_rest(self) -> None:
        """After a cancellation: instructions that did not run will not."""
        self._dropped = sorted(self._unsettled)
        for index in self._dropped:
            self._settle(index, -1)

    async def _commit(self, committer: ArchiveCommitter, reply: PollReply) -> None:
        """Make what is durable complete, if its rows are those of the prompt that was sent."""
        self.rows_captured = reply.rows
        failures, self._failures = self._failures, {}
        failures |= {item.index: item.reason for item in reply.failed}
        complete = []
        for durable in reply.completed:
            index, ran = durable.index, self._ran.pop(durable.index)
            item = CompletedInstruction(
                index=index,
                row=int(self._layout.token_start[index]),
                ids=np.frombuffer(durable.ids, dtype=np.int32),
                positions=np.frombuffer(durable.positions, dtype=np.int32),
                response=ran.response,
            )
            problem = misalignment(item, ran.expected, int(self._layout.first_position[index]))
            if problem:
                failures[index] = problem
            else:
                complete.append(item)
        for index in failures:
            self._ran.pop(index, None)
        if complete:
            await asyncio.to_thread(committer.complete, complete)
        if failures:
            await asyncio.to_thread(committer.fail, failures)
        rows = sum(len(item.ids) for item in complete)
        settled = [*(item.index for item in complete), *failures]
        self._rows_settled += int(self._layout.capacity[settled].sum())
        self._count(complete=len(complete), failed=len(failures), rows=rows, waited=reply.backpressure_seconds)

    def _count(
        self, *, complete: int = 0, failed: int = 0, cancelled: int = 0, rows: int = 0, waited: float | None = None
    ) -> None:
        """Move the progress on."""
        before = self.progress
        seconds = time.monotonic() - self._started
        tokens_done = before.tokens_done + rows
        share = self._rows_settled / self._layout.tokens if self._layout.tokens else 1.0
        self.progress = Progress(
            instructions=before.instructions,
            complete=before.complete + complete,
            failed=before.failed + failed,
            cancelled=before.cancelled + cancelled,
            tokens=before.tokens,
            tokens_done=tokens_done,
            seconds=seconds,
            tokens_per_second=tokens_done / seconds if seconds else 0.0,
            seconds_left=seconds * (1 - share) / share if share else None,
            storage_wait_seconds=before.storage_wait_seconds if waited is None else waited,
        )


def misalignment(item: CompletedInstruction, expected: NDArray[np.int32], first_position: int) -> str | None:
    """Why the rows of an instruction are not its own, or None: rule 6 of the archive, held for every instruction.

    Args:
        item: what the worker captured beside the masks.
        expected: int32 (rows,), the token ids that were sent and generated.
        first_position: the position of the first row.
    """
    if not np.array_equal(item.ids, expected):
        shorter = min(len(item.ids), len(expected))
        row = next((k for k in range(shorter) if item.ids[k] != expected[k]), shorter)
        return (
            f"captured token ids must be those of the prompt and the response; row {row} of {len(expected)} differs. "
            "The masks belong to something else and are not to be used: report this with the model and vLLM version"
        )
    if not np.array_equal(item.positions, first_position + np.arange(len(expected))):
        return (
            f"captured positions must run from {first_position} on; they do not. The masks are not to be used: report "
            "this with the model and vLLM version"
        )
    return None
