"""Traces reach a collector over OTLP/HTTP if its variables switch them on; otherwise nothing is imported."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from fastapi import FastAPI
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from helpers import AsgiClient
from sparcom_data.errors import InvalidInputError, MissingExtraError
from sparcom_extractor.spans import span
from sparcom_server.observe.tracing import start_tracing


class Collector(ThreadingHTTPServer):
    """An OTLP/HTTP receiver on a free port."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        super().__init__(("127.0.0.1", 0), Receiver)
        self.url = f"http://127.0.0.1:{self.server_port}"

    @property
    def spans(self) -> dict[str, Any]:
        """Received spans by name."""
        resources = [resource for request in self.requests for resource in request.resource_spans]
        return {one.name: one for resource in resources for scope in resource.scope_spans for one in scope.spans}


class Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        request = ExportTraceServiceRequest()
        request.ParseFromString(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        return


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Return a running receiver, to which the environment points."""
    server = Collector()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
    yield server
    server.shutdown()
    server.server_close()


def make_app() -> FastAPI:
    """Return an app whose one route makes spans as a job does."""
    app = FastAPI()

    @app.get("/things/{name}")
    async def get_thing(name: str) -> None:
        with span("job", job="j1"), span("commit", instructions=3):
            return

    @app.get("/health")
    async def health() -> None:
        return

    return app


def attributes(found: Any) -> dict[str, Any]:
    """Return a span's attributes as text or numbers."""
    return {item.key: item.value.string_value or item.value.int_value for item in found.attributes}


def test_spans_reach_the_collector(collector: Collector) -> None:
    """A request's span has the route's template; spans within it are its children; health checks have none."""
    app = make_app()
    stop = start_tracing(app)
    http = AsgiClient(app)
    http.get("/health")
    http.get("/things/secret")
    stop()
    spans = collector.spans
    assert set(spans) == {"GET /things/{name}", "job", "commit"}
    request, job, commit = spans["GET /things/{name}"], spans["job"], spans["commit"]
    assert attributes(request)["http.route"] == "/things/{name}"
    assert attributes(job)["sparcom.job"] == "j1"
    assert attributes(commit)["sparcom.instructions"] == 3
    assert (job.parent_span_id, commit.parent_span_id) == (request.span_id, job.span_id)
    named = {item.key: item.value.string_value for item in collector.requests[0].resource_spans[0].resource.attributes}
    assert named["service.name"] == "sparcom"
    sent = len(collector.requests)
    with span("after the end"):
        pass
    assert len(collector.requests) == sent


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
    ],
)
def test_nothing_is_imported_while_off(environment: dict[str, str]) -> None:
    """Without the variables, OpenTelemetry is not loaded."""
    code = (
        "import sys; from sparcom_server.observe.tracing import start_tracing; from fastapi import FastAPI; "
        "start_tracing(FastAPI())(); sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    plain = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    subprocess.run([sys.executable, "-c", code], env=plain | environment, check=True)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the variable and the extra."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.fastapi", None)
    with pytest.raises(MissingExtraError, match=r"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT .* 'sparcom\[tracing\]'"):
        start_tracing(FastAPI())


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]
)
def test_other_exporters_are_refused(collector: Collector, name: str, value: str, monkeypatch: Any) -> None:
    """Traces do not vanish silently into an exporter that is not supported."""
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInputError, match=value):
        start_tracing(FastAPI())
