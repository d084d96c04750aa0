"""`Client` and `AsyncClient`: perform the steps of `methods`, blocking or with asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import httpx
from httpx_sse import EventSource

from sparcom_client import methods
from sparcom_client.effects import Block, Effect, Emit, Items, Next, Open, Request, Send, Sleep, Steps, emitting
from sparcom_client.exchange import PATIENCE, Connection, connection

BLOCK_BYTES = 2**18  # of an uploaded file, read at a time
CONNECT_SECONDS = 10.0
P = ParamSpec("P")
T = TypeVar("T")


def _blocking(steps: Callable[Concatenate[Connection, P], Steps[T]]) -> Callable[Concatenate[Client, P], T]:
    @wraps(steps)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        (value,) = self._drive(emitting(steps(self.connection, *args, **kwargs)))
        return value

    return method


def _iterating(steps: Callable[Concatenate[Connection, P], Items[T]]) -> Callable[Concatenate[Client, P], Iterator[T]]:
    @wraps(steps)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return self._drive(steps(self.connection, *args, **kwargs))

    return method


class Client:
    """A connection to one server; a context manager. `AsyncClient` has the same methods for asyncio.

    Args:
        server: its address; by default SPARCOM_SERVER, or http://127.0.0.1:8000.
        key: an API key; by default SPARCOM_API_KEY.
        patience: how long a request is retried, in seconds, if the server does not answer or is busy; 0 for no retry.
        transport: sends the requests; by default over the network.
    """

    def __init__(
        self,
        server: str | None = None,
        key: str | None = None,
        *,
        patience: float = PATIENCE,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.connection = connection(server, key, patience)
        self._http = httpx.Client(transport=transport, headers=self.connection.headers)

    submit = _blocking(methods.submit)
    upload = _blocking(methods.upload)
    job = _blocking(methods.job)
    jobs = _iterating(methods.jobs)
    cancel = _blocking(methods.cancel)
    watch = _iterating(methods.watch)
    wait = _blocking(methods.wait)
    results = _iterating(methods.results)
    errors = _iterating(methods.errors)
    archives = _iterating(methods.archives)
    archive = _blocking(methods.archive)
    delete_archive = _blocking(methods.delete_archive)
    open_archive = _blocking(methods.open_archive)
    files = _iterating(methods.files)
    delete_file = _blocking(methods.delete_file)
    models = _blocking(methods.models)
    create_key = _blocking(methods.create_key)
    list_keys = _iterating(methods.list_keys)
    revoke_key = _blocking(methods.revoke_key)
    ready = _blocking(methods.ready)

    def close(self) -> None:
        """Close the connections to the server."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _drive(self, steps: Items[T]) -> Iterator[T]:
        """Perform the steps; yield what they emit."""
        stream: list[Any] = []  # the open response, and an iterator over it
        answer: Any = None
        error: Exception | None = None
        try:
            while True:
                effect = steps.throw(error) if error else steps.send(answer)
                answer = error = None
                if isinstance(effect, Emit):
                    yield effect.value
                    continue
                try:
                    answer = self._perform(effect, stream)
                except Exception as raised:  # noqa: BLE001  (raised again in the steps)
                    error = raised
        except StopIteration:
            return
        finally:
            steps.close()
            self._close(stream)

    def _perform(self, effect: Effect, stream: list[Any]) -> Any:
        match effect:
            case Send(request):
                return self._http.send(self._request(request))
            case Open(request, is_events):
                self._close(stream)
                response = self._http.send(self._request(request), stream=True)
                stream[:] = response, EventSource(response).iter_sse() if is_events else response.iter_lines()
                if not response.is_success:
                    response.read()
                return response
            case Next():
                return next(stream[1], None)
            case Sleep(seconds):
                time.sleep(seconds)
            case Block(function):
                return function()
        return None

    def _request(self, request: Request) -> httpx.Request:
        def blocks(path: Path) -> Iterator[bytes]:
            with path.open("rb") as file:
                while block := file.read(BLOCK_BYTES):
                    yield block

        body = request.content
        return _build(self._http, self.connection, request, blocks(body) if isinstance(body, Path) else body)

    @staticmethod
    def _close(stream: list[Any]) -> None:
        if stream:
            stream[0].close()


