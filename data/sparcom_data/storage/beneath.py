"""Access to files below a folder without following links: no link in an archive can lead out of it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.core.buffer.core import default_buffer_prototype
from zarr.storage import LocalStore

_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO}


def open_beneath(folder: Path, parts: Sequence[str]) -> int | None:
    """Open a regular file, resolving each part of its name relative to the one before.

    Returns:
        A descriptor, which the caller closes; None if there is no such file or a part is a link.
    """
    if not parts or any(part in {"", ".", ".."} or "\0" in part for part in parts):
        return None
    try:
        here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        for index, part in enumerate(parts):
            kind = 0 if index == len(parts) - 1 else os.O_DIRECTORY
            # O_NONBLOCK: opening a FIFO must not wait for a writer.
            inner = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | kind, dir_fd=here)
            os.close(here)
            here = inner
        regular = stat.S_ISREG(os.fstat(here).st_mode)
    except OSError as error:
        os.close(here)
        if error.errno in _ABSENT:
            return None
        raise
    if regular:
        return here
    os.close(here)
    return None


class NoLinkStore(LocalStore):
    """A read-only local Zarr store that treats links as missing keys. The root may not be a link either."""

    def __init__(self, root: Path | str, *, read_only: bool = True) -> None:
        super().__init__(root, read_only=True)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read one value, or a part of it; None if the key is missing."""
        return self.get_sync(key, prototype=prototype, byte_range=byte_range)

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """`get` for callers without an event loop."""
        descriptor = self._open_key(key)
        if descriptor is None:
            return None
        with os.fdopen(descriptor, "rb") as file:
            data = file.read()
        return (prototype or default_buffer_prototype()).buffer.from_bytes(_part(data, byte_range))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read parts of several values."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        """Return whether the key exists."""
        descriptor = self._open_key(key)
        if descriptor is not None:
            os.close(descriptor)
        return descriptor is not None

    def _open_key(self, key: str) -> int | None:
        return open_beneath(self.root.parent, [self.root.name, *key.split("/")])


def _part(data: bytes, byte_range: ByteRequest | None) -> bytes:
    match byte_range:
        case RangeByteRequest(start, end):
            return data[start:end]
        case OffsetByteRequest(offset):
            return data[offset:]
        case SuffixByteRequest(suffix):
            return data[max(0, len(data) - suffix) :]
        case _:
            return data
