"""Bound the memory of requests: validate large bodies one at a time, and give freed memory back to the system."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

LARGE_BYTES = 4 * 2**20  # a body of this size takes up to 100 MB while it is validated; one of 64 MiB, nearly 1 GiB


class Turns:
    """Turns to validate bodies: `limit` at the same time, but only one of more than `LARGE_BYTES`."""

    def __init__(self, limit: int) -> None:
        self._any, self._large = asyncio.Semaphore(limit), asyncio.Lock()

    @asynccontextmanager
    async def take(self, size: int) -> AsyncIterator[None]:
        """Wait for a turn, and use it. size: bytes of the body."""
        if size <= LARGE_BYTES:
            async with self._any:
                yield
            return
        async with self._large, self._any:
            try:
                yield
            finally:
                await asyncio.to_thread(release_memory)


def release_memory() -> None:
    """Give freed memory back to the system. The C library keeps much of it, in one pool per thread."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # only glibc has it
        trim(0)
