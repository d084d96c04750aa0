"""Upload, list, read and delete files of instructions, and extract from them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

Start = Callable[..., Any]
JSONL = {"Content-Type": "application/jsonl"}
LINES = [{"id": "a", "text": "one two"}, {"custom_id": "b", "text": "three", "category": "QA"}]
FILE = "\n".join(json.dumps(line) for line in LINES).encode()


def upload(running: Any, content: Any = FILE, headers: dict[str, str] = JSONL, **params: Any) -> httpx.Response:
    """Send a file as the body."""
    response: httpx.Response = running.http.post("/v1/files", content=content, headers=headers, params=params)
    return response


def stored(running: Any) -> list[str]:
    """Return the names of the files on the server's disk."""
    folder = running.service.settings.data_dir / "files"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def refusal(response: httpx.Response, running: Any) -> list[str]:
    """Return the problems of a refused upload; nothing of it may be left."""
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert stored(running) == running.http.get("/v1/files").json()["data"] == []
    problems: list[str] = response.json()["problems"]
    return problems


def test_a_file_is_uploaded_listed_read_and_deleted(start: Start) -> None:
    """A file keeps its bytes, is described with size and number of instructions, and is gone once deleted."""
    running = start()
    response = upload(running, filename="mine é.jsonl")
    assert response.status_code == 201
    report = response.json()
    assert response.headers["location"] == f"{running.url}/v1/files/{report['id']}"
    assert (report["filename"], report["bytes"], report["instructions"]) == ("mine é.jsonl", len(FILE), 2)
    assert report["expires"] is None
    assert running.http.get(f"/v1/files/{report['id']}").json() == report
    assert running.http.get("/v1/files").json()["data"] == [report]
    content = running.http.get(f"/v1/files/{report['id']}/content")
    assert content.content == FILE
    assert content.headers["content-type"] == "application/jsonl"
    assert content.headers["content-disposition"] == "attachment; filename*=UTF-8''mine%20%C3%A9.jsonl"
    part = running.http.get(f"/v1/files/{report['id']}/content", headers={"Range": "bytes=2-5"})
    assert (part.status_code, part.content) == (206, FILE[2:6])
    fresh = running.http.get(f"/v1/files/{report['id']}/content", headers={"If-None-Match": content.headers["etag"]})
    assert fresh.status_code == 304
    assert running.http.delete(f"/v1/files/{report['id']}").status_code == 204
    for path in ("", "/content"):
        assert (
            running.http.get(f"/v1/files/{report['id']}{path}").json()["type"] == "urn:sparcom:problem:upload-not-found"
        )
    assert stored(running) == []


def test_an_uploaded_file_is_extracted(start: Start) -> None:
    """`input_file_id` runs the instructions of a file, even if the file is deleted while the job waits."""
    running = start()
    file_id = upload(running).json()["id"]
    job = running.http.post("/v1/extractions", json={"input_file_id": file_id, "archive": "x"})
    assert job.status_code == 202, job.text
    running.http.delete(f"/v1/files/{file_id}")
    assert running.wait(job.json()["id"])["progress"]["complete"] == 2
    results = running.http.get(job.json()["links"]["results"]).text.splitlines()
    assert [json.loads(line)["custom_id"] for line in results] == ["a", "b"]


def test_an_unknown_file_is_not_found(start: Start) -> None:
    """A request with the id of no file gets 404 and leaves no job."""
    running = start()
    response = running.http.post("/v1/extractions", json={"input_file_id": "file-x"})
    assert (response.status_code, response.json()["title"]) == (404, "Upload not found")
    assert running.http.get("/v1/extractions").json()["data"] == []


