"""Helpers of several tests: files of a folder, message of an error."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx


class AsgiClient:
    """Sends requests to an app in this process, without a server. Errors of the app are responses, as for a client."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Return the response to one request."""

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await client.request(method, path, **options)

        return asyncio.run(ask())

    def get(self, path: str, **options: Any) -> httpx.Response:
        """Return the response to GET."""
        return self.request("GET", path, **options)


def tree(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def error_of(response: Any) -> str:
    """Return the message of an error response."""
    return str(response.json()["detail"])


def problem_of(response: Any) -> str:
    """Return the name of an error response: the last part of its type."""
    assert response.headers["Content-Type"] == "application/problem+json"
    return str(response.json()["type"]).removeprefix("urn:sparcom:problem:")


def instructions(count: int, words: int = 4) -> list[dict[str, Any]]:
    """Return `count` instructions of `words` words in two categories."""
    text = " ".join(["word"] * words)
    return [{"id": f"i{n}", "text": text, "category": ("CLS", "CODE")[n % 2]} for n in range(count)]
