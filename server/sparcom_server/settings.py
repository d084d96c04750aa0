"""All settings of the service in one class, read once when the app is created."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sparcom_server.schemas.requests import Limits


def _check_origin(origin: str) -> str:
    if not re.fullmatch(r"https?://[a-z0-9.\-\[\]:]+", origin):
        raise ValueError(
            "an origin must be scheme, host and, if it is not the default, port, in lower case, such as "
            f"https://lab.example or http://localhost:3000; it is {origin!r}"
        )
    return origin


class ServerSettings(BaseModel):
    """Address, data folder and limits of the service.

    data_dir: folder of the data; archives are archives/NAME.zarr in it.
    allowed_hosts: names that the Host header may have, besides `host`, localhost, this machine's own name and any IP
        address; `*` allows every name.
    allow_anonymous: answer without API keys on an address that others can reach, as long as no key was ever created.
    cors_origins: origins of pages that may read responses and send requests, such as https://lab.example.
    key_limits: limits of API keys that have no limit of their own; null for no limit.
    max_body_bytes: largest request body; a larger one gets status 413.
    max_file_bytes: largest uploaded file; a larger one gets status 413.
    max_instructions: instructions per request or file; more get status 422.
    max_submissions: requests validated at the same time, of them one large one; others wait.
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
    allow_anonymous: bool = False
    cors_origins: tuple[Annotated[str, AfterValidator(_check_origin)], ...] = ()
    key_limits: Limits = Limits(queued_instructions=1_000_000, event_streams=50)
    max_body_bytes: int = Field(default=64 * 2**20, ge=1)
    max_file_bytes: int = Field(default=200 * 2**20, ge=1)
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
