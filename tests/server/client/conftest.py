"""Both clients, so that each test runs with `Client` and, in an event loop, with `AsyncClient`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from sparcom_client import AsyncClient, Client


class Blocking:
    """An `AsyncClient` whose methods block."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = self._runner.run(self._new(arguments, options))

    async def _new(self, arguments: Any, options: Any) -> AsyncClient:
        return AsyncClient(*arguments, **options)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def call(*arguments: Any, **options: Any) -> Any:
            found = method(*arguments, **options)
            return self._iterate(found) if isinstance(found, AsyncIterator) else self._runner.run(found)

        return call

    def _iterate(self, items: Any) -> Iterator[Any]:
        async def following() -> Any:
            return await anext(items, self)

        while (item := self._runner.run(following())) is not self:
            yield item

    def __enter__(self) -> Blocking:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


class Lossy(httpx.HTTPTransport):
    """Drops the answers to the first requests for which `drops` is true, after the server has answered."""

    def __init__(self, drops: Callable[[httpx.Request], bool]) -> None:
        super().__init__()
        self._drops = drops

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request; lose the answer if the test wants it."""
        response = super().handle_request(request)
        if self._drops(request):
            response.read()
            response.close()
            raise httpx.ReadError("the connection was lost")
        return response


class AsyncLossy(httpx.AsyncHTTPTransport):
    """`Lossy` for asyncio."""

    def __init__(self, drops: Callable[[httpx.Request], bool]) -> None:
        super().__init__()
        self._drops = drops

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request; lose the answer if the test wants it."""
        response = await super().handle_async_request(request)
        if self._drops(request):
            await response.aread()
            await response.aclose()
            raise httpx.ReadError("the connection was lost")
        return response


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Return a function that connects to a server. drops: requests whose answers are lost."""
    monkeypatch.setattr("sparcom_client.exchange.FIRST_DELAY", 0.01)
    client, transport = (Client, Lossy) if request.param == "sync" else (Blocking, AsyncLossy)
    with ExitStack() as stack:

        def connecting(server: str, *, drops: Any = None, **options: Any) -> Any:
            if drops is not None:
                options["transport"] = transport(drops)
            return stack.enter_context(client(server, **options))  # type: ignore[operator]

        yield connecting
