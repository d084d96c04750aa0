"""Write a new job to the database."""

from __future__ import annotations

import hashlib
import secrets
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from sparcom_data.errors import ArchiveExistsError
from sparcom_data.instructions import Instruction
from sparcom_data.schema.options import ExtractionOptions
from sparcom_server.access.principal import SEPARATOR
from sparcom_server.database.database import now
from sparcom_server.database.tables import ArchiveRow, InstructionRow, JobRow, MetadataRow, PartRow
from sparcom_server.errors import IdempotencyError

BATCH, BATCH_CHARACTERS = 1000, 4_000_000  # instructions and their characters per INSERT


@dataclass(frozen=True, slots=True)
class Submission:
    """A validated request. archives: (model, stored archive name) of each part."""

    archives: tuple[tuple[str, str], ...]
    options: ExtractionOptions
    dataset: str
    request_sha256: str
    analysis: bool = False
    metadata: dict[str, str] = field(default_factory=dict)
    expires: int | None = None
    idempotency_key: str | None = None


def digest(body: bytes | bytearray) -> str:
    """Return the SHA-256 of a request's body, by which a repeated request is recognized."""
    return hashlib.sha256(body).hexdigest()


def replayed(session: Session, owner: str, submission: Submission) -> JobRow | None:
    """Return the earlier job with the same idempotency key."""
    if submission.idempotency_key is None:
        return None
    query = select(JobRow).where(JobRow.owner == owner, JobRow.idempotency_key == submission.idempotency_key)
    earlier = session.scalar(query)
    if earlier is not None and earlier.request_sha256 != submission.request_sha256:
        raise IdempotencyError(
            f"an Idempotency-Key belongs to one request; {submission.idempotency_key!r} was used for extraction "
            f"{earlier.id}, another request. Use a new key"
        )
    return earlier


def new_job(owner: str, submission: Submission) -> JobRow:
    models = [model for model, _ in submission.archives]
    parts = [
        PartRow(number=number, model=model, archive=archive, run=uuid.uuid4().hex, state="pending", progress={})
        for number, (model, archive) in enumerate(submission.archives)
    ]
    return JobRow(
        id=secrets.token_hex(12),
        owner=owner,
        state="queued",
        model=models[0],
        tuned=models[1] if len(models) > 1 else None,
        options=submission.options.model_dump(mode="json"),
        dataset=submission.dataset,
        analysis=submission.analysis,
        instructions=0,
        warnings=[],
        failures=[],
        created=now(),
        expires=submission.expires,
        revision=1,
        idempotency_key=submission.idempotency_key,
        request_sha256=submission.request_sha256,
        parts=parts,
        tags=[MetadataRow(key=key, value=value) for key, value in submission.metadata.items()],
    )


def hold_names(session: Session, job: JobRow) -> None:
    for part in job.parts:
        if row := session.get(ArchiveRow, part.archive):
            raise name_taken(part.archive, row.job_id)
        session.add(ArchiveRow(name=part.archive, owner=job.owner, job_id=job.id, run=part.run, bytes=0))


def name_taken(stored: str, job_id: str | None) -> ArchiveExistsError:
    """Return the error for an archive name in use. job_id: the job that holds it, if any."""
    name = stored.rpartition(SEPARATOR)[2]
    if job_id is None:
        return ArchiveExistsError(f"archive {name!r} already exists; choose another name, or omit it to derive one")
    return ArchiveExistsError(
        f"archive {name!r} belongs to extraction {job_id}, which has not ended; choose another name, or cancel that "
        "extraction first"
    )


def insert_instructions(session: Session, job_id: str, instructions: Iterable[Instruction]) -> int:
    """Insert instructions a batch at a time, and return their number."""
    batch: list[dict[str, object]] = []
    number = characters = 0
    for number, item in enumerate(instructions, start=1):
        body = item.model_dump_json(exclude_defaults=True)
        batch.append({"job_id": job_id, "number": number - 1, "body": body, "deaths": 0})
        characters += len(body)
        if len(batch) == BATCH or characters >= BATCH_CHARACTERS:
            session.execute(insert(InstructionRow), batch)
            batch, characters = [], 0
    if batch:
        session.execute(insert(InstructionRow), batch)
    return number
