"""All settings of the service in one class, read once when the app is created."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class ServerSettings(BaseModel):
    """Address, data folder and limits of the service.

    data_dir: folder of the data; archives are archives/NAME.zarr in it.
    allowed_hosts: names that the Host header may have, besides `host`, localhost, this machine's own name and any IP
        address; `*` allows every name.
    max_body_bytes: largest request body; a larger one gets status 413.
    max_instructions: instructions per request; more get status 422.
    max_submissions: requests validated and tokenized at the same time; others wait.
    max_connections: open connections, fewer if the process may open few descriptors. Beyond the limit, the longest
        silent one is closed; if the service owes every client a response, a new one gets status 503.
    max_event_streams: open event streams; one more gets status 503.
    request_seconds: time limit for the headers of a request, and for an idle connection.
    body_seconds: time limit for the body of a request, extended while it arrives at 16 KiB per second.
    send_seconds: longest time in which a client may read nothing of a response.
    max_queued_jobs: jobs that may wait besides the running one; one more gets status 429.
    database: URL of the database; by default SQLite in the data folder.
    max_loaded_models: engines in memory at once.
    max_engine_restarts: restarts of an engine in a row without a complete instruction; after that the service ends.
    passed_over_seconds: how long jobs whose model is loaded may start before an earlier one of another model.
    warn_free_bytes: free space of the data folder's disk below which the log and /ready warn.
    min_free_bytes: free space below which the running job pauses and no other starts.
    event_seconds: shortest time between two progress events of a job.
    keep_alive_seconds: longest silence of an event stream; at most 15, since FastAPI then sends its own keep-alive.
    stop_seconds: time for the running job to be suspended when the service stops.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535)
    data_dir: Path = Path("sparcom-data")
    allowed_hosts: tuple[str, ...] = ()
    max_body_bytes: int = Field(default=64 * 2**20, ge=1)
    max_instructions: int = Field(default=50_000, ge=1)
    max_submissions: int = Field(default=2, ge=1)
    max_connections: int = Field(default=1000, ge=1)
    max_event_streams: int = Field(default=100, ge=1)
    request_seconds: float = Field(default=15.0, gt=0)
    body_seconds: float = Field(default=30.0, gt=0)
    send_seconds: float = Field(default=60.0, gt=0)
    max_queued_jobs: int = Field(default=100, ge=0)
    database: str | None = None
    max_loaded_models: int = Field(default=1, ge=1)
    max_engine_restarts: int = Field(default=5, ge=0)
    passed_over_seconds: float = Field(default=600.0, ge=0)
    warn_free_bytes: int = Field(default=5 * 2**30, ge=0)
    min_free_bytes: int = Field(default=2**30, ge=0)
    event_seconds: float = Field(default=0.5, gt=0)
    keep_alive_seconds: float = Field(default=15.0, gt=0)
    stop_seconds: float = Field(default=30.0, gt=0)

    @property
    def archive_dir(self) -> Path:
        """The folder of the archives, absolute."""
        return (self.data_dir / "archives").absolute()
