"""Runs the app under uvicorn until a signal or a model that cannot be started ends it.

On SIGTERM or SIGINT the running job is settled first, while event streams are still open, so that those who watch
see how it ended; a second signal ends at once.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from sparcom_data.errors import SparcomError
from sparcom_server.app import create_app
from sparcom_server.protocols import EngineStarter
from sparcom_server.service import Service
from sparcom_server.settings import ServerSettings

CLOSE_SECONDS = 5  # for requests that are still being answered, once the jobs have settled
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Server(uvicorn.Server):
    """uvicorn, that settles the jobs before it waits for connections to close."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Settle jobs unless a second signal came, then close as uvicorn does."""
        app = self.config.app
        assert isinstance(app, FastAPI)  # noqa: S101  (run_server gives one)
        service: Service = app.state.service
        settling = asyncio.create_task(service.queue.stop(service.settings.stop_seconds))
        while not settling.done() and not self.force_exit:
            await asyncio.wait([settling], timeout=0.1)
        await super().shutdown(sockets)


def run_server(starters: Mapping[str, EngineStarter], settings: ServerSettings) -> None:
    """Serve until told to stop. Blocks; call it in the main thread.

    Raises:
        SparcomError: a model could not be started.
    """
    failures: list[SparcomError] = []

    def on_failure(error: SparcomError) -> None:
        failures.append(error)
        server.should_exit = True

    server = Server(configure(create_app(starters, settings, on_failure), settings))
    with _signals_are_handled_once():
        server.run()
    if failures:
        raise failures[0]


def configure(app: FastAPI, settings: ServerSettings) -> uvicorn.Config:
    """How uvicorn is to run the app: no log of every request, no web sockets."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=CLOSE_SECONDS,
        server_header=False,
    )


@contextmanager
def _signals_are_handled_once() -> Iterator[None]:
    """uvicorn raises the signal that stopped it a second time when it is done; by then there is nothing left to do."""
    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