def test_files_are_listed_in_parts(start: Start) -> None:
    """`limit` and `after` walk through all files, newest first."""
    running = start()
    ids = [upload(running).json()["id"] for _ in range(3)]
    first = running.http.get("/v1/files", params={"limit": 2}).json()
    assert (first["has_more"], first["last_id"]) == (True, first["data"][1]["id"])
    second = running.http.get("/v1/files", params={"limit": 2, "after": first["last_id"]}).json()
    assert second["has_more"] is False
    assert {file["id"] for file in first["data"] + second["data"]} == set(ids)
    assert running.http.get("/v1/files", params={"after": "file-x"}).status_code == 404


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_a_form_is_parsed_wherever_it_is_split(start: Start, chunk: int) -> None:
    """A form as OpenAI's client sends it is accepted, whatever the parts in which it arrives."""
    running = start()
    form = {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    request = running.http.build_request("POST", "/v1/files", data=form, files={"file": ("in.jsonl", FILE)})
    body = request.read()
    parts = (body[start : start + chunk] for start in range(0, len(body), chunk))
    response = upload(running, parts, {"Content-Type": request.headers["content-type"]})
    assert response.status_code == 201, response.text
    report = response.json()
    assert (report["filename"], report["bytes"]) == ("in.jsonl", len(FILE))
    assert report["expires"] > report["created"]
    assert running.http.get(f"/v1/files/{report['id']}/content").content == FILE


FORM = {"Content-Type": "multipart/form-data; boundary=x"}


def field(name: str, value: bytes = b"v", more: str = "") -> bytes:
    """Return one field of a form with the boundary x."""
    return (
        b'--x\r\nContent-Disposition: form-data; name="'
        + name.encode()
        + b'"'
        + more.encode()
        + b"\r\n\r\n"
        + value
        + b"\r\n"
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "must end with its boundary"),
        (b"--x--\r\n", "must have the field 'file'"),
        (field("other") + b"--x--\r\n", "must have the field 'file'"),
        (field("file", FILE), "must end with its boundary"),
        (field("file", FILE) * 2 + b"--x--\r\n", "'file' occurs again"),
        (field("a") * 2 + b"--x--\r\n", "'a' occurs again"),
        (b"".join(field(f"f{n}") for n in range(12)) + b"--x--\r\n", "at most 10 fields"),
        (field("a", b"v" * 5000) + b"--x--\r\n", "at most 4096 bytes"),
        (b"garbage", "must be a multipart form"),
        (b"--x\r\n" + b"A" * 10_000, "must be a multipart form"),
    ],
)
def test_a_malformed_form_is_refused(start: Start, body: bytes, message: str) -> None:
    """A form that breaks a rule gets 400 and leaves nothing."""
    running = start()
    response = upload(running, body, FORM)
    assert (response.status_code, response.json()["title"]) == (400, "Not multipart")
    assert message in response.json()["detail"]
    assert stored(running) == []


@pytest.mark.parametrize("declared", ["multipart/form-data", "multipart/form-data; boundary=" + "x" * 300])
def test_a_form_needs_a_boundary(start: Start, declared: str) -> None:
    """A form without boundary, or with one that is too long, gets 400."""
    assert upload(start(), FILE, {"Content-Type": declared}).status_code == 400


@pytest.mark.parametrize("declared", ["text/plain", "application/x-www-form-urlencoded", "application/json", ""])
def test_other_types_are_refused(start: Start, declared: str) -> None:
    """Types that a page of another site may send without asking get 415, and so does a missing type."""
    running = start()
    response = upload(running, FILE, {"Content-Type": declared})
    assert (response.status_code, stored(running)) == (415, [])
    assert "application/jsonl" in response.json()["detail"]


def test_a_form_of_another_site_is_refused(start: Start) -> None:
    """A page of another site can make a browser send a form, but the browser names the site."""
    running = start()
    body = field("file", FILE, '; filename="in.jsonl"') + b"--x--\r\n"
    for header in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        assert upload(running, body, FORM | header).status_code == 403
    assert stored(running) == []
    assert upload(running, body, FORM).status_code == 201


@pytest.mark.parametrize(
    "params",
    [
        {"expires_after[seconds]": 5},
        {"expires_after[anchor]": "x"},
        {"purpose": "fine-tune"},
        {"filename": ""},
        {"x": 1},
    ],
)
def test_facts_of_a_file_are_checked(start: Start, params: dict[str, Any]) -> None:
    """Query parameters and fields of a form that break a rule are named, and nothing is stored."""
    running = start()
    assert next(iter(params)) in refusal(upload(running, **params), running)[0]
    form = running.http.post("/v1/files", data=params, files={"file": ("in.jsonl", FILE)})
    assert next(iter(params)) in refusal(form, running)[0]


