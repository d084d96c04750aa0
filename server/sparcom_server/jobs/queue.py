"""The queue of extraction jobs: one runs, the others wait in order of submission, across all models.

Jobs live in memory; their archives outlive them. The queue runs prepared extractions and knows neither HTTP nor models.
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

import numpy as np

from sparcom_data.archive import open_archive
from sparcom_data.errors import DamagedArchiveError, JobNotFoundError, JobStateError, SparcomError
from sparcom_data.progress import Progress
from sparcom_data.schema import State
from sparcom_data.schema.options import ExtractionOptions
from sparcom_server.errors import RETRY_SECONDS, NotReadyError, QueueFullError
from sparcom_server.protocols import Extraction
from sparcom_server.schemas.reports import DatasetRequest, Failure, JobError, JobState

logger = logging.getLogger(__name__)

MAX_FAILURES = 20  # listed per job

ProgressObserver = Callable[[Progress, Progress], None]
"""Called with the previous and the new snapshot, for every step of every job."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(slots=True, eq=False)
class Job:
    """One extraction and its outcome. Only the queue changes it, on its event loop. run: run id of its archive."""

    model: str
    archive: str
    path: Path
    run: str
    options: ExtractionOptions
    dataset: DatasetRequest
    extraction: Extraction | None = None
    progress: Progress = field(default_factory=Progress)
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    state: JobState = "queued"
    created: str = field(default_factory=_now)
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

    def get(self, job_id: str) -> Job:
        """Return a job by its id.

        Raises:
            JobNotFoundError: no job has that id.
        """
        if job_id not in self._jobs:
            raise JobNotFoundError(
                f"no extraction has the id {job_id!r}. GET /v1/extractions lists those that this server remembers; "
                "a restart forgets jobs but keeps their archives"
            )
        return self._jobs[job_id]

    def holder(self, archive: str) -> Job | None:
        """Return the job that holds the archive's name. A job holds it from acceptance until it has ended."""
        jobs = self._jobs.values()
        return next((job for job in jobs if job.archive == archive and not job.ended.is_set()), None)

    def newest_first(self) -> list[Job]:
        """Return all remembered jobs."""
        return list(reversed(self._jobs.values()))

    def position(self, job: Job) -> int | None:
        """Return the number of jobs that run before this one; None unless it is queued."""
        return self._waiting.index(job) + (self._running is not None) if job in self._waiting else None

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Reserve a slot of the queue while an extraction is prepared.

        Raises:
            QueueFullError: no slot is free.
            NotReadyError: the service is stopping.
        """
        if self._stopping:
            raise NotReadyError("the service is stopping and accepts no more jobs; try again after it restarts")
        taken = len(self._waiting) + self._slots
        if taken >= self._max_queued + (self._running is None):
            raise QueueFullError(
                f"the job queue is full ({self._max_queued} waiting). Retry after {RETRY_SECONDS[QueueFullError]} s, "
                "or have the operator raise max_queued_jobs"
            )
        self._slots += 1
        try:
            yield
        finally:
            self._slots -= 1
            self._wake.set()  # stop() waits for the taken slots

    def add(self, job: Job, extraction: Extraction) -> Job:
        """Append a job with its prepared extraction to the queue. Call it within `slot`."""
        job.extraction, job.warnings = extraction, list(extraction.warnings)
        self._report(job, extraction.progress)
        self._jobs[job.id] = job
        self._waiting.append(job)
        if self._stopping:  # stopped during preparation; its archive must not stay pending
            self._cancel(job)
        self._wake.set()
        return job

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job. A queued job is cancelled on return, a running job soon after.

        Raises:
            JobNotFoundError: no job has that id.
            JobStateError: it has ended already.
        """
        job = self.get(job_id)
        if job.ended.is_set():
            raise JobStateError(
                f"only a queued or running extraction can be cancelled; {job_id} is {job.state} since {job.finished}"
            )
        self._cancel(job)
        if job in self._waiting:
            self._waiting.remove(job)
            await self._run(job)
        return job

    def start(self) -> None:
        """Begin to run jobs. Call it on the event loop of the engines."""
        self._worker = asyncio.create_task(self._work(), name="sparcom-jobs")

    async def stop(self, seconds: float) -> None:
        """Cancel every job and wait until each has ended. A second call does nothing.

        A job that does not end within `seconds` is dropped; its archive keeps the complete instructions.
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
                logger.error("a job did not end within %s s and is dropped; complete instructions stay", seconds)
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
        """Run one job to its end, whatever the outcome."""
        assert job.extraction is not None  # noqa: S101  (only _finish sets it to None)
        if not job.cancelled:
            job.state = "running"
            job.started = _now()
        state: JobState = "failed"
        try:
            self._report(job, await job.extraction.run(lambda progress: self._report(job, progress)))
            state = "cancelled" if job.cancelled and job.progress.cancelled else "complete"
        except SparcomError as error:
            job.error = JobError(type=type(error).__name__, message=str(error))
        except Exception as error:
            logger.exception("extraction %s failed unexpectedly", job.id)
            job.error = JobError(type="InternalError", message=f"{type(error).__name__}: {error}")
        except asyncio.CancelledError:
            job.error = JobError(type="EngineError", message="the service stopped before the job had ended")
            self._finish(job, "failed")
            raise
        if job.error is not None:
            self._report(job, job.extraction.progress)
        if job.progress.failed:
            job.failures = await asyncio.to_thread(_read_failures, job)
        self._finish(job, state)

    def _finish(self, job: Job, state: JobState) -> None:
        job.state = state
        job.progress = replace(job.progress, seconds_left=None)
        job.finished = _now()
        job.extraction = None  # frees the plan, which is large for a large batch
        job.ended.set()
        self._finished.append(job)
        while len(self._finished) > self._max_finished:
            del self._jobs[self._finished.popleft().id]

    def _report(self, job: Job, progress: Progress) -> None:
        self._observe(job.progress, progress)
        job.progress = progress


def _read_failures(job: Job) -> list[Failure]:
    """Read the first failed instructions from the archive, at most 20, in order of submission. Blocks."""
    try:
        archive = open_archive(job.path, follow_links=False)
        if archive.attributes.run != job.run:
            raise DamagedArchiveError(f"another archive took the place of {job.path}")
        ids, reasons = archive.strings("id"), archive.strings("error")
        rows = np.flatnonzero(archive.instructions.state == State.FAILED)[:MAX_FAILURES]
        return [Failure(id=ids[row], error=reasons[row]) for row in rows]
    except (SparcomError, OSError) as error:
        logger.warning("the failures of extraction %s cannot be read: %s", job.id, error)
        return [Failure(id="", error=f"the reasons cannot be read from the archive: {error}")]
