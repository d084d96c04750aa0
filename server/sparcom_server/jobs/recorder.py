"""Write the progress of a running job to the database, at the database's own pace."""

from __future__ import annotations

import asyncio
import logging

from sparcom_data.progress import Progress
from sparcom_server.errors import DatabaseError
from sparcom_server.jobs.store import JobStore

logger = logging.getLogger(__name__)


class Recorder:
    """Writes the latest progress of a part to the database, one write at a time."""

    def __init__(self, jobs: JobStore, job_id: str, number: int, latest: Progress) -> None:
        self.latest = latest
        self._jobs, self._job_id, self._number = jobs, job_id, number
        self._writing: asyncio.Task[None] | None = None
        self._written = latest

    def put(self, progress: Progress) -> None:
        """Record a snapshot soon. A newer one may replace it first."""
        self.latest = progress
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())

    async def close(self) -> None:
        """Wait until the last snapshot is written."""
        if self._writing is not None:
            await self._writing

    async def _write(self) -> None:
        while self._written is not self.latest:
            progress = self.latest
            try:
                await self._jobs.record(self._job_id, self._number, progress)
            except DatabaseError as error:  # a later snapshot holds the same
                logger.warning("progress of extraction %s is not recorded: %s", self._job_id, error)
            self._written = progress
