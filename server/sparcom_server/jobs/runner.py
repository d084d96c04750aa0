"""Run the jobs, one part at a time: choose, load the model, create or reopen the archive, run, record.

A part that ends early goes back to the queue, with the reason, and continues where it was: the engine died, the disk is
full, or the service stops. Nothing of a job is kept in memory only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sparcom_data.errors import DiskFullError, EngineError, InvalidInputError, SparcomError
from sparcom_data.progress import Progress
from sparcom_data.schema.options import ExtractionOptions
from sparcom_data.storage import storage_error
from sparcom_extractor.spans import span
from sparcom_server.archives.store import ArchiveStore
from sparcom_server.database.database import now
from sparcom_server.database.tables import JobRow, PartRow
from sparcom_server.errors import DatabaseError
from sparcom_server.jobs.batch import Batch
from sparcom_server.jobs.outcome import close_cancelled, kept_bytes, part_facts, read_failures
from sparcom_server.jobs.recorder import Recorder
from sparcom_server.jobs.store import JobStore
from sparcom_server.memory import release_memory
from sparcom_server.models import ModelPool
from sparcom_server.observe.logs import LogIds, log_ids
from sparcom_server.protocols import Extraction
from sparcom_server.schemas.reports import JobError, JobState

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0  # until a job that the disk stopped is tried again
SETTLE_SECONDS = 3.0  # until an engine that failed is taken for alive


class Observer(Protocol):
    """Receives the progress and the end of jobs; see `Metrics`."""

    def observe(self, before: Progress, after: Progress) -> None: ...
    def job_started(self, seconds: float) -> None: ...
    def job_ended(self, state: str, seconds: float) -> None: ...


class Disk(Protocol):
    """See `DiskWatch`."""

    @property
    def full(self) -> bool: ...


Analyze = Callable[[JobRow], Coroutine[Any, Any, None]]
"""Analyzes the archives of a job. Raises SparcomError if it fails."""


@dataclass(slots=True)
class _Running:
    """The job that runs. extraction: None while its model loads or its archives are analyzed."""

    job_id: str
    extraction: Extraction | None = None


class JobRunner:
    """Runs jobs until `stop`. passed_over_seconds: how long later jobs, whose model is loaded, may start before one."""

    def __init__(
        self,
        jobs: JobStore,
        models: ModelPool,
        archives: ArchiveStore,
        disk: Disk,
        observer: Observer,
        analyze: Analyze,
        hide_paths: Callable[[str, None], str],
        *,
        passed_over_seconds: float,
    ) -> None:
        self._jobs, self._models, self._archives = jobs, models, archives
        self._disk, self._observer, self._analyze = disk, observer, analyze
        self._hide_paths = hide_paths
        self._patience = int(passed_over_seconds * 1000)
        self._running: _Running | None = None
        self._hold_until, self._stopping = 0.0, False
        self.problem = ""  # why no job runs
        self._task: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether jobs are being run."""
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Begin to run jobs."""
        self._task = asyncio.create_task(self._work(), name="sparcom-jobs")

    async def stop(self, seconds: float) -> None:
        """Suspend the running part and wait for it. A part that takes longer than `seconds` is dropped: what it has
        committed is kept."""
        self._stopping = True
        self._jobs.wake.set()
        if self._task is None:
            return
        running = self._running
        if running and running.extraction:
            running.extraction.suspend()
        elif running:  # its model loads, or its analysis runs: both begin again later
            self._task.cancel()
        done, _ = await asyncio.wait({self._task}, timeout=seconds)
        if not done:
            logger.error("the running job did not stop within %g s and is dropped; it continues later", seconds)
            self._task.cancel()
            await asyncio.wait({self._task})
        if running:
            try:
                await asyncio.wait_for(self._jobs.requeue(running.job_id, STOPPED), RETRY_SECONDS)
            except (DatabaseError, TimeoutError):
                logger.exception("the next start queues extraction %s again", running.job_id)

    async def cancel(self, job: JobRow) -> None:
        """End a job that is marked as cancelling: now, or soon if it runs."""
        if self._running is None or self._running.job_id != job.id:
            await self._cancel(job)
        elif self._running.extraction:
            self._running.extraction.cancel()

    async def _work(self) -> None:
        interrupted = True  # jobs may be marked as running, but none is
        while not self._stopping:
            self._jobs.wake.clear()
            try:
                if interrupted:
                    await self._jobs.recover()
                job = await self._choose()
                interrupted, self.problem = False, ""
                if job is not None:
                    await self._advance(job)
                    continue
            except Exception as error:
                self.problem = f"no job runs, and the next attempt is in {RETRY_SECONDS:g} s: {error}"
                logger.exception("the job queue waits")
                interrupted = True
            try:
                await asyncio.wait_for(self._jobs.wake.wait(), RETRY_SECONDS)
            except TimeoutError:
                continue

    async def _choose(self) -> JobRow | None:
        """Return the job to advance next: one to cancel, the oldest, or the oldest of those whose model is loaded."""
        jobs = await self._jobs.unfinished()
        if asyncio.get_running_loop().time() < self._hold_until:
            return None
        if cancelling := next((job for job in jobs if job.state == "cancelling"), None):
            return cancelling
        if not jobs or self._disk.full:
            return None
        oldest, loaded = jobs[0], self._models.loaded
        ready = next((job for job in jobs if (part := next_part(job)) is None or part.model in loaded), oldest)
        if ready is oldest:
            return oldest
        if oldest.passed_over is None:
            await self._jobs.pass_over(oldest.id)
        elif now() - oldest.passed_over > self._patience:
            return oldest
        return ready

    async def _advance(self, job: JobRow) -> None:
        """Run the next part of a job, or end it."""
        with log_ids(LogIds(job_id=job.id)), span("job", job=job.id):
            await self._advance_logged(job)

    async def _advance_logged(self, job: JobRow) -> None:
        try:
            part = next_part(job)
            if job.state == "cancelling":
                await self._cancel(job)
            elif part is None:
                await self._complete(job)
            else:
                await self._run_part(job, part)
        except (asyncio.CancelledError, DatabaseError):
            raise
        except Exception as error:
            if not isinstance(error, SparcomError):
                logger.exception("extraction %s failed unexpectedly", job.id)
            if isinstance(error, OSError):
                error = storage_error(Path(error.filename or self._archives.folder), error)
            if not isinstance(error, DiskFullError):
                await self._fail(job, error)
                return
            logger.warning("extraction %s waits: %s", job.id, error)
            self._hold_until = asyncio.get_running_loop().time() + RETRY_SECONDS
            await self._jobs.requeue(job.id, f"waits for space on the disk: {error}")

    async def _run_part(self, job: JobRow, part: PartRow) -> None:
        path, waited = self._archives.path(part.archive), (now() - job.created) / 1000
        self._running = running = _Running(job.id)
        try:
            is_first = job.started is None
            if (job := await self._jobs.enter(job.id, "loading")).state != "loading":
                return
            if is_first:
                self._observer.job_started(waited)
                logger.info("extraction %s starts", job.id)
            found = await asyncio.to_thread(part_facts, path, part)
            if found is not None and found.closed:  # the service ended between the archive's end and the record of it
                await self._jobs.record(job.id, part.number, found.progress, "complete")
                await self._jobs.requeue(job.id, "the service was restarted; the job continues")
                return
            batch = await self._jobs.batch(job.id)
            if part.number == 0 and found is None:
                await self._require_same_tokens(job, batch)
            try:
                with span("load", model=part.model):
                    engine = await self._models.acquire(part.model)
            except EngineError as error:
                await self._engine_failed(job, error)
                return
            if (await self._jobs.enter(job.id, "loading")).state != "loading":
                return  # cancelled meanwhile
            with span("prepare", model=part.model):
                running.extraction = extraction = await asyncio.to_thread(
                    engine.prepare,
                    batch.instructions,
                    ExtractionOptions.model_validate(job.options),
                    path,
                    job.dataset,
                    resume=found is not None,
                    run=part.run,
                    alone=batch.suspects,
                    failures=dict.fromkeys(batch.killers, KILLER),
                    shown=(lambda text: self._hide_paths(text, None)) if job.owner else str,
                )
            await asyncio.to_thread(release_memory)
            await self._run_extraction(job, part, extraction, batch)
        finally:
            self._running = None
            self._models.release(part.model)

    async def _run_extraction(self, job: JobRow, part: PartRow, extraction: Extraction, batch: Batch) -> None:
        if part.number and job.prompts_sha256 != extraction.prompts_sha256:
            extraction.cancel()
            await extraction.run(lambda _: None)
            raise InvalidInputError(_NOT_ALIGNED.format(job.model, job.tuned))
        try:
            await self._jobs.archive_created(job.id, part.number, extraction.prompts_sha256, extraction.warnings)
            job = await self._jobs.enter(job.id, "running")
        except DatabaseError:
            extraction.suspend()
            with suppress(SparcomError):
                await extraction.run(lambda _: None)  # which releases the archive
            raise
        if job.state != "running":
            extraction.cancel()
        if self._stopping:
            extraction.suspend()
        recorder = Recorder(self._jobs, job.id, part.number, Progress(**part.progress))

        def report(progress: Progress) -> None:
            self._observer.observe(recorder.latest, progress)
            if progress.complete > recorder.latest.complete:
                self._models.succeeded(part.model)
            if self._disk.full:
                extraction.suspend()
            recorder.put(progress)

        try:
            with span("run", model=part.model):
                progress = await extraction.run(report)
        except EngineError as error:
            await recorder.close()
            if await self._engine_lives(part.model):
                raise
            await self._jobs.engine_died(job.id, extraction.in_flight, batch.suspects)
            await self._engine_failed(job, error)
            return
        finally:
            await recorder.close()
        report(progress)
        await recorder.close()  # before the part's end is recorded: a late write would make it running again
        if extraction.suspended:
            await self._jobs.record(job.id, part.number, progress)
            reason = STOPPED if self._stopping else _DISK_FULL
            await self._jobs.requeue(job.id, reason)
            return
        ended = replace(progress, seconds_left=None)
        job = await self._jobs.record(job.id, part.number, ended, "cancelled" if progress.cancelled else "complete")
        if job.state != "cancelling" and next_part(job) is not None:
            await self._jobs.requeue(job.id, f"{part.model} is done; waits for {job.tuned}")

    async def _engine_lives(self, model: str) -> bool:
        """Return whether an engine is alive after an error. A call may fail before vLLM notices that it is not."""
        deadline = asyncio.get_running_loop().time() + SETTLE_SECONDS
        while model in self._models.loaded:
            if asyncio.get_running_loop().time() > deadline:
                return True
            await asyncio.sleep(0.1)
        return False

    async def _require_same_tokens(self, job: JobRow, batch: Batch) -> None:
        """Check that both models' tokenizers give the same prompts, before either runs."""
        if job.tuned is None:
            return
        options = ExtractionOptions.model_validate(job.options)
        base, tuned = [
            await asyncio.to_thread(self._models.source(model).tokenize, batch.instructions, options)
            for model in (job.model, job.tuned)
        ]
        differing = [index for index, pair in enumerate(zip(base, tuned, strict=True)) if not np.array_equal(*pair)]
        if differing:
            first = await asyncio.to_thread(lambda: batch.instructions[differing[0]].id)
            raise InvalidInputError(
                f"{_NOT_ALIGNED.format(job.model, job.tuned)} {len(differing)} of {len(base)} prompts differ; the "
                f"first is {first!r}"
            )

    async def _engine_failed(self, job: JobRow, error: EngineError) -> None:
        """Let the job wait for the engine to start again; end it if its model cannot be served."""
        if self._models.states[(next_part(job) or job.parts[-1]).model] == "failed" and self._models.failure is None:
            raise error
        logger.error("extraction %s: %s", job.id, error)
        await self._jobs.requeue(job.id, f"{error} The job continues when the engine runs again.")
        if self._models.failure is not None:
            self._stopping = True

    async def _complete(self, job: JobRow) -> None:
        if job.analysis:
            self._running = _Running(job.id)
            try:
                await self._jobs.enter(job.id, "running", "the archives are complete; their analysis runs")
                await self._analyze(job)
            finally:
                self._running = None
        await self._end(job, "complete")

    async def _cancel(self, job: JobRow) -> None:
        part = next_part(job)
        if part is not None:
            progress = await asyncio.to_thread(close_cancelled, self._archives.path(part.archive), part)
            if progress is not None:
                await self._jobs.record(job.id, part.number, progress, "cancelled")
        is_complete = all(part.state == "complete" for part in job.parts)  # it ended before the request
        await self._end(job, "complete" if is_complete else "cancelled")

    async def _fail(self, job: JobRow, error: Exception) -> None:
        kind = type(error).__name__ if isinstance(error, SparcomError) else "InternalError"
        message = str(error) if isinstance(error, SparcomError) else f"{type(error).__name__}: {error}"
        await self._end(job, "failed", JobError(type=kind, message=message))

    async def _end(self, job: JobRow, state: JobState, error: JobError | None = None) -> None:
        sizes = [await asyncio.to_thread(kept_bytes, self._archives.path(part.archive), part) for part in job.parts]
        failures = await asyncio.to_thread(read_failures, self._archives, job)
        ended = await self._jobs.finish(job.id, state, error, failures=failures, sizes=sizes)
        seconds = ((ended.finished or 0) - (ended.started or ended.created)) / 1000
        self._observer.job_ended(state, seconds)
        logger.info("extraction %s is %s after %.1f s", job.id, state, seconds)


def next_part(job: JobRow) -> PartRow | None:
    """Return the first part that has not ended."""
    return next((part for part in job.parts if part.state in {"pending", "running"}), None)


KILLER = "the engine died twice while this instruction ran alone. Shorten it, or report it with the engine's log"
STOPPED = "the service stopped; the job continues when it starts again"
_DISK_FULL = "waits for space on the disk"
_NOT_ALIGNED = "base and tuned model must give the same token ids for every prompt; those of {} and {} differ."
