"""Run the app under uvicorn until a signal, a failed model start or a dead engine ends it.

On SIGTERM, SIGINT or SIGHUP the running job is suspended first, while event streams are still open, so that clients see
it. It continues when the service starts again. A second signal ends the process at once, and so does the first while a
model loads.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from sparcom_data.errors import InvalidInputError, SparcomError
from sparcom_server.app import create_app
from sparcom_server.http import connections
from sparcom_server.protocols import ModelSource
from sparcom_server.service import Service
from sparcom_server.settings import ServerSettings

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 5  # for open requests, after the job is suspended
TICKS_PER_SECOND = 10  # of uvicorn's main loop


class Server(uvicorn.Server):
    """A uvicorn server that suspends the running job before it waits for connections to close."""

    interrupted: int | None = None  # signal received while models were loading

    def __init__(self, app: FastAPI, settings: ServerSettings) -> None:
        super().__init__(_configure(app, settings))
        self.service: Service = app.state.service
        self.service.count_connections = lambda: len(self.server_state.connections)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until the end. Exit the process if models were loading: nothing can interrupt their threads."""
        await super().serve(sockets)
        if self.interrupted:
            logger.info("interrupted while models were loading")
            # A normal exit waits for threads, and one may be starting an engine for minutes.
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(128 + self.interrupted)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start and log the address, which uvicorn does not log for given sockets."""
        await super().startup(sockets)
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            logger.info("running on http://%s:%d (Ctrl-C to quit)", f"[{host}]" if ":" in host else host, port)

    async def on_tick(self, counter: int) -> bool:
        """Close overdue connections once a second."""
        if counter % TICKS_PER_SECOND == 0:
            connections.close_overdue(self.server_state.connections, asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGHUP, of a terminal that closes, like the signals of uvicorn, unless it is ignored as by nohup."""
        with super().capture_signals():
            if threading.current_thread() is not threading.main_thread() or _hangup_is_ignored():
                yield
                return
            before = signal.signal(signal.SIGHUP, self.handle_exit)
            try:
                yield
            finally:
                signal.signal(signal.SIGHUP, before)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Remember the signal if models are loading. A second one ends the process at once; jobs continue later."""
        if self.should_exit:
            os._exit(128 + sig)
        if self.service.models.loading:
            self.interrupted = self.interrupted or sig
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Suspend the running job unless a second signal comes, then close as uvicorn does."""
        stopping = asyncio.create_task(self.service.suspend())
        while not stopping.done() and not self.force_exit:
            await asyncio.wait([stopping], timeout=0.1)
        await super().shutdown(sockets)


def run_server(sources: Mapping[str, ModelSource], settings: ServerSettings) -> None:
    """Serve until the end. Blocks; call it in the main thread.

    A signal while models load ends the process with exit status 128 plus the signal's number.

    Raises:
        InvalidInputError: the server cannot listen on this address, or needs an API key to do so; nothing was loaded.
        SparcomError: the service gave up on its engines.
    """
    failures: list[SparcomError] = []

    def on_failure(error: SparcomError) -> None:
        failures.append(error)
        server.should_exit = True

    os.umask(0o077)
    connections.raise_descriptor_limit()
    with listen(settings.host, settings.port) as listener:
        server = Server(create_app(sources, settings, on_failure), settings)
        server.service.access.check_start()
        with _signals_are_handled_once():  # before, each ends the process
            server.run(sockets=[listener])
    if failures:
        raise failures[0]


def _configure(app: FastAPI, settings: ServerSettings) -> uvicorn.Config:
    """Return uvicorn's configuration: limited connections, no access log, no WebSockets.

    asyncio's event loop accepts at most `BACKLOG` connections before it can refuse any; uvloop has no such bound.
    """
    most = connections.connection_limit(settings.max_connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="asyncio",
        http=connections.limited_protocol(most, settings),
        backlog=connections.BACKLOG,
        log_config=None,
        access_log=False,
        ws="none",
        lifespan="on",
        # uvicorn's 5 s are also httpx's: a client that polls then meets connections that close as it sends.
        timeout_keep_alive=math.ceil(settings.request_seconds),
        timeout_graceful_shutdown=CLOSE_SECONDS,
        server_header=False,
    )


def _hangup_is_ignored() -> bool:
    return signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Called before anything is loaded.

    Raises:
        InvalidInputError: the port is in use, or the address is not this machine's.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        listener = socket.create_server(address, family=family, backlog=connections.BACKLOG)
    except OSError as error:
        message = (
            f"the server cannot listen on port {port} of {host}: {error.strerror}. Choose another --port or --host, "
            "or stop the process that listens there"
        )
        raise InvalidInputError(message) from error
    # Connections inherit this option. asyncio sets it only for sockets that name their protocol, and those of
    # create_server do not. Without it, each response waited 40 ms for the client to acknowledge its headers.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


@contextmanager
def _signals_are_handled_once() -> Iterator[None]:
    """Ignore the signal that uvicorn raises again at its end; by then nothing is left to do."""
    handled = {signal.SIGTERM, signal.SIGINT} | (set() if _hangup_is_ignored() else {signal.SIGHUP})
    before = {number: signal.signal(number, lambda *_: None) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
