"""A client of the REST API: submit, ask, watch. It knows HTTP and the form of errors, not how progress is shown."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
from httpx_sse import SSEError, connect_sse

from sparcom_data.errors import InvalidInputError, SparcomError

ENDED = frozenset({"complete", "failed", "cancelled"})
POLL_SECONDS = 1.0
GIVE_UP_SECONDS = 60.0
TIMEOUT = httpx.Timeout(60.0, connect=10.0)  # an event stream is silent for 15 s at most
SUBMIT_TIMEOUT = httpx.Timeout(900.0, connect=10.0)  # a large batch is tokenised before the server answers


class ServerError(SparcomError):
    """The server refused, or does not answer."""


class Client:
    """One server. Use it as a context manager."""

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
        """Post an extraction; the job as the server describes it.

        Raises:
            InvalidInputError: the server found problems with the batch.
            ServerError: it refused for another reason, or does not answer.
        """
        content = json.dumps(body).encode()
        return self._call("POST", "/v1/extractions", content=content, timeout=SUBMIT_TIMEOUT)

    def job(self, job_id: str) -> dict[str, Any]:
        """The job as it is now."""
        return self._call("GET", f"/v1/extractions/{job_id}")

    def archive(self, name: str) -> dict[str, Any]:
        """The facts of an archive."""
        return self._call("GET", f"/v1/archives/{quote(name, safe='')}")

    def delete_archive(self, name: str) -> None:
        """Remove an archive from the server's disk.

        Raises:
            ServerError: there is none, a job holds it, or the server does not answer.
        """
        self._call("DELETE", f"/v1/archives/{quote(name, safe='')}")

    def watch(self, job_id: str) -> Iterator[dict[str, Any]]:
        """The job each time it has changed, the last time when it has ended.

        Listens to the server's events. Where the stream breaks or cannot be had it asks again and again instead, and
        tries the stream once more after each answer; nothing is lost, since each answer holds the whole job.

        Raises:
            ServerError: the server does not answer for a minute, or no longer knows the job.
        """
        heard = time.monotonic()
        while True:
            for job in self._stream(job_id):
                heard = time.monotonic()
                yield job
                if job["state"] in ENDED:
                    return
            try:
                job = self._get_job(job_id)
            except httpx.TransportError as error:
                if time.monotonic() - heard > self._give_up:
                    raise self._no_answer(error) from error
            else:
                heard = time.monotonic()
                yield job
                if job["state"] in ENDED:
                    return
            time.sleep(self._poll_seconds)

    def _stream(self, job_id: str) -> Iterator[dict[str, Any]]:
        """The events until the stream ends or breaks; which of the two, the next question to the server shows."""
        try:
            with connect_sse(self._http, "GET", f"{self.server}/v1/extractions/{job_id}/events") as source:
                if source.response.is_success:
                    yield from (json.loads(event.data) for event in source.iter_sse())
        except (httpx.TransportError, SSEError):
            return

    def _get_job(self, job_id: str) -> dict[str, Any]:
        return _checked(self._http.get(f"{self.server}/v1/extractions/{job_id}"))

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"} if "content" in options else {}
        try:
            return _checked(self._http.request(method, self.server + path, headers=headers, **options))
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise self._no_answer(error) from error

    def _no_answer(self, error: Exception) -> ServerError:
        reason = str(error) or type(error).__name__
        return ServerError(
            f"no server answers at {self.server}: {reason}. Start one with `sparcom serve`, or check --server"
        )


def _checked(response: httpx.Response) -> dict[str, Any]:
    """The JSON of a success, empty where it has no content; the server's own words as an error otherwise."""
    if response.status_code == httpx.codes.NO_CONTENT:
        return {}
    try:
        body = response.json()
    except ValueError as error:
        raise ServerError(f"{response.url} is no SPARCOM server: status {response.status_code}, no JSON") from error
    if response.is_success and isinstance(body, dict):
        return body
    detail = body.get("error") if isinstance(body, dict) else None
    if not isinstance(detail, dict):
        raise ServerError(f"{response.url} is no SPARCOM server: status {response.status_code}")
    if response.status_code == 422:
        raise InvalidInputError(detail["problems"])
    raise ServerError(f"the server refused (status {response.status_code}): {detail['message']}")
