"""Bad requests get their status and an error with field and rule, and leave nothing behind."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

from helpers import problem_of

Start = Callable[..., Any]
ONE = {"id": "a", "text": "hello"}

CASES = {
    "not json": (b'{"instructions": [', 400, "not-json", "must be JSON"),
    "empty body": (b"", 422, "invalid-input", "body"),
    "not an object": ([1, 2], 422, "invalid-input", "body"),
    "no instructions": ({}, 422, "invalid-input", "exactly one of instructions and input_file_id"),
    "empty batch": ({"instructions": []}, 422, "invalid-input", "the batch must not be empty"),
    "two sources": ({"instructions": [ONE], "input_file_id": "x"}, 422, "invalid-input", "exactly one of instructions"),
    "two ids": ({"instructions": [ONE | {"custom_id": "b"}]}, 422, "invalid-input", "instructions.0: the id must be"),
    "empty custom id": ({"instructions": [{"custom_id": "", "text": "x"}]}, 422, "invalid-input", "0.custom_id: "),
    "one id under two names": (
        {"instructions": [ONE, {"custom_id": "a", "text": "x"}]},
        422,
        "invalid-input",
        "'a' occurs 2 times",
    ),
    "duplicate ids": ({"instructions": [ONE, ONE]}, 422, "invalid-input", "'a' occurs 2 times"),
    "empty text": (
        {"instructions": [ONE, {"id": "b", "text": " "}]},
        422,
        "invalid-input",
        "instructions.1: text must not",
    ),
    "no text": ({"instructions": [{"id": "b"}]}, 422, "invalid-input", "exactly one of text, messages and token"),
    "unknown field": ({"instructions": [ONE], "modle": "x"}, 422, "invalid-input", "modle: unknown field"),
    "unknown instruction field": (
        {"instructions": [ONE | {"txt": ""}]},
        422,
        "invalid-input",
        "instructions.0.txt: unknown field",
    ),
    "unknown option": (
        {"instructions": [ONE], "options": {"position": "all"}},
        422,
        "invalid-input",
        "options.position: unknown field",
    ),
    "option out of range": (
        {"instructions": [ONE], "options": {"positions": "all"}},
        422,
        "invalid-input",
        "max_tokens must be at least",
    ),
    "unknown model": (
        {"instructions": [ONE], "model": "gpt"},
        404,
        "unknown-model",
        "no model 'gpt'; choose one of fake",
    ),
    "path in name": (
        {"instructions": [ONE], "archive": "../up"},
        422,
        "invalid-input",
        "archive: an archive's name",
    ),
    "absolute name": ({"instructions": [ONE], "archive": "/etc/x"}, 422, "invalid-input", "a path is not allowed"),
    "odd name": ({"instructions": [ONE], "archive": "a b"}, 422, "invalid-input", "archive: an archive's name"),
    "newline in name": ({"instructions": [ONE], "archive": "ab\n"}, 422, "invalid-input", "archive: an archive's"),
    "long name": ({"instructions": [ONE], "archive": "a" * 129}, 422, "invalid-input", "1 to 128"),
    "suffix in name": ({"instructions": [ONE], "archive": "a.zarr"}, 422, "invalid-input", "must not end in .zarr"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_requests_are_refused(start: Start, case: str) -> None:
    """Status, type and message match the broken rule; no job and no file is created."""
    body, status, kind, words = CASES[case]
    running = start()
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = running.http.post("/v1/extractions", content=content, headers={"Content-Type": "application/json"})
    assert (response.status_code, problem_of(response)) == (status, kind)
    error = response.json()
    assert words in error["detail"]
    assert error["problems"]
    assert error["status"] == status
    assert running.files() == []
    assert running.http.get("/v1/extractions").json()["data"] == []


def test_every_problem_is_reported_at_once(start: Start) -> None:
    """A batch with four mistakes gets four sentences, each with its location."""
    running = start()
    batch = [ONE, ONE, {"id": "", "text": "x"}, {"id": "c", "text": ""}]
    response = running.post(instructions=batch, archive="a/b", options={"max_tokens": -1})
    problems = response.json()["problems"]
    for words in (
        "archive: ",
        "instructions.2.id: ",
        "instructions.3: text must",
        "options.max_tokens: ",
        "'a' occurs 2",
    ):
        assert sum(words in problem for problem in problems) == 1, words
    assert len(problems) == 5


def test_a_body_that_is_not_declared_as_json_is_refused(start: Start) -> None:
    """Without the content type the status is 415, since pages of other origins can send such requests unasked."""
    running = start()
    response = running.http.post(
        "/v1/extractions", content=json.dumps({"instructions": [ONE]}), headers={"Content-Type": "text/plain"}
    )
    assert response.status_code == 415
    assert running.files() == []


def test_an_archive_that_exists_is_not_touched(start: Start) -> None:
    """A second job of the same name gets 409; the first archive's bytes stay unchanged."""
    running = start()
    running.wait(running.post(archive="kept").json()["id"])
    before = {path: path.read_bytes() for path in running.archives.rglob("*") if path.is_file()}
    response = running.post(archive="kept")
    assert response.status_code == 409
    assert problem_of(response) == "archive-exists"
    assert {path: path.read_bytes() for path in running.archives.rglob("*") if path.is_file()} == before


