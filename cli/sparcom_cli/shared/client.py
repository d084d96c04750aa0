"""A client of the REST API: submit, query and watch extractions, delete archives."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
from httpx_sse import SSEError, connect_sse

from sparcom_data.errors import InvalidInputError, SparcomError

FINAL_STATES = frozenset({"complete", "failed", "cancelled"})
POLL_SECONDS = 1.0
GIVE_UP_SECONDS = 60.0
TIMEOUT = httpx.Timeout(60.0, connect=10.0)  # an event stream is silent for 15 s at most
SUBMIT_TIMEOUT = httpx.Timeout(900.0, connect=10.0)  # a large batch is tokenized before the server answers


class ServerError(SparcomError):
    """The server refused the request or did not answer."""


class Client:
    """A connection to one server, a context manager. Every method raises ServerError."""

    def __init__(self, server: str, *, poll_seconds: float = POLL_SECONDS, give_up: float = GIVE_UP_SECONDS) -> None:
        self.server = server.rstrip("/")
        self._poll_seconds = poll_seconds
        self._give_up = give_up
        self._http = httpx.Client(timeout=TIMEOUT)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def submit(self, body: dict[str, Any]) -> dict[str, Any]:
        """Submit an extraction; return the job. Raises InvalidInputError if the server found problems in it."""
        content, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        return self._call("POST", "/v1/extractions", content=content, headers=headers, timeout=SUBMIT_TIMEOUT)

    def archive(self, name: str) -> dict[str, Any]:
        """Return the server's description of an archive."""
        return self._call("GET", f"/v1/archives/{quote(name, safe='')}")

    def delete_archive(self, name: str) -> None:
        """Delete an archive from the server's disk; the server refuses while a job uses it."""
        self._call("DELETE", f"/v1/archives/{quote(name, safe='')}")

    def watch(self, job_id: str) -> Iterator[dict[str, Any]]:
        """Yield the job after each change, last in its final state.

        Follows the server's events. If the stream breaks or is unavailable, requests the job once, waits, and retries
        the stream. Each answer holds the whole job, so nothing is lost. Gives up after a minute without an answer.
        """
        last_answer = time.monotonic()
        while True:
            for job in self._stream(job_id):
                last_answer = time.monotonic()
                yield job
                if job["state"] in FINAL_STATES:
                    return
            try:
                job = _checked(self._http.get(f"{self.server}/v1/extractions/{job_id}"))
            except httpx.TransportError as error:
                if time.monotonic() - last_answer > self._give_up:
                    raise self._no_answer(error) from error
            else:
                last_answer = time.monotonic()
                yield job
                if job["state"] in FINAL_STATES:
                    return
            time.sleep(self._poll_seconds)

    def _stream(self, job_id: str) -> Iterator[dict[str, Any]]:
        """Yield the job from each event until the stream ends or breaks."""
        try:
            with connect_sse(self._http, "GET", f"{self.server}/v1/extractions/{job_id}/events") as source:
                if source.response.is_success:
                    yield from (json.loads(event.data) for event in source.iter_sse())
        except (httpx.TransportError, SSEError):
            return

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            return _checked(self._http.request(method, self.server + path, **options))
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise self._no_answer(error) from error

    def _no_answer(self, error: Exception) -> ServerError:
        reason = str(error) or type(error).__name__
        return ServerError(
            f"no server answers at {self.server}: {reason}. Start one with `sparcom serve`, or check --server"
        )


def _checked(response: httpx.Response) -> dict[str, Any]:
    """Return the JSON of a successful answer, {} if it has no content; otherwise raise the server's message."""
    if response.status_code == httpx.codes.NO_CONTENT:
        return {}
    try:
        body = response.json()
    except ValueError as error:
        raise ServerError(f"{response.url} is not a SPARCOM server: status {response.status_code}, no JSON") from error
    if response.is_success and isinstance(body, dict):
        return body
    detail = body.get("error") if isinstance(body, dict) else None
    if not isinstance(detail, dict):
        raise ServerError(f"{response.url} is not a SPARCOM server: status {response.status_code}")
    if response.status_code == 422:
        raise InvalidInputError(detail["problems"])
    raise ServerError(f"the server refused (status {response.status_code}): {detail['message']}")