def _awaiting(
    steps: Callable[Concatenate[Connection, P], Steps[T]],
) -> Callable[Concatenate[AsyncClient, P], Awaitable[T]]:
    @wraps(steps)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        (value,) = [value async for value in self._drive(emitting(steps(self.connection, *args, **kwargs)))]
        return value

    return method


def _async_iterating(
    steps: Callable[Concatenate[Connection, P], Items[T]],
) -> Callable[Concatenate[AsyncClient, P], AsyncIterator[T]]:
    @wraps(steps)
    def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        return self._drive(steps(self.connection, *args, **kwargs))

    return method


class AsyncClient:
    """A connection to one server, for asyncio; an async context manager. Arguments are those of `Client`.

    Methods are those of `Client`: await them, or iterate with `async for`.
    """

    def __init__(
        self,
        server: str | None = None,
        key: str | None = None,
        *,
        patience: float = PATIENCE,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.connection = connection(server, key, patience)
        self._http = httpx.AsyncClient(transport=transport, headers=self.connection.headers)

    submit = _awaiting(methods.submit)
    upload = _awaiting(methods.upload)
    job = _awaiting(methods.job)
    jobs = _async_iterating(methods.jobs)
    cancel = _awaiting(methods.cancel)
    watch = _async_iterating(methods.watch)
    wait = _awaiting(methods.wait)
    results = _async_iterating(methods.results)
    errors = _async_iterating(methods.errors)
    archives = _async_iterating(methods.archives)
    archive = _awaiting(methods.archive)
    delete_archive = _awaiting(methods.delete_archive)
    open_archive = _awaiting(methods.open_archive)
    files = _async_iterating(methods.files)
    delete_file = _awaiting(methods.delete_file)
    models = _awaiting(methods.models)
    create_key = _awaiting(methods.create_key)
    list_keys = _async_iterating(methods.list_keys)
    revoke_key = _awaiting(methods.revoke_key)
    ready = _awaiting(methods.ready)

    async def close(self) -> None:
        """Close the connections to the server."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _drive(self, steps: Items[T]) -> AsyncIterator[T]:
        """Perform the steps; yield what they emit."""
        stream: list[Any] = []
        answer: Any = None
        error: Exception | None = None
        try:
            while True:
                effect = steps.throw(error) if error else steps.send(answer)
                answer = error = None
                if isinstance(effect, Emit):
                    yield effect.value
                    continue
                try:
                    answer = await self._perform(effect, stream)
                except Exception as raised:  # noqa: BLE001  (raised again in the steps)
                    error = raised
        except StopIteration:
            return
        finally:
            steps.close()
            await self._close(stream)

    async def _perform(self, effect: Effect, stream: list[Any]) -> Any:
        match effect:
            case Send(request):
                return await self._http.send(self._request(request))
            case Open(request, is_events):
                await self._close(stream)
                response = await self._http.send(self._request(request), stream=True)
                stream[:] = response, EventSource(response).aiter_sse() if is_events else response.aiter_lines()
                if not response.is_success:
                    await response.aread()
                return response
            case Next():
                return await anext(stream[1], None)
            case Sleep(seconds):
                await asyncio.sleep(seconds)
            case Block(function):
                return await asyncio.to_thread(function)
        return None

    def _request(self, request: Request) -> httpx.Request:
        async def blocks(path: Path) -> AsyncIterator[bytes]:
            with await asyncio.to_thread(path.open, "rb") as file:
                while block := await asyncio.to_thread(file.read, BLOCK_BYTES):
                    yield block

        body = request.content
        return _build(self._http, self.connection, request, blocks(body) if isinstance(body, Path) else body)

    @staticmethod
    async def _close(stream: list[Any]) -> None:
        if stream:
            await stream[0].aclose()


def _build(
    http: httpx.Client | httpx.AsyncClient,
    api: Connection,
    request: Request,
    content: bytes | Iterator[bytes] | AsyncIterator[bytes] | None,
) -> httpx.Request:
    headers = dict(request.headers or {})
    if isinstance(request.content, Path):
        headers["Content-Length"] = str(request.content.stat().st_size)
    timeout = httpx.Timeout(request.timeout, connect=CONNECT_SECONDS)
    return http.build_request(
        request.method,
        api.server + request.path,
        params=request.params,
        headers=headers,
        content=content,
        timeout=timeout,
    )
