"""From the service's own objects to what clients see, with absolute addresses as the client reached us."""

from __future__ import annotations

from starlette.requests import Request

from sparcom_data.errors import ArchiveError
from sparcom_server.archives.store import ArchiveFacts, ArchiveStore, archive_state
from sparcom_server.jobs.queue import Job, JobQueue
from sparcom_server.schemas import (
    ArchiveReport,
    ArchiveSummary,
    DatasetRequest,
    JobLinks,
    JobReport,
    ProgressReport,
)


class Addresses:
    """Addresses under the base that the client used."""

    def __init__(self, request: Request) -> None:
        self._base = str(request.base_url).rstrip("/") + "/v1"

    def job(self, job_id: str) -> str:
        """Of one job."""
        return f"{self._base}/extractions/{job_id}"

    def archive(self, name: str) -> str:
        """Of one archive's facts."""
        return f"{self._base}/archives/{name}"

    def zarr(self, name: str) -> str:
        """Of one archive's store: what `zarr.open` takes."""
        return f"{self._base}/archives/{name}/zarr"


def job_report(job: Job, queue: JobQueue, addresses: Addresses) -> JobReport:
    """One job as clients see it."""
    address = addresses.job(job.id)
    return JobReport(
        id=job.id,
        state=job.state,
        model=job.spec.model,
        archive=job.spec.archive,
        archive_path=str(job.spec.path),
        run=job.spec.run,
        options=job.spec.options,
        dataset=DatasetRequest(name=job.spec.dataset),
        created=job.created,
        started=job.started,
        finished=job.finished,
        queue_position=queue.position(job),
        progress=ProgressReport.model_validate(job.progress),
        error=job.error,
        failures=job.failures,
        warnings=job.warnings,
        links=JobLinks(
            self=address,
            events=f"{address}/events",
            archive=addresses.archive(job.spec.archive),
            zarr=addresses.zarr(job.spec.archive),
        ),
    )


def archive_summary(name: str, store: ArchiveStore, addresses: Addresses) -> ArchiveSummary:
    """One archive for the list; one that cannot be read is listed with the reason. Blocks."""
    summary = ArchiveSummary(
        name=name, path=str(store.path(name)), url=addresses.archive(name), zarr=addresses.zarr(name)
    )
    try:
        attributes = store.attributes(name)
        instructions = store.states(name, attributes)
    except ArchiveError as error:
        return summary.model_copy(update={"error": str(error)})
    return summary.model_copy(
        update={
            "created": attributes.created,
            "model": attributes.model.id,
            "dataset": attributes.dataset.name,
            "state": archive_state(attributes, instructions),
            "instructions": instructions,
        }
    )


def archive_report(name: str, facts: ArchiveFacts, store: ArchiveStore, addresses: Addresses) -> ArchiveReport:
    """One archive in full."""
    return ArchiveReport(
        name=name,
        path=str(store.path(name)),
        url=addresses.archive(name),
        zarr=addresses.zarr(name),
        state=archive_state(facts.attributes, facts.instructions),
        attributes=facts.attributes,
        instructions=facts.instructions,
        categories=facts.categories,
        tokens=facts.tokens,
        bytes=facts.bytes,
    )
