"""Requests with and without keys: which routes need one, who may do what, and when keys are required at all."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.routing import APIRoute

from fake_engine import FakeEngine
from fixtures import new_key
from helpers import instructions
from sparcom_data.errors import InvalidInputError
from sparcom_server.access.gate import is_loopback
from sparcom_server.access.keys import create_key, revoke_key
from sparcom_server.app import create_app
from sparcom_server.database.database import Database, database_url
from sparcom_server.run import run_server
from sparcom_server.schemas.requests import KeyRequest
from sparcom_server.settings import ServerSettings

Start = Callable[..., Any]
PUBLIC = {"/", "/docs", "/health", "/openapi.json", "/ready"}


def test_every_route_is_public_by_name_or_needs_a_key(start: Start) -> None:
    """Without a key, every route but those listed here answers 401, whatever the rest of the request."""
    running = start()
    new_key(running, "ann")
    seen = set()
    for route in running.server.config.app.routes:
        path = re.sub(r"\{\w+\}", "x", route.path.replace("{key:path}", "zarr.json"))
        for method in route.methods:
            response = running.http.request(method, path, content=b"{", headers={"Content-Type": "application/json"})
            if path in PUBLIC:
                assert response.status_code == 200, path
            else:
                assert response.status_code == 401, f"{method} {path}: {response.text}"
                assert response.headers["WWW-Authenticate"] == "Bearer"
                if method != "HEAD":
                    assert response.json()["type"] == "urn:sparcom:problem:not-authenticated"
            seen.add(path)
    assert seen >= PUBLIC | {"/v1/keys", "/v1/extractions", "/v1/archives/x/zarr/zarr.json", "/metrics"}


def test_a_new_route_is_protected(start: Start) -> None:
    """All routes of create_app but the public ones have the key in openapi.json."""
    running = start()
    api = running.http.get("/openapi.json").json()
    for path, methods in api["paths"].items():
        for operation in methods.values():
            assert ("security" in operation) == (path not in PUBLIC), path
    assert api["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    documented = set(api["paths"])
    hidden = {route.path for route in running.server.config.app.routes if isinstance(route, APIRoute)} - documented
    assert hidden == {"/", "/docs", "/v1/archives/{name}/{key:path}", "/v1/archives/{name}/zarr/{key:path}",
                      "/v1/extractions/{job_id}/analysis/{key:path}"}  # fmt: skip


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "Bearer   "])
def test_a_key_opens_the_service(start: Start, scheme: str) -> None:
    """The scheme's case does not matter."""
    running = start()
    key = new_key(running, "ann")
    assert running.http.get("/v1/archives", headers={"Authorization": scheme + key}).status_code == 200
    for wrong in (key, f"Basic {key}", f"{scheme}{key}x", scheme.strip(), ""):
        assert running.http.get("/v1/archives", headers={"Authorization": wrong}).status_code == 401, wrong


def test_a_revoked_key_is_refused_within_a_second(start: Start, client: Start) -> None:
    """A key that another process revokes is soon refused; its open event stream ends."""
    running = start(FakeEngine(pause=0.02))
    ann = client(running, "ann")
    key_id = ann.headers["Authorization"].split("_")[1]
    job = ann.post("/v1/extractions", json={"instructions": instructions(2000)}).json()
    other = Database(database_url(running.archives.parent))
    with ann.stream("GET", f"/v1/extractions/{job['id']}/events") as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("event")
        other.transaction(lambda session: revoke_key(session, key_id))
        running.wait_for(lambda: ann.get("/v1/archives").status_code == 401)
        assert not [line for line in lines if line.startswith("event: end")]
    other.close()
    running.wait_for(lambda: running.service.access.limits._streams.total() == 0)


def test_the_last_revocation_never_opens_the_service(start: Start, client: Start) -> None:
    """Once a server has had a key, nobody is anonymous any more, also after all keys are revoked."""
    running = start()
    assert running.http.get("/v1/archives").status_code == 200
    new = running.http.post("/v1/keys", json={"name": "ann", "role": "admin"}).json()
    assert running.http.get("/v1/archives").status_code == 401
    admin = client(running, key=new["key"])
    assert admin.delete(f"/v1/keys/{new['id']}").json()["revoked"]
    for http in (admin, running.http):
        assert http.get("/v1/archives").status_code == 401
        assert http.post("/v1/keys", json={"name": "ann"}).status_code == 401


@pytest.mark.parametrize(("host", "allowed"), [("0.0.0.0", True), ("0.0.0.0", False)])  # noqa: S104
def test_others_are_never_anonymous_unless_allowed(start: Start, host: str, allowed: bool) -> None:
    """On an address that others can reach, requests without a key are refused even if there is no key at all."""
    running = start(host=host, allow_anonymous=allowed)
    assert running.http.get("/v1/archives").status_code == (200 if allowed else 401)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True), ("LOCALHOST", True),
        ("0.0.0.0", False),  # noqa: S104
        ("::", False), ("192.168.0.1", False), ("localhost.example.org", False), ("", False),
    ],
)  # fmt: skip
def test_loopback_addresses(host: str, expected: bool) -> None:
    """Only loopback addresses and localhost count."""
    assert is_loopback(host) is expected


