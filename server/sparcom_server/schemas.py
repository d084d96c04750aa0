"""Types of the body of a new extraction and of every response.

Unknown fields of a request are refused, never ignored: an extraction must not run without a misspelled option.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

from sparcom_data.instructions import Instruction
from sparcom_data.progress import Progress
from sparcom_data.schema.metadata import ArchiveAttributes, EngineInfo, ModelInfo
from sparcom_data.schema.options import ExtractionOptions
from sparcom_data.schema.strict import StrictModel

JobState = Literal["queued", "running", "complete", "failed", "cancelled"]
ModelState = Literal["loading", "ready", "failed"]
ArchiveState = Literal["open", "complete", "incomplete"]

ARCHIVE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check_archive_name(name: str) -> str:
    """Return the name if it is valid.

    Raises:
        ValueError: it holds a path, other characters or the suffix.
    """
    if not ARCHIVE_NAME.fullmatch(name):
        raise ValueError(
            "an archive's name must have 1 to 128 of the characters A-Z a-z 0-9 . _ - and start with a letter or "
            f"digit; a path is not allowed. It is {name[:140]!r}"
        )
    if name.endswith(".zarr"):
        raise ValueError(f"an archive's name must not end in .zarr, which is added; give {name[:-5]!r}")
    return name


def _require_any(instructions: tuple[Instruction, ...]) -> tuple[Instruction, ...]:
    if not instructions:
        raise ValueError("the batch must not be empty; give at least one instruction")
    return instructions


class DatasetRequest(StrictModel):
    """Data set of the instructions."""

    name: Annotated[str, Field(max_length=512)] = ""


class ExtractionHead(StrictModel):
    """Fields of a request without its instructions."""

    model: str | None = Field(default=None, description="Name of a served model; required if several are served.")
    archive: Annotated[str, AfterValidator(check_archive_name)] | None = Field(
        default=None, description="Name of the archive, without .zarr; by default derived from model and time."
    )
    options: ExtractionOptions = ExtractionOptions()
    dataset: DatasetRequest = DatasetRequest()


class ExtractionRequest(ExtractionHead):
    """Body of `POST /v1/extractions`."""

    instructions: Annotated[tuple[Instruction, ...], AfterValidator(_require_any)]


class Failure(BaseModel):
    """One failed instruction and the reason."""

    id: str
    error: str


class JobError(BaseModel):
    """Reason why a job as a whole failed."""

    type: str
    message: str


class JobLinks(BaseModel):
    """Addresses of a job and its archive; `zarr` is for `zarr.open`."""

    self: str
    events: str
    archive: str
    zarr: str


class JobReport(BaseModel):
    """One extraction job. `failures` holds the first 20 failed instructions once the job has ended."""

    id: str
    state: JobState
    model: str
    archive: str
    archive_path: str = Field(description="Path of the archive on the server.")
    run: str = Field(description="Run id of the archive: `run` of its attributes.")
    options: ExtractionOptions
    dataset: DatasetRequest
    created: str
    started: str | None
    finished: str | None
    queue_position: int | None = Field(description="Jobs that run before this one; null unless it is queued.")
    progress: Progress
    error: JobError | None
    failures: list[Failure]
    warnings: list[str] = Field(default=[], description="Sentences about prompts that may not be intended.")
    links: JobLinks


class Page(BaseModel):
    """Part of a list; `total` counts all entries."""

    total: int
    offset: int
    limit: int


class JobPage(Page):
    """Part of the list of jobs, newest first; `total` counts all jobs."""

    extractions: list[JobReport]


class ArchiveEntry(BaseModel):
    """Name and addresses of an archive."""

    name: str
    path: str
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
    """Part of the list of archives, newest first; `total` counts all archives."""

    archives: list[ArchiveSummary]


class ArchiveFacts(BaseModel):
    """Contents of an archive. tokens: rows of complete instructions. bytes: size on disk."""

    state: ArchiveState = Field(
        description="open: a job may still write it, or was killed. complete: every instruction is complete. "
        "incomplete: no job writes it any more, and some instructions failed, were cancelled or never ran."
    )
    attributes: ArchiveAttributes
    instructions: dict[str, int] = Field(description="Number of pending, complete, failed and cancelled instructions.")
    categories: dict[str, int]
    tokens: int
    bytes: int


class ArchiveReport(ArchiveFacts, ArchiveEntry):
    """One archive: attributes, instructions by state and category, rows of complete instructions, and size on disk."""


class ModelReport(BaseModel):
    """One served model; its facts are known once it is ready."""

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
    """Health of the process."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Readiness for extractions, and the state of each model."""

    ready: bool
    models: dict[str, ModelState]


class ErrorDetail(BaseModel):
    """An error. `problems` names each broken rule with its field."""

    type: str
    message: str
    problems: list[str]


class ErrorReport(BaseModel):
    """Body of every error response."""

    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReport, "description": "The error, with every problem at once"}
    for status in (422, "4XX", "5XX")
}
