"""Types of the server's answers. Fields that a newer server adds are ignored. Times are ISO 8601, UTC."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from sparcom_data.progress import Progress

FINAL_STATES = frozenset({"complete", "failed", "cancelled"})


class Answer(BaseModel):
    """Base class: frozen, and lenient with newer servers."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Failure(Answer):
    """One failed instruction and the reason."""

    id: str
    error: str


class JobError(Answer):
    """Reason why a job as a whole failed."""

    type: str
    message: str


class JobArchive(Answer):
    """One model's part of a job, and its archive. path: on the server, for admins. zarr: address for `zarr.open`."""

    model: str
    archive: str
    path: str | None
    run: str | None
    state: str
    progress: Progress
    url: str
    zarr: str


class JobLinks(Answer):
    """Addresses of a job and its first archive."""

    self: str
    events: str
    results: str
    errors: str
    archive: str
    zarr: str
    analysis: str | None = None


class Job(Answer):
    """One extraction job. `state` is queued, loading, running, complete, failed, cancelling or cancelled.

    reason: why it waits, or why it is in its state. progress: sum over `archives`. failures: the first 20 failed
    instructions once the job has ended. `archive`, `archive_path` and `run` are those of the first of `archives`.
    """

    id: str
    state: str
    reason: str | None
    owner: str | None
    model: str
    tuned: str | None
    archive: str
    archive_path: str | None
    run: str | None
    options: dict[str, Any]
    dataset: dict[str, Any]
    analysis: bool
    metadata: dict[str, str]
    created: str
    started: str | None
    finished: str | None
    expires: str | None
    queue_position: int | None
    progress: Progress
    archives: list[JobArchive]
    error: JobError | None
    failures: list[Failure]
    warnings: list[str]
    links: JobLinks

    @property
    def ended(self) -> bool:
        """Whether the job is in a final state."""
        return self.state in FINAL_STATES

    @property
    def succeeded(self) -> bool:
        """Whether the job has ended and every instruction is complete."""
        return self.state == "complete" and self.progress.complete == self.progress.instructions


class ArchiveSummary(Answer):
    """One archive of the list. instructions: by state. error: the reason that it cannot be read, or None."""

    name: str
    owner: str | None
    path: str | None
    url: str
    zarr: str
    created: str | None
    model: str | None
    dataset: str | None
    state: str | None
    instructions: dict[str, int] | None
    error: str | None


class ArchiveInfo(Answer):
    """Facts of one archive. attributes: as in the archive. tokens: rows of complete instructions. bytes: on disk."""

    name: str
    owner: str | None
    path: str | None
    url: str
    zarr: str
    state: str
    attributes: dict[str, Any]
    instructions: dict[str, int]
    categories: dict[str, int]
    tokens: int
    bytes: int


class UploadedFile(Answer):
    """An uploaded file of instructions."""

    id: str
    filename: str
    bytes: int
    instructions: int
    sha256: str
    owner: str | None
    created: str
    expires: str | None


class KeyLimits(Answer):
    """Limits of a key. None: the server's default."""

    queued_instructions: int | None = None
    tokens_per_day: int | None = None
    storage_bytes: int | None = None
    requests_per_minute: int | None = None
    event_streams: int | None = None


class Key(Answer):
    """One API key, without its secret."""

    id: str
    name: str
    role: str
    limits: KeyLimits
    created: str
    revoked: str | None
    last_used: str | None


class NewKey(Key):
    """A new API key. `key` is shown only once."""

    key: str


class Model(Answer):
    """One served model. `state` is unloaded, loading, ready or failed; its facts are known once it was loaded."""

    name: str
    state: str
    healthy: bool
    max_prompt_tokens: int | None
    model: dict[str, Any] | None
    engine: dict[str, Any] | None
    error: str | None


class Readiness(Answer):
    """Whether the server can run jobs, the state of each model, why it is not ready, and what needs attention."""

    ready: bool
    models: dict[str, str]
    problems: list[str] = []
    warnings: list[str] = []


class _Line(Answer):
    model_config = ConfigDict(extra="allow")  # so that a line can be written again as it was


class Result(_Line):
    """One complete instruction. row: its first row on the token axis; None in an archive of counts."""

    id: str
    model: str
    archive: str
    index: int
    prompt_length: int
    token_length: int
    row: int | None
    response: str
    category: str


class ResultError(Answer):
    """Why an instruction has no result. code: failed or cancelled."""

    code: str
    message: str


class FailedResult(_Line):
    """One failed or cancelled instruction."""

    id: str
    model: str
    archive: str
    index: int
    error: ResultError