def settings(tmp_path: Any, **fields: Any) -> ServerSettings:
    return ServerSettings(port=0, data_dir=tmp_path / "data", **fields)


def test_a_public_address_needs_a_valid_key_at_start(tmp_path: Any) -> None:
    """Without one, the server refuses to start and names the remedy; a revoked key does not count."""
    outside = settings(tmp_path, host="0.0.0.0")  # noqa: S104
    refusal = r"--host is 0\.0\.0\.0 and there is no valid key\. Create one with `sparcom keys create"
    with pytest.raises(InvalidInputError, match=refusal):
        run_server({"fake": FakeEngine().source()}, outside)
    database = Database(database_url(outside.data_dir))
    new = database.transaction(lambda session: create_key(session, KeyRequest(name="ann")))
    access = create_app({"fake": FakeEngine().source()}, outside).state.service.access
    access.check_start()
    database.transaction(lambda session: revoke_key(session, new.id))
    with pytest.raises(InvalidInputError, match=refusal):
        access.check_start()
    database.close()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "no API keys: listening on 127.0.0.1 only"),
        ({"host": "0.0.0.0", "allow_anonymous": True}, "no API keys: everyone who can reach this port"),  # noqa: S104
    ],
)
def test_the_log_says_that_no_key_is_needed(
    tmp_path: Any, caplog: pytest.LogCaptureFixture, fields: dict[str, Any], message: str
) -> None:
    """At start, the log says who has access without keys, and whether all keys are revoked."""
    caplog.set_level(logging.INFO)
    service = create_app({"fake": FakeEngine().source()}, settings(tmp_path, **fields)).state.service
    service.access.check_start()
    assert message in caplog.text
    new = service.database.transaction(lambda session: create_key(session, KeyRequest(name="ann")))
    caplog.clear()
    service.access.check_start()
    assert not caplog.text
    service.database.transaction(lambda session: revoke_key(session, new.id))
    service.access.check_start()
    assert "every API key is revoked" in caplog.text


def test_keys_are_managed_by_admins(start: Start, client: Start) -> None:
    """Admins create, list and revoke keys; the list has no secret. Users get 403."""
    running = start()
    admin, user = client(running, "root", "admin"), client(running, "ann")
    made = admin.post("/v1/keys", json={"name": "ben", "limits": {"tokens_per_day": 5}})
    assert made.status_code == 201
    new = made.json()
    assert (new["name"], new["role"], new["limits"]["tokens_per_day"]) == ("ben", "user", 5)
    assert client(running, key=new["key"]).get("/v1/archives").status_code == 200
    page = admin.get("/v1/keys", params={"limit": 2}).json()
    assert ([key["name"] for key in page["data"]], page["has_more"]) == (["ben", "ann"], True)
    rest = admin.get("/v1/keys", params={"after": page["last_id"]}).json()
    assert [key["name"] for key in rest["data"]] == ["root"]
    assert new["key"].split("_", 2)[2] not in json.dumps([page, rest])
    assert admin.delete(f"/v1/keys/{new['id']}").json()["revoked"]
    assert client(running, key=new["key"]).get("/v1/archives").status_code == 401
    assert admin.delete("/v1/keys/0123").status_code == 404
    for body in ({"name": "Ben"}, {"name": "ben", "role": "root"}, {"name": "ben", "limits": {"x": 1}}, {}):
        assert admin.post("/v1/keys", json=body).status_code == 422, body
    for response in (
        user.post("/v1/keys", json={"name": "ann", "role": "admin"}), user.get("/v1/keys"), user.get("/metrics"),
        user.delete(f"/v1/keys/{new['id']}"),
    ):  # fmt: skip
        assert (response.status_code, response.json()["type"]) == (403, "urn:sparcom:problem:forbidden")
    assert admin.get("/metrics").status_code == 200


def test_limits_reach_the_routes(start: Start, client: Start) -> None:
    """Requests, submissions and event streams beyond a limit get 429, with Retry-After if waiting helps."""
    running = start(FakeEngine(pause=0.02))
    ann = client(running, "ann", queued_instructions=300, event_streams=1)
    submit = lambda count: ann.post("/v1/extractions", json={"instructions": instructions(count)})  # noqa: E731
    job = submit(300).json()
    refused = submit(1)
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "30")
    assert refused.json()["type"] == "urn:sparcom:problem:limit-exceeded"
    assert len(ann.get("/v1/extractions").json()["data"]) == 1
    events = f"/v1/extractions/{job['id']}/events"
    with ann.stream("GET", events) as stream:
        assert stream.status_code == 200
        assert ann.get(events).status_code == 429
    slow = client(running, "ben", requests_per_minute=2)
    statuses = [slow.get("/v1/archives") for _ in range(3)]
    assert [response.status_code for response in statuses] == [200, 200, 429]
    assert 0 < int(statuses[2].headers["Retry-After"]) <= 30
    assert ann.get("/v1/archives").status_code == 200
