"""The queue of extraction jobs: one runs, the others wait in the order they came, across all models.

Jobs live in memory; what they wrote lies in their archives and outlives them. The queue knows neither HTTP nor models:
it takes extractions that are prepared, runs them, and keeps what became of them.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from sparcom_data.errors import JobNotFoundError, JobStateError, SparcomError
from sparcom_data.progress import Progress
from sparcom_data.schema.options import ExtractionOptions
from sparcom_server.errors import NotReadyError, QueueFullError
from sparcom_server.jobs.failures import read_failures
from sparcom_server.protocols import Extraction
from sparcom_server.schemas import Failure, JobError, JobState

log = logging.getLogger(__name__)

ProgressObserver = Callable[[Progress, Progress], None]
"""Called with the snapshot before and the one after, for every step of every job."""


def now() -> str:
    """The time, UTC, as ISO 8601 in milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What a job was asked to do. run: the run id of its archive."""

    model: str
    archive: str
    path: Path
    run: str
    options: ExtractionOptions
    dataset: str = ""


@dataclass(slots=True, eq=False)
class Job:
    """One extraction and what became of it. Changed by the queue alone, on its event loop."""

    spec: JobSpec
    extraction: Extraction | None
    progress: Progress
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    state: JobState = "queued"
    created: str = field(default_factory=now)
    started: str | None = None
    finished: str | None = None
    error: JobError | None = None
    failures: list[Failure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    cancelled: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class JobQueue:
    """First in, first out, one at a time."""

    def __init__(self, max_queued: int, max_finished: int, observe: ProgressObserver) -> None:
        self._max_queued = max_queued
        self._max_finished = max_finished
        self._observe = observe
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._finished: deque[Job] = deque()
        self._running: Job | None = None
        self._slots = 0
        self._stopping = False
        self._wake = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    # What clients ask

    def get(self, job_id: str) -> Job:
        """The job with this id.

        Raises:
            JobNotFoundError: there is none.
        """
        try:
            return self._jobs[job_id]
        except KeyError:
            raise JobNotFoundError(
                f"no extraction has the id {job_id!r}. GET /v1/extractions lists those that this server remembers; "
                "jobs are forgotten when it restarts, their archives stay"
            ) from None

    def holder(self, archive: str) -> Job | None:
        """The job that the archive of this name belongs to: from its acceptance until it has ended."""
        return next(
            (job for job in self._jobs.values() if job.spec.archive == archive and not job.ended.is_set()), None
        )

    def newest_first(self) -> list[Job]:
        """All remembered jobs."""
        return list(reversed(self._jobs.values()))

    def position(self, job: Job) -> int | None:
        """Jobs that run before this one; None unless it waits."""
        if job not in self._waiting:
            return None
        return self._waiting.index(job) + (self._running is not None)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold a place in the queue while an extraction is prepared.

        Raises:
            QueueFullError: no place is free.
            NotReadyError: the service is stopping.
        """
        if self._stopping:
            raise NotReadyError("the service is stopping and takes no more jobs; try again when it is back")
        taken = len(self._waiting) + self._slots
        if taken >= self._max_queued + (self._running is None):
            raise QueueFullError(
                f"at most {self._max_queued} jobs may wait, and as many do; try again when one has ended, "
                "or have the operator raise max_queued_jobs"
            )
        self._slots += 1
        try:
            yield
        finally:
            self._slots -= 1
            self._wake.set()  # a stop waits for the slots that are held

    def add(self, spec: JobSpec, extraction: Extraction) -> Job:
        """Put a prepared extraction at the end of the queue, within its `slot`."""
        job = Job(spec, extraction, extraction.progress, warnings=list(extraction.warnings))
        self._jobs[job.id] = job
        self._waiting.append(job)
        self._observe(Progress(), job.progress)
        if self._stopping:  # the stop came while it was prepared: settle its archive, do not leave it pending
            self._cancel(job)
        self._wake.set()
        return job

    async def cancel(self, job_id: str) -> Job:
        """End a job early. One that waits is cancelled on return; one that runs soon after.

        Raises:
            JobNotFoundError: there is no such job.
            JobStateError: it has ended already.
        """
        job = self.get(job_id)
        if job.ended.is_set():
            raise JobStateError(
                f"only a queued or running extraction can be cancelled; {job_id} is {job.state} since {job.finished}"
            )
        if job in self._waiting:
            self._waiting.remove(job)
            self._cancel(job)
            await self._run(job)
        else:
            self._cancel(job)
        return job

    # How jobs run

    def start(self) -> None:
        """Begin to run jobs; call on the event loop that the engines live on."""
        self._worker = asyncio.create_task(self._work(), name="sparcom-jobs")

    async def stop(self, seconds: float) -> None:
        """Cancel every job, let each settle what it has, and take no more. Calling it again does nothing.

        A job that does not settle within `seconds` is dropped; its archive keeps what was complete.
        """
        if self._stopping:
            return
        self._stopping = True
        for job in [*self._waiting, *([self._running] if self._running else [])]:
            self._cancel(job)
        self._wake.set()
        if self._worker is not None:
            done, _ = await asyncio.wait([self._worker], timeout=seconds)
            if not done:
                log.error("a job did not settle within %s s and is dropped; what was complete stays", seconds)
                self._worker.cancel()
                await asyncio.wait([self._worker])

    async def _work(self) -> None:
        while True:
            while self._waiting:
                self._running = self._waiting.popleft()
                try:
                    await self._run(self._running)
                finally:
                    self._running = None
            if self._stopping and not self._slots:
                return
            self._wake.clear()
            await self._wake.wait()

    def _cancel(self, job: Job) -> None:
        job.cancelled = True
        if job.extraction is not None:
            job.extraction.cancel()

    async def _run(self, job: Job) -> None:
        """Run one job to its end, whatever the end is; the queue goes on with the next."""
        assert job.extraction is not None  # noqa: S101  (given up only below)
        if not job.cancelled:
            job.state = "running"
            job.started = now()
        try:
            self._report(job, await job.extraction.run(lambda progress: self._report(job, progress)))
            state: JobState = "cancelled" if job.cancelled and job.progress.cancelled else "complete"
        except SparcomError as error:
            state = "failed"
            job.error = JobError(type=type(error).__name__, message=str(error))
        except Exception as error:
            log.exception("extraction %s failed in a way it should not", job.id)
            state = "failed"
            job.error = JobError(type="InternalError", message=f"{type(error).__name__}: {error}")
        except asyncio.CancelledError:
            job.error = JobError(type="EngineError", message="the service stopped before the job had settled")
            self._finish(job, "failed")
            raise
        if job.error is not None:
            self._report(job, job.extraction.progress)
        await self._read_failures(job)
        self._finish(job, state)

    async def _read_failures(self, job: Job) -> None:
        if not job.progress.failed:
            return
        try:
            job.failures = await asyncio.to_thread(read_failures, job.spec.path, job.spec.run)
        except (SparcomError, OSError) as error:
            log.warning("the failures of extraction %s cannot be read: %s", job.id, error)
            job.failures = [Failure(id="", error=f"the reasons cannot be read from the archive: {error}")]

    def _finish(self, job: Job, state: JobState) -> None:
        job.state = state
        job.progress = replace(job.progress, seconds_left=None)
        job.finished = now()
        job.extraction = None  # the plan of a large batch is large
        job.ended.set()
        self._finished.append(job)
        while len(self._finished) > self._max_finished:
            del self._jobs[self._finished.popleft().id]

    def _report(self, job: Job, progress: Progress) -> None:
        self._observe(job.progress, progress)
        job.progress = progress
