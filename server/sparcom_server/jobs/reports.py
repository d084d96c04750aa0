"""Describe jobs and archives for clients, with absolute addresses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from starlette.requests import Request

from sparcom_data.errors import ArchiveError, ArchiveNotFoundError
from sparcom_data.progress import Progress
from sparcom_data.schema.options import ExtractionOptions
from sparcom_server.access.principal import Principal
from sparcom_server.analysis import REPORT
from sparcom_server.archives.store import ArchiveStore, archive_state, no_archive
from sparcom_server.database.tables import JobRow, PartRow
from sparcom_server.jobs.store import iso
from sparcom_server.schemas.reports import (
    ArchiveReport,
    ArchiveSummary,
    Failure,
    JobArchive,
    JobError,
    JobLinks,
    JobReport,
    ModelReport,
)
from sparcom_server.schemas.requests import DatasetRequest


@dataclass(frozen=True, slots=True)
class Addresses:
    """Addresses under the base that the client used, such as http://host:8000/v1."""

    base: str

    @classmethod
    def of(cls, request: Request) -> Addresses:
        """Return the addresses for the client of a request."""
        return cls(str(request.base_url).rstrip("/") + "/v1")

    def job(self, job_id: str) -> str:
        """Return the address of a job."""
        return f"{self.base}/extractions/{job_id}"

    def archive(self, name: str) -> str:
        """Return the address of an archive's facts."""
        return f"{self.base}/archives/{name}"

    def zarr(self, name: str) -> str:
        """Return the address of an archive's store, for `zarr.open`."""
        return f"{self.archive(name)}/zarr"


@dataclass(frozen=True, slots=True)
class Describe:
    """Describes jobs and archives as one client sees them."""

    principal: Principal
    archives: ArchiveStore
    addresses: Addresses
    hide_paths: Callable[[str, Principal], str]

    def _text(self, text: str) -> str:
        return self.hide_paths(text, self.principal)

    def job(self, job: JobRow, position: int | None) -> JobReport:
        """Return one job. position: jobs that run before it, if it is queued."""
        address, archives = self.addresses.job(job.id), [self._part(part) for part in job.parts]
        first = archives[0]
        return JobReport(
            id=job.id,
            state=job.state,  # type: ignore[arg-type]  # the database holds only states
            reason=job.reason and self._text(job.reason),
            owner=job.owner or None,
            model=job.model,
            tuned=job.tuned,
            archive=first.archive,
            archive_path=first.path,
            run=first.run,
            options=ExtractionOptions.model_validate(job.options),
            dataset=DatasetRequest(name=job.dataset),
            analysis=job.analysis,
            metadata={tag.key: tag.value for tag in job.tags},
            created=iso(job.created),
            started=_iso(job.started),
            finished=_iso(job.finished),
            expires=_iso(job.expires),
            queue_position=position if job.state == "queued" else None,
            progress=total_progress([archive.progress for archive in archives]),
            archives=archives,
            error=JobError(type=job.error_type, message=self._text(job.error_message or ""))
            if job.error_type
            else None,
            failures=[self._failure(failure) for failure in job.failures],
            warnings=[self._text(warning) for warning in job.warnings],
            links=JobLinks(
                self=address,
                events=f"{address}/events",
                results=f"{address}/results",
                errors=f"{address}/errors",
                archive=first.url,
                zarr=first.zarr,
                analysis=f"{address}/analysis/{REPORT}" if job.analysis else None,
            ),
        )

    def _failure(self, stored: str) -> Failure:
        failure = Failure.model_validate_json(stored)
        return failure.model_copy(update={"error": self._text(failure.error)})

    def _part(self, part: PartRow) -> JobArchive:
        entry = self._entry(part.archive)
        return JobArchive(
            model=part.model,
            archive=entry["name"],
            path=entry["path"],
            run=part.run,
            state=part.state,  # type: ignore[arg-type]  # the database holds only states
            progress=Progress(**part.progress),
            url=entry["url"],
            zarr=entry["zarr"],
        )

    def model(self, report: ModelReport) -> ModelReport:
        """Return one served model."""
        model = report.model and report.model.model_copy(update={"id": self._text(report.model.id)})
        return report.model_copy(update={"model": model, "error": report.error and self._text(report.error)})

    def archive_summary(self, stored: str) -> ArchiveSummary:
        """Return the list entry of one archive. An unreadable archive is listed with the reason. Blocks."""
        entry = self._entry(stored)
        try:
            attributes = self.archives.attributes(stored)
            instructions = self.archives.states(stored, attributes)
        except ArchiveError as error:
            return ArchiveSummary(**entry, error=self._text(str(error)))
        return ArchiveSummary(
            **entry,
            created=attributes.created,
            model=self._text(attributes.model.id),
            dataset=attributes.dataset.name,
            state=archive_state(attributes, instructions),
            instructions=instructions,
        )

    def archive(self, name: str) -> ArchiveReport:
        """Return one archive in full, by the name that the client uses. Blocks."""
        stored = self.principal.stored_name(name)
        try:
            facts = self.archives.facts(stored)
        except ArchiveNotFoundError:
            raise no_archive(name) from None
        model = facts.attributes.model.model_copy(update={"id": self._text(facts.attributes.model.id)})
        warnings = [self._text(warning) for warning in facts.attributes.warnings]
        attributes = facts.attributes.model_copy(update={"model": model, "warnings": warnings})
        return ArchiveReport(**self._entry(stored), **dict(facts) | {"attributes": attributes})

    def _entry(self, stored: str) -> dict[str, Any]:
        name = self.principal.shown_name(stored)
        return {
            "name": name,
            "owner": stored.rpartition("~")[0] or None,
            "path": str(self.archives.path(stored)) if self.principal.is_admin else None,
            "url": self.addresses.archive(name),
            "zarr": self.addresses.zarr(name),
        }


def job_json(describe: Describe, job: JobRow, position: int | None) -> bytes:
    """Return one job as JSON. The result may be cached: a job that changes becomes another row."""
    return describe.job(job, position).model_dump_json(by_alias=True).encode()


def total_progress(parts: list[Progress]) -> Progress:
    """Return the sum over the parts of a job. Parts run one after the other, so only one has seconds left."""
    total = Progress(**{name: sum(getattr(part, name) for part in parts) for name in _SUMMED})
    left = [part.seconds_left for part in parts if part.seconds_left is not None]
    rate = total.tokens_done / total.seconds if total.seconds else 0.0
    return replace(total, tokens_per_second=rate, seconds_left=sum(left) if left else None)


_SUMMED = [field.name for field in fields(Progress) if field.name not in {"tokens_per_second", "seconds_left"}]


def _iso(time: int | None) -> str | None:
    return None if time is None else iso(time)
