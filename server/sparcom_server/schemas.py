"""What goes over the wire: the body of a new extraction, and every answer, as types.

Unknown fields of a request are refused, never ignored: a misspelt option must not run an extraction without it.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sparcom_data.instructions import Instruction
from sparcom_data.schema.metadata import ArchiveAttributes, EngineInfo, ModelInfo
from sparcom_data.schema.options import ExtractionOptions
from sparcom_data.schema.strict import StrictModel

JobState = Literal["queued", "running", "complete", "failed", "cancelled"]
ModelState = Literal["loading", "ready", "failed"]
ArchiveState = Literal["open", "complete", "incomplete"]

ARCHIVE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check_archive_name(name: str) -> str:
    """The name if it follows the rule.

    Raises:
        ValueError: it has a path, odd characters or the suffix in it.
    """
    if not ARCHIVE_NAME.fullmatch(name):
        raise ValueError(
            "an archive's name has 1 to 128 of the characters A-Z a-z 0-9 . _ - and starts with a letter or digit; "
            f"it holds no path. It is {name[:140]!r}"
        )
    if name.endswith(".zarr"):
        raise ValueError(f"an archive's name is given without the suffix .zarr, which is added: {name[:-5]!r}")
    return name


def _check_batch(instructions: tuple[Instruction, ...]) -> tuple[Instruction, ...]:
    if not instructions:
        raise ValueError("the batch must not be empty; give at least one instruction")
    return instructions


class DatasetRequest(StrictModel):
    """Where the instructions come from."""

    name: Annotated[str, Field(max_length=512)] = ""


class ExtractionHead(StrictModel):
    """What a request says beside its instructions."""

    model: str | None = Field(default=None, description="Name of a served model; needed where several are served.")
    archive: Annotated[str, AfterValidator(check_archive_name)] | None = Field(
        default=None, description="Name of the archive, without .zarr; derived from model and time where not given."
    )
    options: ExtractionOptions = ExtractionOptions()
    dataset: DatasetRequest = DatasetRequest()


class ExtractionRequest(ExtractionHead):
    """Body of `POST /v1/extractions`."""

    instructions: Annotated[tuple[Instruction, ...], AfterValidator(_check_batch)]


class ProgressReport(BaseModel):
    """How far a job is. Instructions and tokens count what is on disk; times are seconds. `seconds_left` is null before
    there is a rate to go by, and once the job has ended."""

    model_config = ConfigDict(from_attributes=True)

    instructions: int
    complete: int
    failed: int
    cancelled: int
    tokens: int
    tokens_done: int
    seconds: float
    tokens_per_second: float
    seconds_left: float | None
    storage_wait_seconds: float


class Failure(BaseModel):
    """One instruction that failed, and why."""

    id: str
    error: str


class JobError(BaseModel):
    """Why a job as a whole failed."""

    type: str
    message: str


class JobLinks(BaseModel):
    """Addresses of a job and of its archive; `zarr` is what `zarr.open` takes."""

    self: str
    events: str
    archive: str
    zarr: str


class JobReport(BaseModel):
    """One extraction job. `failures` holds the first 20 instructions that failed, once the job has ended."""

    id: str
    state: JobState
    model: str
    archive: str
    archive_path: str = Field(description="Where the archive lies on the server.")
    run: str = Field(description="Run id of the archive: `run` of its attributes.")
    options: ExtractionOptions
    dataset: DatasetRequest
    created: str
    started: str | None
    finished: str | None
    queue_position: int | None = Field(description="Jobs that run before this one; null unless it is queued.")
    progress: ProgressReport
    error: JobError | None
    failures: list[Failure]
    warnings: list[str] = Field(default=[], description="Sentences about prompts that may not be what was meant.")
    links: JobLinks


class JobPage(BaseModel):
    """Some of the jobs, newest first; `total` counts all."""

    total: int
    offset: int
    limit: int
    extractions: list[JobReport]


_STATE = (
    "open: a job may still write it, or was killed; complete: every instruction is complete; incomplete: nobody writes "
    "it any more, and some instructions failed, were cancelled or never ran."
)
_INSTRUCTIONS = "How many instructions are pending, complete, failed and cancelled."


class ArchiveSummary(BaseModel):
    """One archive of the list. `error` says why it cannot be read, where it cannot."""

    name: str
    path: str
    url: str
    zarr: str
    created: str | None = None
    model: str | None = None
    dataset: str | None = None
    state: ArchiveState | None = Field(default=None, description=_STATE)
    instructions: dict[str, int] | None = Field(default=None, description=_INSTRUCTIONS)
    error: str | None = None


class ArchivePage(BaseModel):
    """Some of the archives, newest first; `total` counts all."""

    total: int
    offset: int
    limit: int
    archives: list[ArchiveSummary]


class ArchiveReport(BaseModel):
    """One archive: its attributes, its instructions by state, its rows that hold data, and its size on disk."""

    name: str
    path: str
    url: str
    zarr: str
    state: ArchiveState = Field(description=_STATE)
    attributes: ArchiveAttributes
    instructions: dict[str, int] = Field(description=_INSTRUCTIONS)
    categories: dict[str, int]
    tokens: int
    bytes: int


class ModelReport(BaseModel):
    """One served model; the facts are known once it is ready."""

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
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Whether extractions can run, and the state of each model."""

    ready: bool
    models: dict[str, str]


class ErrorDetail(BaseModel):
    """What went wrong. `problems` names each broken rule with its field."""

    type: str
    message: str
    problems: list[str]


class ErrorReport(BaseModel):
    """Body of every answer that is not a success."""

    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReport, "description": "What went wrong, every problem at once"}
    for status in (422, "4XX", "5XX")
}
