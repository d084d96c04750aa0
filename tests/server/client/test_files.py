"""Uploads, results and keys through both clients."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from fake_engine import FakeEngine
from sparcom_client import NotAuthenticatedError, NotFoundError
from sparcom_data.errors import StorageError

Start = Callable[..., Any]
Connect = Callable[..., Any]


def items(count: int) -> Iterator[dict[str, str]]:
    """Yield small instructions."""
    return ({"id": f"i{number}", "text": "one two three"} for number in range(count))


def test_many_instructions_are_uploaded(
    start: Start, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the limit, an iterable or a file of JSON lines becomes an upload that expires; one job results."""
    monkeypatch.setattr("sparcom_client.instructions.LARGE", 200)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    client = connect(start().url)
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items(30)))
    for source in (items(30), tmp_path / "many.jsonl"):
        job = client.wait(client.submit(source), progress=False)
        assert job.succeeded
        assert client.open_archive(job).instructions.id == [f"i{number}" for number in range(30)]
    assert [file.instructions for file in client.files()] == [30, 30]
    assert all(file.expires for file in client.files())
    assert [path.name for path in tmp_path.iterdir() if path.name != "data"] == ["many.jsonl"], "no temporary file left"


def test_an_uploaded_file_is_used_by_its_id(start: Start, connect: Connect, tmp_path: Path) -> None:
    """Files are uploaded, listed, named in a submission, and deleted; a lost answer to the upload is tried again."""
    running, lost = start(), [True]
    client = connect(running.url, drops=lambda request: request.url.path == "/v1/files" and bool(lost and lost.pop()))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items(3)))
    file = client.upload(tmp_path / "a.jsonl", expires=timedelta(hours=3))
    assert (file.filename, file.instructions, file.bytes) == ("a.jsonl", 3, (tmp_path / "a.jsonl").stat().st_size)
    assert client.wait(client.submit(input_file_id=file.id), progress=False).progress.complete == 3
    client.delete_file(file.id)
    with pytest.raises(NotFoundError):
        client.submit(input_file_id=file.id)


def test_results_and_errors_are_read(start: Start, connect: Connect) -> None:
    """Complete instructions are results, failed ones errors; of two models, those of both archives."""
    client = connect(start(FakeEngine("base", max_prompt_tokens=3), FakeEngine("tuned")).url)
    batch = [*items(2), {"id": "long", "text": "a b c d", "category": "X"}]
    job = client.wait(client.submit(batch, model="base", tuned="tuned", archive="r"), progress=False)
    found = [(line.archive, line.id, line.prompt_length) for line in client.results(job.id)]
    assert found == [
        ("r", "i0", 3),
        ("r", "i1", 3),
        *(("r-tuned", *rest) for rest in (("i0", 3), ("i1", 3), ("long", 4))),
    ]
    (failed,) = client.errors(job.id)
    assert (failed.id, failed.index, failed.error.code) == ("long", 2, "failed")
    assert failed.error.message == "the prompt may have 3 tokens"


def test_a_broken_download_goes_on(connect: Connect) -> None:
    """A stream that breaks off is opened again, and no line comes twice; one without progress is an error."""
    error = {"code": "failed", "message": ""}
    lines = [json.dumps({"archive": "a", "index": n, "id": f"i{n}", "model": "m", "error": error}) for n in range(4)]

    class Broken(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __init__(self, count: int) -> None:
            self.count = count

        def __iter__(self) -> Iterator[bytes]:
            yield from (f"{line}\n".encode() for line in lines[: self.count])
            if self.count < len(lines):
                raise httpx.ReadError("lost")

        async def __aiter__(self) -> Any:
            for part in self:
                yield part

    counts = [2, 3, 4]
    transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=Broken(counts.pop(0))))
    client = connect("http://server", transport=transport)
    assert [line.index for line in client.errors("j")] == [0, 1, 2, 3]
    counts[:] = [2, 2]
    with pytest.raises(Exception, match="no server answers"):
        list(client.errors("j"))


def test_a_key_opens_everything(start: Start, connect: Connect) -> None:
    """With keys, requests, event streams and archives need one; keys are made, listed and revoked."""
    running = start()
    admin = connect(running.url, key=connect(running.url).create_key("root", role="admin").key)
    new = admin.create_key("ann", limits={"event_streams": 3})
    assert (new.name, new.role, new.limits.event_streams) == ("ann", "user", 3)
    user = connect(running.url, key=new.key)
    job = user.wait(user.submit(items(2), archive="mine"), progress=False)
    assert job.owner == "ann"
    assert job.archive_path is None
    assert user.open_archive(job).read_active(0, 2).shape[0] == 2
    assert {key.name for key in admin.list_keys()} == {"root", "ann"}
    assert admin.revoke_key(new.id).revoked
    with pytest.raises(NotAuthenticatedError):
        user.job(job.id)
    with pytest.raises(StorageError, match="401: the server wants an API key"):
        user.open_archive("mine")
