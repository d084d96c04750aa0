"""Types of every response."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from sparcom_data.progress import Progress
from sparcom_data.schema.metadata import ArchiveAttributes, EngineInfo, ModelInfo
from sparcom_data.schema.options import ExtractionOptions
from sparcom_server.schemas.requests import DatasetRequest, Limits, Role

JobState = Literal["queued", "loading", "running", "complete", "failed", "cancelling", "cancelled"]
PartState = Literal["pending", "running", "complete", "failed", "cancelled"]
ModelState = Literal["unloaded", "loading", "ready", "failed"]
ArchiveState = Literal["open", "complete", "incomplete"]

UNFINISHED: tuple[JobState, ...] = ("queued", "loading", "running", "cancelling")


class Failure(BaseModel):
    """One failed instruction and the reason."""

    id: str
    error: str


class JobError(BaseModel):
    """Reason why a job as a whole failed."""

    type: str
    message: str


class JobArchive(BaseModel):
    """One model's part of a job, and its archive. `zarr` is for `zarr.open`."""

    model: str
    archive: str
    path: str | None = Field(description="Path on the server; null unless the key is an admin's.")
    run: str | None = Field(description="Run id of the archive: `run` of its attributes; null until it exists.")
    state: PartState
    progress: Progress
    url: str
    zarr: str


class JobLinks(BaseModel):
    """Addresses of a job and its first archive; `analysis` is null unless one was asked for."""

    self: str
    events: str
    results: str
    errors: str
    archive: str
    zarr: str
    analysis: str | None = None


class JobReport(BaseModel):
    """One extraction job. `failures` holds the first 20 failed instructions once the job has ended.

    `archive`, `archive_path` and `run` are those of the first of `archives`; `progress` is the sum over all.
    """

    id: str
    object: Literal["extraction"] = "extraction"
    state: JobState
    reason: str | None = Field(description="Why the job waits, or why it is in its state; null if there is no reason.")
    owner: str | None = Field(description="Name of the key that submitted it; null without keys.")
    model: str
    tuned: str | None
    archive: str
    archive_path: str | None
    run: str | None
    options: ExtractionOptions
    dataset: DatasetRequest
    analysis: bool
    metadata: dict[str, str]
    created: str
    started: str | None
    finished: str | None
    expires: str | None
    queue_position: int | None = Field(description="Jobs that run before this one; null unless it is queued.")
    progress: Progress
    archives: list[JobArchive]
    error: JobError | None
    failures: list[Failure]
    warnings: list[str] = Field(default=[], description="Sentences about prompts that may not be intended.")
    links: JobLinks


class Page(BaseModel):
    """Part of a list, newest first. Ask for the next part with `after` = `last_id` while `has_more` is true."""

    object: Literal["list"] = "list"
    first_id: str | None
    last_id: str | None
    has_more: bool


class JobPage(Page):
    """Part of the list of jobs."""

    data: list[JobReport]


class _Line(BaseModel):
    """Fields of every line of results and errors. index: of the instruction in its request."""

    id: str
    custom_id: str
    model: str
    archive: str
    index: int


class ResultLine(_Line):
    """One line of `/results`. row: first row in the archive's arrays of tokens; null in archives of counts."""

    state: Literal["complete"]
    prompt_length: int
    token_length: int
    row: int | None
    response: str
    category: str


class LineError(BaseModel):
    """Reason why an instruction has no result."""

    code: Literal["failed", "cancelled"]
    message: str


class ErrorLine(_Line):
    """One line of `/errors`."""

    state: Literal["failed", "cancelled"]
    error: LineError


class ArchiveEntry(BaseModel):
    """Name and addresses of an archive."""

    name: str
    owner: str | None = None
    path: str | None = None
    url: str
    zarr: str


class ArchiveSummary(ArchiveEntry):
    """One archive of the list; fields as in ArchiveReport. `error` is the reason it cannot be read, or null."""

    created: str | None = None
    model: str | None = None
    dataset: str | None = None
    state: ArchiveState | None = None
    instructions: dict[str, int] | None = None
    error: str | None = None


class ArchivePage(Page):
    """Part of the list of archives. Their ids are their names."""

    data: list[ArchiveSummary]


class ArchiveFacts(BaseModel):
    """Contents of an archive. tokens: rows of complete instructions. bytes: size on disk."""

    state: ArchiveState = Field(
        description="open: a job may still write it. complete: every instruction is complete. "
        "incomplete: no job writes it any more, and some instructions failed, were cancelled or never ran."
    )
    attributes: ArchiveAttributes
    instructions: dict[str, int] = Field(description="Number of pending, complete, failed and cancelled instructions.")
    categories: dict[str, int]
    tokens: int
    bytes: int


class ArchiveReport(ArchiveFacts, ArchiveEntry):
    """One archive: attributes, instructions by state and category, rows of complete instructions, and size on disk."""


class FileReport(BaseModel):
    """An uploaded file of instructions, one JSON object per line."""

    id: str
    object: Literal["file"] = "file"
    filename: str
    bytes: int
    instructions: int
    sha256: str
    owner: str | None
    created: str
    expires: str | None


class FilePage(Page):
    """Part of the list of files."""

    data: list[FileReport]


class KeyReport(BaseModel):
    """One API key, without its secret."""

    id: str
    object: Literal["key"] = "key"
    name: str
    role: Role
    limits: Limits
    created: str
    revoked: str | None
    last_used: str | None


class NewKeyReport(KeyReport):
    """A new API key. `key` is shown only once."""

    key: str


class KeyPage(Page):
    """Part of the list of keys."""

    data: list[KeyReport]


class ModelReport(BaseModel):
    """One served model; its facts are known once it was loaded."""

    name: str
    state: ModelState
    healthy: bool
    max_prompt_tokens: int | None = None
    model: ModelInfo | None = None
    engine: EngineInfo | None = None
    error: str | None = None


class ModelList(BaseModel):
    """The models that clients may name."""

    models: list[ModelReport]


class Health(BaseModel):
    """Whether the service works, and why not: if not, restart it."""

    status: Literal["ok", "failing"]
    problems: list[str] = []


class Readiness(BaseModel):
    """Readiness for extractions, the state of each model, why it is not ready, and what may soon stop it."""

    ready: bool
    models: dict[str, ModelState]
    problems: list[str] = []
    warnings: list[str] = []


class Problem(BaseModel):
    """Body of every error response: problem details, RFC 9457. `problems` names each broken rule with its field."""

    type: str = Field(description="urn:sparcom:problem:NAME, stable across releases.")
    title: str
    status: int
    detail: str
    problems: list[str]


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": "The error, with every problem at once",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for status in ("4XX", "5XX")
}
