"""Run one extraction: send instructions through an engine into an archive.

    prepare   tokenize ─▶ plan the layout ─▶ create the archive (instructions are pending, or failed if too long),
              or reopen an interrupted one; see `preparation`
    run       hand prompts to the engine, a bounded number at a time ─┐
              poll the workers ◀──── report requests that have run ───┘
                 └▶ durable instructions: compare token ids with the prompt's ─▶ commit

This side owns `instruction/` and `token/` of the archive; the workers own masks and counts.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sparcom_data.commit import ArchiveCommitter, CompletedInstruction
from sparcom_data.progress import Progress
from sparcom_data.schema.layout import Layout
from sparcom_data.schema.metadata import EngineInfo, ModelInfo
from sparcom_data.schema.options import ExtractionOptions
from sparcom_data.storage.identity import PinnedArchive
from sparcom_extractor.prompts import Prompt, token_ids_sha256
from sparcom_extractor.protocol import FinishedRequest, Plan, PollReply, SessionError, from_wire, to_wire
from sparcom_extractor.ranks import RankReplies
from sparcom_extractor.vllm_surface.engine import CompletionLike

POLL_SECONDS = 1.0  # each poll commits; at 0.25 the commits took 1 % of a small machine
DRAIN_SECONDS = 0.02
SUSPEND_SECONDS = 20.0  # for the last step, the last chunks and the session


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


@dataclass(frozen=True, slots=True)
class Work:
    """Instructions that do not run, by index, and those that run alone.

    complete: of an earlier run, with their number of rows. failed: as the archive says. failing: to be marked failed,
    each with its reason. alone: run first, one at a time.
    """

    complete: Mapping[int, int]
    failed: Collection[int]
    failing: Mapping[int, str]
    alone: Sequence[int]


class Extraction:
    """A planned extraction. Call `run` once; use `progress`, `cancel`, `suspend` and `in_flight` at any time.

    suspended: whether `run` has left the archive open, with pending instructions.
    """

    def __init__(
        self,
        engine: ExtractionEngine,
        archive: PinnedArchive,
        prompts: Sequence[Prompt],
        layout: Layout,
        options: ExtractionOptions,
        warnings: Sequence[str],
        work: Work,
    ) -> None:
        self.warnings = list(warnings)  # about prompts that can run but may not be intended
        self.rows_captured = 0  # by the workers, including rows recomputed after a preemption
        self._read_backs = 0  # see `PollReply`
        self._engine, self._archive, self._options = engine, archive, options
        self._prompts, self._layout = prompts, layout
        self._session = uuid.uuid4().hex
        self._cancelled = self._suspending = self.suspended = False
        self._limit = asyncio.Timeout(None)
        self._requests: asyncio.Task[None] | None = None
        self._ranks = RankReplies()
        self._unreported: list[FinishedRequest] = []
        self._outputs: dict[int, tuple[NDArray[np.int32], str]] = {}  # expected token ids (rows,) and response
        self._failures: dict[int, str] = {}
        self._failing = work.failing
        over = {*work.complete, *work.failed, *work.failing}
        self._alone = [index for index in work.alone if index not in over]
        over.update(self._alone)
        self._together = [index for index in range(len(prompts)) if index not in over]
        self._unfinished = {*self._alone, *self._together}
        self._in_flight: set[int] = set()
        self._planned_rows = int(layout.capacity[sorted(self._unfinished)].sum())  # for this run
        self._finished_rows = 0  # of these, planned for instructions that are now complete or failed
        self._earlier_tokens = sum(work.complete.values())
        self._started = 0.0
        self.progress = Progress(
            instructions=len(prompts),
            complete=len(work.complete),
            failed=len(work.failed) + len(work.failing),
            tokens=layout.tokens,
            tokens_done=self._earlier_tokens,
        )

    @property
    def archive_run(self) -> str:
        """The run id of the archive."""
        return self._archive.run or ""

    @property
    def prompts_sha256(self) -> str:
        """SHA-256 over the token ids of all prompts; see `token_ids_sha256`."""
        return token_ids_sha256([prompt.ids for prompt in self._prompts])

    @property
    def in_flight(self) -> frozenset[int]:
        """Indices of the instructions that the engine has received and not finished, also after `run` has ended."""
        return frozenset(self._in_flight)

    def cancel(self) -> None:
        """Request a stop. Complete instructions stay complete; the others become cancelled."""
        self._cancelled, self._suspending = True, False
        if self._requests is not None:
            self._requests.cancel()

    def suspend(self) -> None:
        """Request a stop within `SUSPEND_SECONDS`. Complete instructions stay complete. The others stay pending, and
        the archive open, so that it can be resumed. Call it on the loop of `run`. After `cancel` it changes nothing."""
        self._suspending = not self._cancelled
        if self._requests is not None:
            self._requests.cancel()
            self._limit_time()

    def _limit_time(self) -> None:
        """Limit the time of a suspended run, once it runs."""
        if self._suspending and self._limit.when() is None:
            self._limit.reschedule(asyncio.get_running_loop().time() + SUSPEND_SECONDS)

    def _in_time(self) -> bool:
        end = self._limit.when()
        return end is None or asyncio.get_running_loop().time() < end

    async def run(self, report: Callable[[Progress], None] = lambda _: None) -> Progress:
        """Run until every instruction is complete, failed or cancelled, or until it is suspended. Calls `report` with
        every new snapshot. Raises StorageError if writing failed, or the archive was removed or replaced; DiskFullError
        if the disk is full. Raises EngineError if the engine died or rows are invalid. In these cases complete
        instructions stay complete; the others stay pending."""
        try:
            async with self._limit:
                self._limit_time()
                return await self._run(report)
        except TimeoutError:
            if not self._limit.expired():
                raise
            self.suspended = True
            return self.progress
        finally:
            if not self._limit.expired():  # otherwise a stuck thread may still write
                self._archive.folder.unlock()

    async def _run(self, report: Callable[[Progress], None]) -> Progress:
        self._started = time.monotonic()
        committer = await asyncio.to_thread(ArchiveCommitter, self._archive)
        await asyncio.to_thread(committer.fail, self._failing)
        path = str(self._archive.path.resolve())
        errors = await self._engine.call_workers("sparcom_open", self._session, path, self._archive.run)
        if error := next(filter(None, errors), None):
            await self._engine.call_workers("sparcom_close", self._session)  # other ranks may have opened it
            raise from_wire(SessionError, error).exception()
        self._requests = requests = asyncio.create_task(self._run_requests())
        if self._cancelled or self._suspending:
            requests.cancel()
            self._limit_time()
        try:
            await self._commit_until_drained(requests, committer, report)
            if not self.suspended:
                await asyncio.to_thread(committer.close, read_backs=self._read_backs)
        finally:
            requests.cancel()
            await asyncio.gather(requests, return_exceptions=True)  # its error was raised above
            if self._engine.healthy and self._in_time():
                await self._engine.call_workers("sparcom_close", self._session)
        return self.progress

    async def _run_requests(self) -> None:
        """Hand prompts to the engine: those that run alone, then the others in order, `max_in_flight` at a time."""
        for index in self._alone:
            await self._run_request(index)
        slots = asyncio.Semaphore(self._engine.max_in_flight)
        try:
            async with asyncio.TaskGroup() as group:
                for index in self._together:
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
        self._in_flight.add(index)
        try:
            output = await self._engine.generate(ids.tolist(), options.max_tokens, plan, request_id)
        except ValueError as error:
            self._in_flight.discard(index)
            self._failures[index] = f"vLLM rejected the prompt: {error}"
            self._finish_request(index, -1)
            return
        self._in_flight.discard(index)
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
                if not self._suspending:
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
                raise reply.error.exception()
            if ended and reply.drained:
                break
        await asyncio.to_thread(committer.cancel, cancelled)
        self.suspended = bool(self._unfinished)
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
            row, begin, end = self._rows(index)
            ids, positions = (np.frombuffer(part, dtype=np.int32) for part in (durable.ids, durable.positions))
            item = CompletedInstruction(index, row, ids, positions, response, end - begin)
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
        fraction = self._finished_rows / self._planned_rows if self._planned_rows else 1.0
        self.progress = replace(
            now,
            tokens_per_second=(now.tokens_done - self._earlier_tokens) / now.seconds if now.seconds else 0.0,
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
