"""The outermost ASGI middleware: ids of requests, access log, latency, and errors that nothing else handled."""

from __future__ import annotations

import logging
import random
import re
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sparcom_server.errors import problem_response
from sparcom_server.observe.logs import LogIds, log_ids
from sparcom_server.observe.metrics import Metrics

logger = logging.getLogger("sparcom.access")

HEADER = "X-Request-Id"
_RAW_HEADER = HEADER.lower().encode()
UNMATCHED = "none"  # route of a request that was refused before routing, or that no route matches
QUIET = ("/health", "/ready", "/metrics")  # logged only if they fail: machines request them every few seconds
CLIENT_CLOSED = 499  # logged and counted where the client left before the response began, as nginx does
MAX_PATH = 500
_VALID_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


def _new_id() -> str:
    """Return an id that is no secret: the system's source of randomness takes a fifth of the time of a poll."""
    return f"{random.getrandbits(64):016x}"


class RequestLog:
    """Gives each request an id, measures it, logs it once, and answers 500 to an error that nothing else handled.

    A client's X-Request-Id is kept if it has 1 to 128 of the characters A-Z a-z 0-9 . _ : / + = -. Neither the query
    nor any header is logged, since both may hold secrets.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        ids = LogIds(request_id=given if _VALID_ID.fullmatch(given) else _new_id())
        exchange = _Exchange(scope, send, ids.request_id, self.metrics)
        with log_ids(ids):
            try:
                await self.app(scope, receive, exchange.send)
            except Exception:
                logger.exception("an error that nothing else handled")
                if not exchange.status:
                    message = f"an internal error; the server's log has its cause under the request id {ids.request_id}"
                    await problem_response("InternalServerError", 500, [message])(scope, receive, exchange.send)
            finally:
                ids.job_id = ids.job_id or str(scope.get("path_params", {}).get("job_id", ""))
                exchange.finish()


class _Exchange:
    """One request and its response. status: 0 until the response begins."""

    def __init__(self, scope: Scope, send: Send, request_id: str, metrics: Metrics) -> None:
        self._scope, self._send, self._id, self._metrics = scope, send, request_id, metrics
        self._began = time.perf_counter()
        self._first = 0.0  # seconds until the response began
        self._bytes = 0
        self._streams = False
        self.status = 0

    async def send(self, message: Message) -> None:
        """Add the id to the response and count its bytes."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._first = time.perf_counter() - self._began
            headers = message["headers"] = [*message["headers"], (_RAW_HEADER, self._id.encode())]
            if any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers):
                self._streams = True
                self._metrics.event_streams.inc()
        self._bytes += len(message.get("body", b""))
        await self._send(message)

    def finish(self) -> None:
        """Record latency and the line of the access log."""
        seconds = time.perf_counter() - self._began
        route = str(getattr(self._scope.get("route"), "path", UNMATCHED))
        status = self.status or CLIENT_CLOSED
        if self._streams:
            self._metrics.event_streams.dec()
        self._metrics.request_ended(self._scope["method"], route, status, self._first or seconds)
        if route in QUIET and status < 500:
            return
        path = self._scope.get("raw_path", self._scope["path"].encode()).decode("latin-1")[:MAX_PATH]
        client = self._scope.get("client")
        facts = {
            "method": self._scope["method"],
            "path": path,
            "route": route,
            "status": status,
            "duration_ms": round(seconds * 1000, 2),
            "bytes": self._bytes,
            "client": client[0] if client else "",
        }
        logger.info("%s %s %d, %.1f ms", facts["method"], path, status, seconds * 1000, extra=facts)
