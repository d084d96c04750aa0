"""openapi.json: an example for every route, which works, and answers that are as documented."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import jsonschema
import pytest
from fastapi import Depends

from fake_engine import FakeEngine
from fixtures import new_key
from sparcom_server.http import examples
from sparcom_server.routes.common import AdminOnly, PolledRoute, authenticate

Start = Callable[..., Any]
NO_CONTENT = {204, 304}


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield method, path and description of each operation, deletions last."""
    found = [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    yield from sorted(found, key=lambda one: one[0] == "DELETE")


def documented(operation: dict[str, Any], status: int) -> dict[str, Any]:
    """Return the description of a response."""
    responses = operation["responses"]
    response: dict[str, Any] = responses.get(str(status)) or responses[f"{status // 100}XX"]
    return response


def check_schema(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    """Validate a value against a schema of the document."""
    whole = schema | {"components": document["components"]}
    jsonschema.Draft202012Validator(whole, format_checker=jsonschema.FormatChecker()).validate(value)


def check_response(document: dict[str, Any], operation: dict[str, Any], response: httpx.Response) -> None:
    """Check status, type, headers and body of a response."""
    description = documented(operation, response.status_code)
    if response.status_code in NO_CONTENT:
        assert response.content == b""
        return
    media_type = response.headers["content-type"].partition(";")[0]
    content = description["content"][media_type]
    for name in description.get("headers", {}):
        optional = name in {"Idempotent-Replayed", "Retry-After", "WWW-Authenticate"}
        assert optional or name in response.headers, name
    if media_type.endswith("json"):
        check_schema(document, content["schema"], response.json())
    if media_type == "application/jsonl":
        for line in response.text.splitlines():
            check_schema(document, content["itemSchema"], json.loads(line))


def test_every_example_is_valid_in_itself(start: Start) -> None:
    """Each operation has examples of its parameters, its body and its answer, and they fit their schemas."""
    document = start().http.get("/openapi.json").json()
    for method, path, operation in operations(document):
        bodies = operation.get("requestBody", {}).get("content", {})
        answers = [
            answer
            for status, response in operation["responses"].items()
            if status[0] == "2"
            for answer in response.get("content", {}).values()
        ]
        assert "204" in operation["responses"] or any("example" in answer for answer in answers), (method, path)
        assert not bodies or any("example" in body for body in bodies.values()), (method, path)
        for content in [*bodies.values(), *answers]:
            if "example" in content:
                check_schema(document, content.get("schema", {"type": "string"}), content["example"])
        for parameter in operation.get("parameters", []):
            assert parameter["in"] != "path" or parameter["example"], (method, path)
        assert {"4XX", "5XX"} <= operation["responses"].keys() or path in {"/health", "/ready"}, (method, path)


def test_every_example_works(start: Start) -> None:
    """The server accepts the example of each operation and answers as documented."""
    running = start(FakeEngine(pause=0.2))
    key = new_key(running, "admin", "admin")
    http = httpx.Client(base_url=running.url, timeout=20, headers={"Authorization": f"Bearer {key}"})
    running.http.close()
    running.http = http
    real = dict(examples.PARAMETERS)  # the ids that this server gave
    document = http.get("/openapi.json").json()
    seen = set()
    for method, path, operation in operations(document):
        if (method, path) == ("DELETE", "/v1/extractions/{job_id}"):  # one that has not ended
            real["job_id"] = running.post(100).json()["id"]
        values = {
            parameter["name"]: real.get(parameter["name"], parameter["example"])
            for parameter in operation.get("parameters", [])
            if parameter["in"] == "path"
        }
        bodies = [(kind, body) for kind, body in operation.get("requestBody", {}).get("content", {}).items()]
        kind, example = next(((kind, body["example"]) for kind, body in bodies if "example" in body), ("", None))
        sent = {"json": example} if kind == "application/json" else {"content": example}
        headers = {"Content-Type": kind} if kind else {}
        response = http.request(method, path.format(**values), headers=headers, **sent)
        if "analysis" in path:  # the example asks for none
            assert response.status_code == 404
        else:
            assert response.status_code < 300, (method, path, response.text)
        check_response(document, operation, response)
        seen.add((method, path))
        if method == "POST":
            name = {"/v1/extractions": "job_id", "/v1/files": "file_id", "/v1/keys": "key_id"}[path]
            real[name] = response.json()["id"]
        if path == "/v1/extractions" and method == "POST":
            running.wait(real["job_id"])
            refused = http.delete(f"/v1/extractions/{real['job_id']}")
            check_response(document, document["paths"]["/v1/extractions/{job_id}"]["delete"], refused)
            assert refused.status_code == 409
    assert len(seen) >= 24


@pytest.mark.parametrize("headers", [{"Range": "bytes=0-3"}, {"Range": "bytes=99999999-"}, {"If-None-Match": "*"}])
def test_parts_of_files_are_documented(start: Start, headers: dict[str, str]) -> None:
    """206, 304 and 416 are answers as documented."""
    running = start()
    running.wait(running.post(archive="first").json()["id"])
    document = running.http.get("/openapi.json").json()
    operation = document["paths"]["/v1/archives/{name}/zarr/{key}"]["get"]
    response = running.http.get("/v1/archives/first/zarr/zarr.json", headers=headers)
    assert response.status_code in {206, 304, 416}
    check_response(document, operation, response)


def test_a_polled_route_refuses_dependencies_that_would_not_run() -> None:
    """A polled route calls nothing but `authenticate`; a route for admins alone would be open to all."""
    with pytest.raises(TypeError, match="no dependency but authenticate"):
        PolledRoute("/jobs", lambda: None, dependencies=[Depends(authenticate), AdminOnly])
