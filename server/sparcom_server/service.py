"""The parts of one service, and their start, stop and submissions."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache

from sqlalchemy.orm import Session

from sparcom_data.errors import ArchiveNotFoundError, InvalidInputError, SparcomError
from sparcom_data.instructions import Instruction
from sparcom_data.progress import Progress
from sparcom_server.access.gate import Gate
from sparcom_server.access.limits import check_submission
from sparcom_server.access.principal import Principal
from sparcom_server.analysis import Analyses
from sparcom_server.archives.owners import ArchiveOwners
from sparcom_server.archives.removal import sweep
from sparcom_server.archives.store import ArchiveStore
from sparcom_server.database.database import Database, database_url, now
from sparcom_server.database.tables import JobRow
from sparcom_server.errors import NotReadyError
from sparcom_server.jobs.reports import job_json
from sparcom_server.jobs.runner import JobRunner
from sparcom_server.jobs.store import JobStore
from sparcom_server.jobs.submission import Submission, name_taken
from sparcom_server.memory import Turns
from sparcom_server.models import ModelPool
from sparcom_server.observe.disk import DiskWatch
from sparcom_server.observe.metrics import Metrics, Snapshot
from sparcom_server.protocols import ModelSource
from sparcom_server.schemas.requests import TUNED_SUFFIX, ExtractionRequest, check_archive_name
from sparcom_server.settings import ServerSettings
from sparcom_server.uploads.store import UploadStore

logger = logging.getLogger(__name__)

EXPIRY_SECONDS = 60.0  # between two looks for expired jobs
MAX_RENDERED = 1000  # jobs, as JSON of a few kB each


class Service:
    """Models, jobs, archives and metrics of one app, independent of HTTP."""

    def __init__(
        self,
        sources: Mapping[str, ModelSource],
        settings: ServerSettings,
        on_failure: Callable[[SparcomError], None] | None = None,
    ) -> None:
        self.settings = settings
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.database = Database(settings.database or database_url(settings.data_dir))
        self.database.require_sound()
        self.metrics = Metrics()
        self.models = ModelPool(
            sources,
            max_loaded=settings.max_loaded_models,
            max_restarts=settings.max_engine_restarts,
            on_failure=on_failure,
            on_restart=self.metrics.engine_restarted,
        )
        self.archives = ArchiveStore(settings.archive_dir)
        self.access = Gate(self.database, settings)
        self.owners = ArchiveOwners(self.database, self.archives)
        self.analyses = Analyses(settings.data_dir, self.archives)
        self.disk = DiskWatch(settings.data_dir, settings.warn_free_bytes, settings.min_free_bytes)
        self.jobs = JobStore(self.database, settings.max_queued_jobs)
        self.runner = JobRunner(
            self.jobs,
            self.models,
            self.archives,
            self.disk,
            self.metrics,
            self.analyses.run,
            self.access.hide_paths,
            passed_over_seconds=settings.passed_over_seconds,
        )
        self.job_json = lru_cache(maxsize=MAX_RENDERED)(job_json)
        self.event_streams = asyncio.Semaphore(settings.max_event_streams)
        self.submissions = Turns(settings.max_submissions)
        self.uploads = UploadStore(
            self.database,
            settings.data_dir,
            self.submissions,
            max_bytes=settings.max_file_bytes,
            max_instructions=settings.max_instructions,
        )
        self.stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self.count_connections: Callable[[], int] = lambda: 0  # the HTTP server replaces it

    def start(self) -> None:
        """Begin to load models and run jobs on the running event loop."""
        self.disk.check()
        self.uploads.sweep()
        self.models.start()
        self.runner.start()
        self.swept = asyncio.create_task(self._sweep(), name="sparcom-sweep")
        self._tasks = [
            asyncio.create_task(self._expire(), name="sparcom-expire"),
            asyncio.create_task(self.disk.run(), name="sparcom-disk"),
        ]

    async def suspend(self) -> None:
        """Accept no more jobs, and suspend the running one. It continues when the service starts again."""
        self.stopping = True
        await self.runner.stop(self.settings.stop_seconds)
        self.jobs.close()

    async def stop(self) -> None:
        """Suspend the running job, then close the engines and the database."""
        await self.suspend()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(self.swept, *self._tasks, return_exceptions=True)
        await self.models.close()
        self.database.close()

    async def snapshot(self) -> Snapshot:
        """Return the state for the gauges of the metrics."""
        jobs = await self.jobs.unfinished()
        parts = [(job.state, part.state, Progress(**part.progress)) for job in jobs for part in job.parts]
        running = [progress for *states, progress in parts if states == ["running", "running"]]
        return Snapshot(
            jobs=await self.jobs.count_states(),
            in_flight=sum(progress.instructions - progress.settled for *_, progress in parts),
            tokens_per_second=sum(progress.tokens_per_second for progress in running),
            models=self.models.states,
            disk_free=self.disk.free_bytes,
            connections=self.count_connections(),
        )

    async def submit(
        self,
        principal: Principal,
        request: ExtractionRequest,
        request_sha256: str,
        idempotency_key: str | None = None,
    ) -> tuple[JobRow, bool]:
        """Store a job; return it, and whether it is new. Instructions of an uploaded file are read as they are stored.

        Raises:
            SparcomError: the request was refused; nothing was stored.
        """
        if self.stopping:
            raise NotReadyError("the service is stopping and accepts no more jobs; try again after it restarts")
        models = [self.models.choose(request.model)]
        if request.tuned is not None:
            models.append(self.models.choose(request.tuned))
            if models[0] == models[1]:
                raise InvalidInputError(f"tuned: must be another model than {models[0]!r}, the base model")
        if request.analysis:
            self.analyses.require()
        name = request.archive or derive_archive_name(models[0])
        names = (
            [name]
            if request.tuned is None
            else [name, check_archive_name(name[: 128 - len(TUNED_SUFFIX)] + TUNED_SUFFIX)]
        )
        stored, expiry = [principal.stored_name(one) for one in names], request.output_expires_after
        submission = Submission(
            archives=tuple(zip(models, stored, strict=True)),
            options=request.options,
            dataset=request.dataset.name,
            request_sha256=request_sha256,
            analysis=request.analysis,
            metadata=request.metadata,
            expires=None if expiry is None else now() + expiry.seconds * 1000,
            idempotency_key=idempotency_key,
        )
        checked: Iterable[Instruction] = self._instructions(request, principal)
        for model in models:
            checked = self.models.source(model).check(checked, request.options)

        def check(session: Session, instructions: int) -> None:
            check_submission(session, principal, instructions)
            for one in stored:  # archives that no job of this service wrote
                if os.path.lexists(self.archives.path(one)):
                    raise name_taken(one, None)

        return await self.jobs.submit(principal.owner, submission, checked, check)

    def _instructions(self, request: ExtractionRequest, principal: Principal) -> Iterable[Instruction]:
        if request.input_file_id is not None:
            return self.uploads.read(request.input_file_id, principal)
        return request.instructions or ()

    async def cancel(self, job_id: str, principal: Principal) -> JobRow:
        """Cancel a job; return it, ended if it did not run."""
        job = await self.jobs.request_cancel(job_id, principal)
        await self.runner.cancel(job)
        return await self.jobs.get(job_id, principal)

    async def position(self, job: JobRow) -> int | None:
        """Return the number of jobs that run before this one; None unless it is queued."""
        return (await self.jobs.positions()).get(job.id, 0) if job.state == "queued" else None

    async def _sweep(self) -> None:
        await asyncio.to_thread(sweep, self.archives.folder)
        await self.owners.forget_missing()

    async def _expire(self) -> None:
        while True:
            try:
                for job in await self.jobs.expired():
                    await self._delete_outputs(job)
                await self.uploads.expire()
            except (SparcomError, OSError):
                logger.exception("what has expired cannot be deleted; it is tried again")
            await asyncio.sleep(EXPIRY_SECONDS)

    async def _delete_outputs(self, job: JobRow) -> None:
        """Delete the archives and the analysis of a job, then its record."""
        owner = Principal(owner="", role="admin")
        try:
            for part in job.parts:
                with suppress(ArchiveNotFoundError):
                    await self.owners.delete(part.archive, owner)
            await asyncio.to_thread(self.analyses.remove, job.id)
            await self.jobs.forget(job.id)
            logger.info("extraction %s has expired and was deleted", job.id)
        except SparcomError as error:
            logger.warning("extraction %s has expired and cannot be deleted: %s", job.id, error)


def derive_archive_name(model: str) -> str:
    """Return a new archive name: model, time (UTC), and four random characters."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-._")[:80] or "archive"
    return f"{stem}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
