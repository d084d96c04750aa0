"""Bytes that stay: write to a temporary name, sync, rename.

Rule 3 of the archive. Used by zarr-python through `DurableStore` for the small arrays, and directly for mask chunks,
whose encoding (raw bytes and their CRC32C) needs no codec pipeline.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

import google_crc32c
import numpy as np
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from sparcom_data.errors import StorageError

PARTIAL_SUFFIX = ".partial"

type_bytes = bytes | bytearray | memoryview


def storage_error(path: Path | str, error: OSError) -> StorageError:
    """The sentence for a failed write."""
    return StorageError(
        f"writing {path} failed: {error.strerror or error} (errno {error.errno}). What was complete stays complete; "
        "free space or mend the storage, then run the rest again"
    )


def write_durably(path: Path, parts: Sequence[type_bytes]) -> None:
    """Write the parts one after the other to `path` so that it holds all of them or is not there at all.

    Raises:
        StorageError: the operating system refused; nothing is left behind.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    try:
        make_folder(path.parent)
        try:
            with temporary.open("wb", buffering=0) as file:
                for part in parts:
                    _write_all(file.fileno(), memoryview(part).cast("B"))
                os.fdatasync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_path(path.parent)
    except OSError as error:
        raise storage_error(path, error) from error


def _write_all(descriptor: int, view: memoryview) -> None:
    while view:
        view = view[os.write(descriptor, view) :]


def make_folder(path: Path) -> None:
    """Make a folder and those above it, durably."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_path(folder.parent)


def sync_path(path: Path) -> None:
    """Make a file, or the names within a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def crc32c_suffix(data: type_bytes) -> bytes:
    """The four bytes that Zarr's `crc32c` codec appends: little-endian CRC32C of what precedes them."""
    return int(google_crc32c.value(np.frombuffer(data, dtype=np.uint8))).to_bytes(4, "little")


class DurableStore(LocalStore):
    """A local Zarr store whose writes are synced before they are renamed into place."""

    async def set(self, key: str, value: Buffer) -> None:
        """Write one value; raises StorageError where zarr's own store would leave an unsynced file."""
        await asyncio.to_thread(self.set_sync, key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write one value where there is none; there is one writer, so nothing comes in between."""
        if not await self.exists(key):
            await self.set(key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        """`set` for callers without an event loop."""
        write_durably(self.root / key, [value.to_bytes()])
