"""The methods of both clients, as steps: which requests each sends, and what it makes of the answers."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import httpx
from httpx_sse import SSEError
from pydantic import BaseModel, ValidationError

from sparcom_client import types
from sparcom_client.effects import Block, Effect, Emit, Items, Next, Open, Request, Sleep, Steps
from sparcom_client.errors import NoAnswerError, retry_after
from sparcom_client.exchange import Connection, no_answer, send
from sparcom_client.instructions import Batch, Instructions, read_batch
from sparcom_client.progress import job_bar
from sparcom_client.types import Job

if TYPE_CHECKING:
    from sparcom_data.archive import Archive

POLL_SECONDS = 1.0
PAGE = 100  # entries of a list per request
WATCH_PATIENCE = 600.0  # seconds without an answer, such as during a restart of the server
JSON = {"Content-Type": "application/json"}
JSON_LINES = {"Content-Type": "application/jsonl"}
SUBMIT_TIMEOUT, UPLOAD_TIMEOUT = 300.0, 900.0  # a large batch is checked before the server answers
UPLOAD_EXPIRY = 3600  # seconds; of files that `submit` uploads

Answer = TypeVar("Answer", bound=types.Answer)
Reported = TypeVar("Reported")


def submit(
    api: Connection,
    instructions: Instructions | None = None,
    *,
    input_file_id: str | None = None,
    model: str | None = None,
    tuned: str | None = None,
    archive: str | None = None,
    options: Mapping[str, Any] | BaseModel | None = None,
    dataset: str | None = None,
    analysis: bool = False,
    metadata: Mapping[str, str] | None = None,
    expires: timedelta | None = None,
    idempotency_key: str | None = None,
) -> Steps[Job]:
    """Submit an extraction; return the job, queued.

    Repeats of the request have one Idempotency-Key, so a lost answer never leads to a second job. More than 8 MiB of
    instructions are uploaded first.

    Args:
        instructions: a file of JSON lines, a JSON array or CSV; or objects with the fields of an instruction.
        input_file_id: instead of them, the id of an uploaded file.
        model: a served model; required if the server has several.
        tuned: a fine-tuned model, which runs after `model` on the same tokens, into a second archive.
        archive: name of the archive; by default from model and time.
        options: fields of `ExtractionOptions`.
        dataset: name of the data set; by default the file's.
        analysis: analyze the archives once they are complete.
        metadata: up to 16 keys and values for your own use.
        expires: delete job and archives this long after the submission: 1 hour to 30 days.
        idempotency_key: a key of your own; with it, a second call with the same arguments returns the first job.
            Uploaded instructions get a new file each time, so that the server refuses the second call.

    Raises:
        RequestRefusedError: the server found problems; lists them.
        InvalidInputError: the file breaks rules; lists them, with their lines.
        ServerError: the server refused for another reason, or does not answer.
    """
    if (instructions is None) == (input_file_id is None):
        raise TypeError("exactly one of instructions and input_file_id must be given")
    batch: Batch | None = None
    uploaded: types.UploadedFile | None = None
    try:
        if instructions is not None:
            batch = yield Block(partial(read_batch, instructions))
            dataset = batch.name if dataset is None else dataset
            if batch.file is not None:
                uploaded = yield from upload(api, batch.file, expires=timedelta(seconds=UPLOAD_EXPIRY))
                input_file_id = uploaded.id
        head = {
            "model": model,
            "tuned": tuned,
            "archive": archive,
            "options": options.model_dump(mode="json") if isinstance(options, BaseModel) else options,
            "dataset": {"name": dataset} if dataset else None,
            "analysis": analysis or None,
            "metadata": metadata,
            "output_expires_after": {"seconds": int(expires.total_seconds())} if expires else None,
            "input_file_id": input_file_id,
        }
        body = json.dumps({name: value for name, value in head.items() if value is not None}).encode()
        if batch is not None and uploaded is None:
            comma = b"," if len(body) > 2 else b""
            body = b'{"instructions":[' + b",".join(batch.lines) + b"]" + comma + body[1:]
        headers = JSON | {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        request = Request("POST", "/v1/extractions", headers=headers, content=body, timeout=SUBMIT_TIMEOUT)
        return _parse(Job, (yield from send(api, request)))
    finally:
        if batch is not None:
            batch.close()


def upload(
    api: Connection, path: str | Path, *, filename: str | None = None, expires: timedelta | None = None
) -> Steps[types.UploadedFile]:
    """Upload a file of instructions, one JSON object per line. It is streamed, never held whole.

    Args:
        filename: name to show in lists; by default that of the file.
        expires: delete it this long after the upload: 1 hour to 30 days.
    """
    path = Path(path)
    params: dict[str, Any] = {"filename": filename or path.name}
    if expires is not None:
        params["expires_after[seconds]"] = int(expires.total_seconds())
    request = Request("POST", "/v1/files", params, JSON_LINES, path, UPLOAD_TIMEOUT)
    return _parse(types.UploadedFile, (yield from send(api, request)))


def job(api: Connection, job_id: str) -> Steps[Job]:
    """Return one job."""
    return _parse(Job, (yield from send(api, Request("GET", f"/v1/extractions/{_quoted(job_id)}"))))


def jobs(
    api: Connection,
    *,
    state: str | Sequence[str] | None = None,
    model: str | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Items[Job]:
    """Iterate over the jobs, newest first; a page at a time is requested. All given filters must match.

    Args:
        state: one or more states. created_after, created_before: times with a time zone.
    """
    params = {
        "state": state,
        "model": model,
        "created_after": created_after and created_after.isoformat(),
        "created_before": created_before and created_before.isoformat(),
        "metadata": [f"{key}:{value}" for key, value in (metadata or {}).items()],
    }
    return _pages(api, "/v1/extractions", Job, params)


def cancel(api: Connection, job_id: str) -> Steps[Job]:
    """Cancel a job; return it. Complete instructions stay. Raises ConflictError if it has ended."""
    request = Request("DELETE", f"/v1/extractions/{_quoted(job_id)}")
    # If the answer to the first attempt was lost, the second may find the job cancelled.
    response = yield from send(api, request, accepted=lambda status, n: status < 300 or (status == 409 and n > 1))
    if response.status_code == httpx.codes.CONFLICT:
        return (yield from job(api, job_id))
    return _parse(Job, response)


def watch(api: Connection, job: str | Job, *, patience: float = WATCH_PATIENCE) -> Items[Job]:
    """Iterate over a job's reports, one after each change; the last has a final state.

    Follows the server's events, and asks for the job where they break off. Goes on after a restart of the server.

    Args:
        patience: longest time without an answer, in seconds.
    """
    return _follow(api, job, patience, lambda report: [Emit(report)])


def wait(
    api: Connection,
    job: str | Job,
    *,
    progress: bool | Callable[[Job], None] = True,
    patience: float = WATCH_PATIENCE,
) -> Steps[Job]:
    """Wait until a job has ended, also across restarts of the server; return it.

    Args:
        progress: show a bar on standard error; or a function that is called with the job after each change.
        patience: longest time without an answer, in seconds.
    """
    last: list[Job] = []
    bar = nullcontext(progress) if callable(progress) else job_bar() if progress else nullcontext(lambda _: None)
    with bar as show:

        def report(changed: Job) -> tuple[()]:
            last[:] = [changed]
            show(changed)
            return ()

        yield from _follow(api, job, patience, report)
    return last[0]


def _follow(
    api: Connection, watched: str | Job, patience: float, report: Callable[[Job], Iterable[Reported]]
) -> Generator[Effect | Reported, Any, None]:
    job_id, seen = watched.id if isinstance(watched, Job) else watched, ""
    while True:
        pause = POLL_SECONDS
        try:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": seen} if seen else {})
            response = yield Open(Request("GET", f"/v1/extractions/{_quoted(job_id)}/events", headers=headers), True)
            if not response.is_success:  # the server has no stream left
                pause = retry_after(response) or POLL_SECONDS
            while response.is_success and (event := (yield Next())) is not None:
                if not event.data:  # a keep-alive: httpx-sse makes an event of any blank line after the first id
                    continue
                changed, seen = Job.model_validate_json(event.data), event.id
                yield from report(changed)
                if changed.ended:
                    return
        except (httpx.TransportError, SSEError):
            pass
        request = Request("GET", f"/v1/extractions/{_quoted(job_id)}")
        changed = _parse(Job, (yield from send(api, request, patience=patience)))
        yield from report(changed)
        if changed.ended:
            return
        yield Sleep(pause)


def results(api: Connection, job_id: str) -> Items[types.Result]:
    """Iterate over the complete instructions of a job, also while it runs."""
    return _lines(api, f"/v1/extractions/{_quoted(job_id)}/results", types.Result)


def errors(api: Connection, job_id: str) -> Items[types.FailedResult]:
    """Iterate over the failed and cancelled instructions of a job, also while it runs."""
    return _lines(api, f"/v1/extractions/{_quoted(job_id)}/errors", types.FailedResult)


def archives(api: Connection) -> Items[types.ArchiveSummary]:
    """Iterate over the archives, newest first."""
    return _pages(api, "/v1/archives", types.ArchiveSummary)


def archive(api: Connection, name: str) -> Steps[types.ArchiveInfo]:
    """Return the facts of one archive."""
    return _parse(types.ArchiveInfo, (yield from send(api, Request("GET", f"/v1/archives/{_quoted(name)}"))))


def delete_archive(api: Connection, name: str) -> Steps[None]:
    """Delete an archive from the server's disk. Raises ConflictError while a job uses it."""
    yield from _delete(api, f"/v1/archives/{_quoted(name)}")


