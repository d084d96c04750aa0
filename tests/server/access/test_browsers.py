"""Browsers: safe headers on every response, CORS for listed origins, and no requests from other sites."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from fixtures import new_key
from sparcom_server.http.headers import DEFAULTS
from sparcom_server.settings import ServerSettings

Start = Callable[..., Any]
LAB = "https://lab.example"
OTHER = "https://evil.example"
JSON = {"Content-Type": "application/json"}


def responses(running: Any, origin: dict[str, str]) -> list[httpx.Response]:
    """Return responses of every kind, and their statuses."""
    http = running.http
    job = running.wait(running.post(1, archive="a").json()["id"])
    http.headers.update(origin)
    found = [
        (200, http.get("/")), (200, http.get("/docs")), (200, http.get("/openapi.json")), (200, http.get("/health")),
        (200, http.get("/metrics")), (200, http.get(f"/v1/extractions/{job['id']}/events")),
        (200, http.get("/v1/archives/a/zarr/zarr.json")), (404, http.get("/v1/archives/a/zarr/none")),
        (206, http.get("/v1/archives/a/zarr/zarr.json", headers={"Range": "bytes=0-3"})),
        (416, http.get("/v1/archives/a/zarr/zarr.json", headers={"Range": "bytes=99999999-"})),
        (404, http.get("/none")), (405, http.put("/health")), (422, http.get("/v1/archives?limit=x")),
        (415, http.post("/v1/extractions", content=b"x")),
        (400, http.post("/v1/extractions", content=b"x", headers=JSON)),
        (421, http.get("/health", headers={"Host": "evil.example"})),
    ]  # fmt: skip
    etag = found[6][1].headers["ETag"]
    found.append((304, http.get("/v1/archives/a/zarr/zarr.json", headers={"If-None-Match": etag})))
    running.service.archives.names = lambda: 1 / 0
    found.append((500, http.get("/v1/archives")))
    assert [response.status_code for _, response in found] == [status for status, _ in found]
    return [response for _, response in found]


def test_every_response_has_safe_headers(start: Start) -> None:
    """Pages, JSON, files, streams and errors of every kind have them, once; no header names the server."""
    for response in responses(start(), {}):
        for name, value in DEFAULTS.items():
            given = response.headers.get_list(name)
            assert len(given) == 1, (response.url, name)
            if name not in {"Cache-Control", "Content-Security-Policy"}:
                assert given == [value]
        assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
        assert "Server" not in response.headers
        assert "Access-Control-Allow-Origin" not in response.headers
        if response.headers.get("Content-Type", "").startswith("text/html"):
            assert "unsafe-inline" not in response.headers["Content-Security-Policy"]


def test_a_listed_origin_may_read_every_response(start: Start) -> None:
    """CORS covers errors of every kind too, and the headers that readers of archives need."""
    for response in responses(start(cors_origins=(LAB,)), {"Origin": LAB}):
        assert response.headers["Access-Control-Allow-Origin"] == LAB, response.url
        assert "Origin" in response.headers["Vary"]
        assert {"ETag", "Content-Range", "Retry-After", "Location"} <= set(
            response.headers["Access-Control-Expose-Headers"].split(", ")
        )
        assert "Access-Control-Allow-Credentials" not in response.headers


@pytest.mark.parametrize("origin", [OTHER, "null", f"{LAB}.evil.example", "http://lab.example", f"{LAB}:444"])
def test_other_origins_may_not(start: Start, origin: str) -> None:
    """Other origins get no CORS header, no preflight, and 403 for requests that change something."""
    running = start(cors_origins=(LAB,))
    headers = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
    assert "Access-Control-Allow-Origin" not in running.http.get("/v1/archives", headers=headers).headers
    asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    preflight = running.http.options("/v1/archives", headers=headers | asked)
    assert (preflight.status_code, preflight.headers.get("Access-Control-Allow-Origin")) == (400, None)
    assert running.http.post("/v1/extractions", json={}, headers=headers).status_code == 403
    running.http.headers["Authorization"] = f"Bearer {new_key(running, 'ann')}"
    assert running.http.post("/v1/extractions", json={}, headers=headers).status_code == 403


def test_pages_of_a_listed_origin_may_send_all_requests(start: Start) -> None:
    """A preflight with the key's header passes without a key; requests that change something pass with it."""
    running = start(cors_origins=("http://localhost:3000", LAB))
    key = new_key(running, "ann")
    for method, wanted in (("GET", "authorization, range"), ("POST", "content-type"), ("DELETE", "authorization")):
        headers = {"Origin": LAB, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": wanted}
        preflight = running.http.options("/v1/archives/a/zarr/x", headers=headers)
        assert preflight.status_code == 200
        assert preflight.headers["Access-Control-Allow-Origin"] == LAB
        assert preflight.headers["X-Content-Type-Options"] == "nosniff"
    browser = {"Origin": LAB, "Sec-Fetch-Site": "cross-site"}
    assert running.http.post("/v1/extractions", json={}, headers=browser).status_code == 401
    browser["Authorization"] = f"Bearer {key}"
    assert running.http.post("/v1/extractions", json={}, headers=browser).status_code == 422
    assert running.http.delete("/v1/archives/none", headers=browser).status_code == 404


@pytest.mark.parametrize(
    "origin", ["*", "null", "lab.example", "https://lab.example/", "https://Lab.example", "file://"]
)
def test_origins_are_listed_exactly(origin: str) -> None:
    """An origin that no browser sends, or that means everyone, is refused at start."""
    with pytest.raises(ValidationError, match="an origin must be scheme, host and"):
        ServerSettings(cors_origins=(origin,))