def test_every_problem_names_its_line(start: Start) -> None:
    """All problems of a file are reported at once, each with its line and the field that the client used."""
    running = start()
    lines = [
        b"\xef\xbb\xbf" + FILE.splitlines()[0],
        b"",
        b"[1",
        b'{"id": "c", "text": ""}',
        b'{"custom_id": "a", "text": "x"}',
        b'{"custom_id": "", "text": "x"}',
        b'{"id": "\xff", "text": "x"}',
        b'{"id": "d", "text": "x", "txet": 1}',
        b"7",
    ]
    found = refusal(upload(running, b"\r\n".join(lines)), running)
    assert [problem[: problem.index(":") + 1] for problem in found] == [f"line {n}:" for n in (3, 4, 5, 6, 7, 8, 9)]
    assert found[0].startswith("line 3: must be one JSON object; ")
    assert found[1] == "line 4: text must not be empty"
    assert found[2] == "line 5: custom_id: must be unique; line 1 has 'a' too"
    assert found[3].startswith("line 6: custom_id: String should have at least 1 character")
    assert found[5].startswith("line 8: txet: unknown field")


def test_problems_are_bounded(start: Start) -> None:
    """300 invalid lines give 100 problems and the number of the others."""
    found = refusal(upload(running := start(), b"x\n" * 300), running)
    assert (len(found), found[-1]) == (101, "… and 200 more")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(start: Start, content: bytes) -> None:
    """A file without instruction is refused."""
    assert "at least one instruction" in refusal(upload(running := start(), content), running)[0]


def test_the_number_of_instructions_is_bounded(start: Start) -> None:
    """`max_instructions` are accepted; one more is refused, and so are endless blank lines."""
    running = start(max_instructions=2)
    assert "at most 2 instructions" in refusal(upload(running, FILE + b'\n{"id": "c", "text": "x"}'), running)[0]
    assert "at most 4 lines" in refusal(upload(running, b"\n" * 100_000), running)[0]
    assert upload(running).status_code == 201


def test_a_large_file_is_refused(start: Start) -> None:
    """`max_file_bytes` are accepted, more get 413: declared or not, as a body or in a form."""
    running = start(max_file_bytes=1000)
    fits = FILE + b" " * (1000 - len(FILE))
    assert upload(running, fits).status_code == 201
    (kept,) = stored(running)
    for content in (fits + b" ", iter([fits, b" "]), b" " * 10**6):
        response = upload(running, content)
        assert (response.status_code, response.json()["title"]) == (413, "Body too large")
    assert running.http.post("/v1/files", files={"file": ("in.jsonl", fits + b" ")}).status_code == 413
    assert stored(running) == [kept]


def test_a_long_line_is_refused_and_the_rest_is_checked(start: Start) -> None:
    """A line of more than 16 MiB is one problem; later lines keep their numbers."""
    running = start()
    long = b'{"id": "l", "text": "' + b"x" * (40 * 2**20) + b'"}\n'
    found = refusal(upload(running, FILE + b"\n" + long + b"["), running)
    assert [problem[:7] for problem in found] == ["line 3:", "line 4:"]
    assert "at most 16,777,216 bytes" in found[0]


def test_leftovers_of_a_crash_are_removed(start: Start, tmp_path: Path) -> None:
    """At start, partial files and files without row are removed, and rows without file are forgotten."""
    running = start()
    kept, lost = (upload(running).json()["id"] for _ in range(2))
    running.stop()
    folder = tmp_path / "data" / "files"
    (folder / f"{lost}.jsonl").unlink()
    for name in ("file-1.jsonl", "file-2.jsonl.partial"):
        (folder / name).write_bytes(b"x")
    again = start()
    assert stored(again) == [f"{kept}.jsonl"]
    assert [file["id"] for file in again.http.get("/v1/files").json()["data"]] == [kept]


def test_an_expired_file_is_gone(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """An expired file is not found even before it is removed, and the next round removes it."""
    running = start()
    file_id = upload(running, **{"expires_after[seconds]": 3600}).json()["id"]
    assert running.http.get(f"/v1/files/{file_id}").status_code == 200
    later = 2**60
    monkeypatch.setattr("sparcom_server.uploads.store.now", lambda: later)
    assert running.http.get(f"/v1/files/{file_id}").status_code == 404
    assert running.http.get("/v1/files").json()["data"] == []
    assert running.http.post("/v1/extractions", json={"input_file_id": file_id}).status_code == 404
    assert stored(running) != []
    asyncio.run(running.service.uploads.expire())
    assert stored(running) == []


def test_a_broken_upload_leaves_nothing(start: Start) -> None:
    """A client that disconnects in the middle leaves no file."""
    running = start()

    def broken() -> Any:
        yield FILE
        running.wait_for(lambda: stored(running) != [])
        raise ConnectionError

    with pytest.raises(ConnectionError):
        upload(running, broken())
    running.http.close()
    running.wait_for(lambda: stored(running) == [])