def open_archive(api: Connection, archive: str | Job | types.JobArchive) -> Steps[Archive]:
    """Open an archive for reading, straight from the server. Of a job, the first one; give one of `job.archives` for
    another."""
    from sparcom_data.archive import open_archive as opened

    name = archive if isinstance(archive, str) else archive.archive
    address = f"{api.server}/v1/archives/{_quoted(name)}/zarr"
    found: Archive = yield Block(partial(opened, address, headers=api.headers))
    return found


def files(api: Connection) -> Items[types.UploadedFile]:
    """Iterate over the uploaded files, newest first."""
    return _pages(api, "/v1/files", types.UploadedFile)


def delete_file(api: Connection, file_id: str) -> Steps[None]:
    """Delete an uploaded file. Jobs that were submitted with it have their own copy."""
    yield from _delete(api, f"/v1/files/{_quoted(file_id)}")


def models(api: Connection) -> Steps[list[types.Model]]:
    """Return the served models."""
    response = yield from send(api, Request("GET", "/v1/models"))
    return [types.Model.model_validate(model) for model in response.json()["models"]]


def create_key(
    api: Connection, name: str, *, role: str = "user", limits: Mapping[str, int] | None = None
) -> Steps[types.NewKey]:
    """Create an API key for the owner `name`; needs an admin's key. The answer alone holds the key."""
    body = json.dumps({"name": name, "role": role, "limits": dict(limits or {})}).encode()
    request = Request("POST", "/v1/keys", headers=JSON, content=body)
    return _parse(types.NewKey, (yield from send(api, request, may_repeat=False)))