def test_a_large_body_is_refused(start: Start) -> None:
    """More bytes than the limit give 413, declared or not; exactly the limit is accepted."""
    running = start(max_body_bytes=2000)
    small = json.dumps({"instructions": [ONE]}).encode()
    headers = {"Content-Type": "application/json"}
    fits = small + b" " * (2000 - len(small))
    assert running.http.post("/v1/extractions", content=fits, headers=headers).status_code == 202
    response = running.http.post("/v1/extractions", content=fits + b" ", headers=headers)
    assert (response.status_code, response.json()["problems"][0][:46]) == (
        413,
        "a request body may have at most 2000 bytes; th",
    )
    chunks = iter([small, b" " * 2000, b" " * 2000])
    response = running.http.post("/v1/extractions", content=chunks, headers=headers)
    assert response.status_code == 413
    assert len(running.http.get("/v1/extractions").json()["data"]) == 1


def test_a_declared_length_is_refused_before_the_body_comes(start: Start) -> None:
    """The headers alone get the status 413."""
    running = start(max_body_bytes=2000)
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(b"POST /v1/extractions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("limit", [0, 1001, "x"])
def test_paging_outside_its_range_is_refused(start: Start, limit: object) -> None:
    """Query parameters are validated too, and errors name them."""
    running = start()
    response = running.http.get("/v1/extractions", params={"limit": limit})
    assert response.status_code == 422
    assert response.json()["problems"][0].startswith("query.")


def test_unknown_routes_and_methods_have_the_same_form(start: Start) -> None:
    """404 and 405 have the error body too."""
    running = start()
    assert problem_of(running.http.get("/v2/none")) == "not-found"
    response = running.http.put("/v1/models")
    assert (response.status_code, problem_of(response)) == (405, "method-not-allowed")


def test_deep_nesting_is_refused(start: Start) -> None:
    """A body that would exhaust the parser's stack is a bad request, not a crash."""
    running = start()
    content = b'{"instructions": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    response = running.http.post("/v1/extractions", content=content, headers={"Content-Type": "application/json"})
    assert 400 <= response.status_code < 500
    assert running.http.get("/health").status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {"instructions": [{"id": "\ud800", "text": "x"}]},
        {"instructions": [{"id": "a", "text": "\ud800"}]},
        {"instructions": [ONE], "archive": "\ud800"},
        {"instructions": [ONE], "model": "\ud800"},
        {"instructions": [ONE], "\ud800": 1},
        {"instructions": [ONE], "dataset": {"name": "\ud800"}},
        {"instructions": [ONE], "options": {"max_tokens": "TOO_LONG"}},
    ],
)
def test_invalid_text_and_numbers_are_refused(start: Start, body: dict[str, Any]) -> None:
    """Half a surrogate pair and a number of 5,000 digits are client errors, not server errors."""
    running = start()
    content = json.dumps(body).replace('"TOO_LONG"', "9" * 5000).encode()
    response = running.http.post("/v1/extractions", content=content, headers={"Content-Type": "application/json"})
    assert 400 <= response.status_code < 500, response.text
    assert response.json()["problems"]
    assert running.files() == []


@pytest.mark.parametrize(
    "fields",
    [
        {"options": {"positions": "all", "max_tokens": True}},
        {"options": {"positions": "all", "max_tokens": "3"}},
        {"options": {"add_special_tokens": "yes"}},
        {"analysis": 0},
        {"output_expires_after": {"seconds": "3600"}},
    ],
)
def test_values_of_another_type_are_refused(start: Start, fields: dict[str, Any]) -> None:
    """No value is converted: a string is no number, and a number is no boolean."""
    response = start().post(**fields)
    assert (response.status_code, problem_of(response)) == (422, "invalid-input")


def test_a_number_may_be_written_with_a_fraction_of_zero(start: Start) -> None:
    """3.0 is an integer, as in JSON Schema."""
    job = start().post(options={"positions": "all", "max_tokens": 3.0}).json()
    assert job["options"]["max_tokens"] == 3


@pytest.mark.parametrize("time", ["0.5", "1700000000", "yesterday", "2026-01-31"])
def test_times_need_a_date_and_an_offset(start: Start, time: str) -> None:
    """A number is no time, and a date alone has no offset."""
    response = start().http.get("/v1/extractions", params={"created_after": time})
    assert response.status_code == 422
    assert response.json()["problems"][0].startswith("query.created_after: ")


@pytest.mark.parametrize(
    ("path", "methods"),
    [("/v1/extractions", "GET, POST"), ("/v1/files/x", "DELETE, GET"), ("/v1/archives/x/zarr/y", "GET, HEAD")],
)
def test_a_refused_method_is_told_all_others(start: Start, path: str, methods: str) -> None:
    """`Allow` names every method of the path, not those of one route only."""
    response = start().http.put(path)
    assert (response.status_code, response.headers["Allow"]) == (405, methods)
