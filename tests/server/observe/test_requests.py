"""Every request has an id, one line in the access log, and one latency; errors are logged once."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from helpers import AsgiClient
from sparcom_server.observe.logs import current_ids
from sparcom_server.observe.metrics import Metrics, Snapshot
from sparcom_server.observe.requests import RequestLog


def client(metrics: Metrics | None = None, **scope: Any) -> AsgiClient:
    """Return a client of an app with a few routes."""
    app = FastAPI()

    @app.get("/things/{job_id}")
    async def get_thing(job_id: str) -> dict[str, str]:
        current_ids().key_id = "key-1"
        logging.getLogger("inner").info("within")
        return {"request": current_ids().request_id}

    @app.get("/fails")
    async def fail() -> None:
        raise ZeroDivisionError("secret cause")

    @app.get("/breaks")
    async def break_off() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"part"
            raise ZeroDivisionError

        return StreamingResponse(parts())

    @app.get("/health")
    async def health() -> str:
        return "ok"

    app.add_middleware(RequestLog, metrics=metrics or Metrics())
    return AsgiClient(app)


def access(caplog: pytest.LogCaptureFixture) -> list[Any]:
    """Return the records of the access log, without those of errors."""
    return [one for one in caplog.records if one.name == "sparcom.access" and not one.exc_info]


def test_a_request_has_an_id(caplog: pytest.LogCaptureFixture) -> None:
    """A valid X-Request-Id is kept; another is replaced. The response carries it, and so does the handler's context."""
    http = client()
    for given in ("abc-1.2:3", "a" * 128):
        answer = http.get("/things/1", headers={"X-Request-Id": given})
        assert answer.headers["X-Request-Id"] == answer.json()["request"] == given
    for given in ("", "a" * 129, 'a"b', "a b", "a\u00e9"):
        answer = http.get("/things/1", headers={"X-Request-Id": given.encode()})
        assert re.fullmatch("[0-9a-f]{16}", answer.headers["X-Request-Id"])
    assert http.get("/nowhere").headers["X-Request-Id"]
    assert current_ids().request_id == ""


def test_the_access_log_has_one_line_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    """It has method, path, route, status, duration, bytes and client, and neither query nor headers."""
    with caplog.at_level(logging.INFO):
        http = client()
        http.get("/things/a%0Ab?token=secret", headers={"Authorization": "Bearer secret", "X-Request-Id": "r1"})
        http.get("/nowhere")
        http.get("/health")
    first, second = access(caplog)
    shown = {name: getattr(first, name) for name in ("method", "path", "route", "status", "bytes", "client")}
    assert shown == {
        "method": "GET",
        "path": "/things/a%0Ab",
        "route": "/things/{job_id}",
        "status": 200,
        "bytes": len('{"request":"r1"}'),
        "client": "127.0.0.1",
    }
    assert first.duration_ms > 0
    assert (second.route, second.status) == ("none", 404)
    assert "secret" not in str([vars(record) for record in access(caplog)])


def test_an_unexpected_error_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """The client gets a problem with the request id, not the cause; the log has one traceback."""
    with caplog.at_level(logging.INFO):
        http = client()
        answer = http.get("/fails", headers={"X-Request-Id": "r1"})
    assert (answer.status_code, answer.headers["Content-Type"]) == (500, "application/problem+json")
    assert answer.headers["X-Request-Id"] == "r1"
    assert "r1" in answer.json()["detail"]
    assert "secret" not in answer.text
    assert caplog.text.count("Traceback") == caplog.text.count("ZeroDivisionError: secret cause") == 1
    assert [record.status for record in access(caplog)] == [500]


async def messages(app: Any, path: str) -> list[Any]:
    """Return what an app sends for one request, also if it breaks off, which httpx cannot represent."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [],
    }
    with suppress(ZeroDivisionError):
        await app(scope, receive, send)
    return sent


def test_an_error_within_a_response_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is appended to a response that has begun."""
    with caplog.at_level(logging.INFO):
        sent = asyncio.run(messages(client().app, "/breaks"))
    assert b"".join(message.get("body", b"") for message in sent) == b"part"
    assert caplog.text.count("Traceback") == 1


def test_latency_is_counted_by_template() -> None:
    """Ids in paths and methods that clients invent make no new time series."""
    metrics = Metrics()
    http = client(metrics)
    for number in range(3):
        http.get(f"/things/{number}")
        http.get(f"/nowhere/{number}")
        http.request(f"INVENTED{number}", "/things/1")
    text = metrics.exposition(Snapshot()).decode()
    counts = re.findall(r"sparcom_http_request_seconds_count\{(.*)\} (.*)", text)
    assert counts == [
        ('method="GET",route="/things/{job_id}",status="200"', "3.0"),
        ('method="GET",route="none",status="404"', "3.0"),
        ('method="OTHER",route="/things/{job_id}",status="405"', "3.0"),
    ]


def run_app(events: list[Any], app: Any) -> Metrics:
    """Run an ASGI app behind the middleware with a client that leaves; append what the gauge of streams shows."""
    metrics = Metrics()

    async def send(message: Any) -> None:
        events.append(metrics.registry.get_sample_value("sparcom_event_streams"))

    scope = {"type": "http", "method": "GET", "path": "/x", "raw_path": b"/x", "headers": [], "client": None}
    asyncio.run(RequestLog(app, metrics)(scope, None, send))  # type: ignore[arg-type]
    return metrics


def test_open_event_streams_are_counted() -> None:
    """The gauge grows as a stream begins and falls as it ends."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    events: list[Any] = []
    metrics = run_app(events, app)
    assert events == [1.0, 1.0]
    assert metrics.registry.get_sample_value("sparcom_event_streams") == 0


def test_a_client_that_left_is_counted_as_499(caplog: pytest.LogCaptureFixture) -> None:
    """A request without a response has its own status."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        return

    with caplog.at_level(logging.INFO):
        metrics = run_app([], app)
    assert 'route="none",status="499"} 1.0' in metrics.exposition(Snapshot()).decode()
    assert access(caplog)[0].status == 499