def list_keys(api: Connection) -> Items[types.Key]:
    """Iterate over the API keys, newest first, without their secrets; needs an admin's key."""
    return _pages(api, "/v1/keys", types.Key)


def revoke_key(api: Connection, key_id: str) -> Steps[types.Key]:
    """Refuse a key from now on; needs an admin's key."""
    return _parse(types.Key, (yield from send(api, Request("DELETE", f"/v1/keys/{_quoted(key_id)}"))))


def ready(api: Connection) -> Steps[types.Readiness]:
    """Return whether the server can run jobs. Is not retried: raises NoAnswerError if no server answers."""
    response = yield from send(
        api, Request("GET", "/ready"), accepted=lambda status, _: status in {200, 503}, patience=0
    )
    return _parse(types.Readiness, response)


def _pages(api: Connection, path: str, kind: type[Answer], params: Mapping[str, Any] | None = None) -> Items[Answer]:
    given = {"limit": PAGE} | {name: value for name, value in (params or {}).items() if value}
    while True:
        page = (yield from send(api, Request("GET", path, given))).json()
        for item in page["data"]:
            yield Emit(kind.model_validate(item))
        if not page["has_more"]:
            return
        given["after"] = page["last_id"]


def _lines(api: Connection, path: str, kind: type[Answer]) -> Items[Answer]:
    """Emit each line once, also if the stream breaks off and is opened again."""
    seen: set[tuple[str, int]] = set()
    while True:
        received = len(seen)
        yield from send(api, Request("GET", path), effect=Open)
        try:
            while (line := (yield Next())) is not None:
                item = json.loads(line)
                if (found := (item["archive"], item["index"])) not in seen:
                    seen.add(found)
                    yield Emit(kind.model_validate(item))
        except httpx.TransportError as error:
            if len(seen) == received:
                raise no_answer(api, error) from error
        else:
            return


def _delete(api: Connection, path: str) -> Steps[None]:
    # If the answer to the first attempt was lost, the second finds nothing.
    yield from send(api, Request("DELETE", path), accepted=lambda status, n: status < 300 or (status == 404 and n > 1))


def _parse(kind: type[Answer], response: httpx.Response) -> Answer:
    try:
        return kind.model_validate_json(response.content)
    except ValidationError as error:
        raise NoAnswerError(
            f"{response.url} must answer as a SPARCOM server of this release; it does not: {error.errors()[0]['msg']}. "
            "Check the address, and the server's release"
        ) from error


def _quoted(name: str) -> str:
    return quote(name, safe="")
