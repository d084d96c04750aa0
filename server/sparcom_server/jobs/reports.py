"""Describe jobs and archives for clients, with absolute addresses."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from sparcom_data.errors import ArchiveError
from sparcom_server.archives.store import ArchiveStore, archive_state
from sparcom_server.jobs.queue import Job, JobQueue
from sparcom_server.schemas.reports import ArchiveReport, ArchiveSummary, JobLinks, JobReport


class Addresses:
    """Addresses under the base that the client used."""

    def __init__(self, request: Request) -> None:
        self._base = str(request.base_url).rstrip("/") + "/v1"

    def job(self, job_id: str) -> str:
        """Return the address of a job."""
        return f"{self._base}/extractions/{job_id}"

    def archive(self, name: str) -> str:
        """Return the address of an archive's facts."""
        return f"{self._base}/archives/{name}"

    def zarr(self, name: str) -> str:
        """Return the address of an archive's store, for `zarr.open`."""
        return f"{self.archive(name)}/zarr"


def job_report(job: Job, queue: JobQueue, addresses: Addresses) -> JobReport:
    """Return one job as clients see it."""
    address = addresses.job(job.id)
    return JobReport(
        id=job.id,
        state=job.state,
        model=job.model,
        archive=job.archive,
        archive_path=str(job.path),
        run=job.run,
        options=job.options,
        dataset=job.dataset,
        created=job.created,
        started=job.started,
        finished=job.finished,
        queue_position=queue.position(job),
        progress=job.progress,
        error=job.error,
        failures=job.failures,
        warnings=job.warnings,
        links=JobLinks(
            self=address,
            events=f"{address}/events",
            archive=addresses.archive(job.archive),
            zarr=addresses.zarr(job.archive),
        ),
    )


def archive_summary(name: str, store: ArchiveStore, addresses: Addresses) -> ArchiveSummary:
    """Return the list entry of one archive. An unreadable archive is listed with the reason. Blocks."""
    entry = _entry(name, store, addresses)
    try:
        attributes = store.attributes(name)
        instructions = store.states(name, attributes)
    except ArchiveError as error:
        return ArchiveSummary(**entry, error=str(error))
    return ArchiveSummary(
        **entry,
        created=attributes.created,
        model=attributes.model.id,
        dataset=attributes.dataset.name,
        state=archive_state(attributes, instructions),
        instructions=instructions,
    )


def archive_report(name: str, store: ArchiveStore, addresses: Addresses) -> ArchiveReport:
    """Return one archive in full. Blocks."""
    return ArchiveReport(**_entry(name, store, addresses), **dict(store.facts(name)))


def _entry(name: str, store: ArchiveStore, addresses: Addresses) -> dict[str, Any]:
    path, url, zarr = str(store.path(name)), addresses.archive(name), addresses.zarr(name)
    return {"name": name, "path": path, "url": url, "zarr": zarr}
