"""The parts of one service, and their start, stop, submissions and deletions."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from sparcom_data.errors import ArchiveExistsError, JobStateError, SparcomError
from sparcom_server.archives.removal import sweep
from sparcom_server.archives.store import ArchiveStore
from sparcom_server.jobs.queue import Job, JobQueue
from sparcom_server.metrics import Metrics
from sparcom_server.models import ModelRegistry
from sparcom_server.protocols import EngineStarter
from sparcom_server.schemas.reports import ExtractionRequest
from sparcom_server.settings import ServerSettings


class Service:
    """Models, queue, archives and metrics of one app, independent of HTTP."""

    def __init__(
        self,
        starters: Mapping[str, EngineStarter],
        settings: ServerSettings,
        on_failure: Callable[[SparcomError], None] | None = None,
    ) -> None:
        self.settings = settings
        self.models = ModelRegistry(starters, on_failure)
        self.archives = ArchiveStore(settings.archive_dir)
        self.metrics = Metrics()
        self.queue = JobQueue(settings.max_queued_jobs, settings.max_finished_jobs, self.metrics.observe)
        self.event_streams = asyncio.Semaphore(settings.max_event_streams)
        # Each may take up to 1 GiB while it is validated and tokenized.
        self.submissions = asyncio.Semaphore(settings.max_submissions)
        self.metrics.watch(self.queue.newest_first, lambda: self.models.states)

    def start(self) -> None:
        """Begin to load models and run jobs on the running event loop."""
        self.models.start()
        self.queue.start()
        self._sweeping = asyncio.create_task(asyncio.to_thread(sweep, self.archives.folder), name="sparcom-sweep")

    async def stop(self) -> None:
        """Cancel every job, wait until each has ended, then close the engines."""
        await self.queue.stop(self.settings.stop_seconds)
        await asyncio.gather(self._sweeping, return_exceptions=True)
        await self.models.close()

    async def submit(self, request: ExtractionRequest) -> Job:
        """Create the archive and queue the job.

        Raises:
            SparcomError: the request was refused; no job and no archive was created.
        """
        engine = self.models.choose(request.model)
        name = request.archive or derive_archive_name(engine.name)
        if holder := self.queue.holder(name):
            raise ArchiveExistsError(
                f"archive {name!r} belongs to extraction {holder.id}, which is {holder.state}; choose another name, "
                "or cancel that extraction first"
            )
        with self.queue.slot(), self.archives.reserve(name) as path:
            extraction = await asyncio.to_thread(
                engine.prepare, request.instructions, request.options, path, request.dataset.name
            )
            job = Job(engine.name, name, path, extraction.archive_run, request.options, request.dataset)
            return self.queue.add(job, extraction)

    async def delete_archive(self, name: str) -> None:
        """Remove an archive from the disk.

        Raises:
            JobStateError: a queued or running job holds it, or as `ArchiveStore.remove`.
            ArchiveNotFoundError, StorageError: as `ArchiveStore.remove`.
        """
        if holder := self.queue.holder(name):
            raise JobStateError(
                f"an archive can be deleted once its extraction has ended; {name!r} belongs to extraction {holder.id}, "
                f"which is {holder.state}. Cancel it first: DELETE /v1/extractions/{holder.id}"
            )
        await self.archives.remove(name)


def derive_archive_name(model: str) -> str:
    """Return a new archive name: model, time (UTC), and four random characters."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-._")[:80] or "archive"
    return f"{stem}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
