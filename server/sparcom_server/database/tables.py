"""Tables of the service. Times are milliseconds since 1970, UTC.

    jobs ─┬─ parts          one per model: archive, progress
          ├─ instructions   until the job has ended; after that the archive holds them
          └─ job_metadata
    archives                owner of each archive name, and the unfinished job that holds it
    files                   uploaded instructions
    keys                    API keys, hashed

`owner` is the name of an API key; "" where no keys are used.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, ForeignKey, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

Id = String(64)
Name = String(512)


class Base(DeclarativeBase):
    """Base class of the tables."""

    type_annotation_map = {dict[str, Any]: JSON, list[str]: JSON}  # noqa: RUF012  (SQLAlchemy's documented way)


class JobRow(Base):
    """One extraction job. revision grows with every change."""

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("owner", "idempotency_key"),
        Index("jobs_by_time", "created", "id"),
        Index("jobs_by_state", "state", "created"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    owner: Mapped[str] = mapped_column(Id, index=True)
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(Text)
    error_type: Mapped[str | None] = mapped_column(String(64))
    error_message: Mapped[str | None] = mapped_column(Text)
    model: Mapped[str] = mapped_column(Name, index=True)
    tuned: Mapped[str | None] = mapped_column(Name)
    options: Mapped[dict[str, Any]]
    dataset: Mapped[str] = mapped_column(Name)
    analysis: Mapped[bool] = mapped_column(Boolean)
    instructions: Mapped[int] = mapped_column(Integer)
    prompts_sha256: Mapped[str | None] = mapped_column(String(64))
    warnings: Mapped[list[str]]
    failures: Mapped[list[str]]  # JSON of `Failure`, the first 20
    created: Mapped[int] = mapped_column(BigInteger)
    started: Mapped[int | None] = mapped_column(BigInteger)
    finished: Mapped[int | None] = mapped_column(BigInteger)
    expires: Mapped[int | None] = mapped_column(BigInteger)
    passed_over: Mapped[int | None] = mapped_column(BigInteger)  # since when later jobs run before it
    revision: Mapped[int] = mapped_column(Integer)
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    request_sha256: Mapped[str] = mapped_column(String(64))
    parts: Mapped[list[PartRow]] = relationship(
        order_by="PartRow.number", cascade="all, delete-orphan", lazy="selectin"
    )
    tags: Mapped[list[MetadataRow]] = relationship(cascade="all, delete-orphan", lazy="selectin")


class PartRow(Base):
    """One model's part of a job. progress: fields of `Progress`. archive: the name in the folder, see `stored_name`."""

    __tablename__ = "parts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    model: Mapped[str] = mapped_column(Name)
    archive: Mapped[str] = mapped_column(String(200))
    run: Mapped[str | None] = mapped_column(String(32))
    state: Mapped[str] = mapped_column(String(16))
    progress: Mapped[dict[str, Any]]


class InstructionRow(Base):
    """One instruction of an unfinished job. body: JSON of `Instruction`.

    suspect: part during which it ran when the engine died, so that it runs alone; deaths: how often the engine died
    while it ran alone.
    """

    __tablename__ = "instructions"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    body: Mapped[str] = mapped_column(Text)
    suspect: Mapped[int | None] = mapped_column(Integer)
    deaths: Mapped[int] = mapped_column(Integer, default=0)


class MetadataRow(Base):
    """One metadata key of a job."""

    __tablename__ = "job_metadata"
    __table_args__ = (Index("metadata_by_value", "key", "value"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(String(512))


class ArchiveRow(Base):
    """One archive name in use. job_id: the unfinished job that holds it, or null. run: null until it exists."""

    __tablename__ = "archives"

    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    owner: Mapped[str] = mapped_column(Id, index=True)
    job_id: Mapped[str | None] = mapped_column(Id)
    run: Mapped[str | None] = mapped_column(String(32))
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)


class FileRow(Base):
    """One uploaded file; its contents are files/ID.jsonl in the data folder."""

    __tablename__ = "files"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    owner: Mapped[str] = mapped_column(Id, index=True)
    filename: Mapped[str] = mapped_column(String(255))
    bytes: Mapped[int] = mapped_column(BigInteger)
    instructions: Mapped[int] = mapped_column(Integer)
    sha256: Mapped[str] = mapped_column(String(64))
    created: Mapped[int] = mapped_column(BigInteger)
    expires: Mapped[int | None] = mapped_column(BigInteger)


class KeyRow(Base):
    """One API key. hash: SHA-256 of the secret. limits: fields of `Limits`."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(Id, index=True)
    role: Mapped[str] = mapped_column(String(16))
    hash: Mapped[str] = mapped_column(String(64))
    limits: Mapped[dict[str, Any]]
    created: Mapped[int] = mapped_column(BigInteger)
    revoked: Mapped[int | None] = mapped_column(BigInteger)
    last_used: Mapped[int | None] = mapped_column(BigInteger)
