"""Durable writes: write to a temporary name, sync, rename.

Rule 3 of the archive. zarr-python writes the small arrays through `DurableStore`. Mask chunks are written directly:
their encoding (raw bytes and a CRC32C) needs no codec pipeline.

    open a temporary name ─▶ write whole blocks of large aligned parts by direct I/O, the rest through the page cache
                          ─▶ fdatasync ─▶ rename ─▶ fsync of the folder
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import re
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from crc32c import crc32c
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from sparcom_data.errors import DiskFullError, StorageError

PARTIAL_SUFFIX = ".partial"
PARTIAL_ENDING = r"\.[0-9a-f]{32}\.partial"  # of a regular expression
PARTIAL_NAME = re.compile(rf".+{PARTIAL_ENDING}")
FILE_MODE, FOLDER_MODE = 0o600, 0o700  # archives hold instruction texts: only the owner may decide to share them
DIRECT_FROM = 1 << 20  # bytes; at this size both ways take equally long, above it direct I/O is faster (decision 0027)
DIRECT_BLOCK = 4096  # alignment of address, offset and length of a direct write, on any usual disk

_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)  # in Python from 3.13
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1  # of Linux's <fcntl.h> and <stdio.h>

type_bytes = bytes | bytearray | memoryview


def shown_path(path: Path) -> Path:
    """Return the path to show to users: one that leads through a descriptor is resolved to its folder's path."""
    parts = path.parts
    if parts[:4] != ("/", "proc", "self", "fd"):
        return path
    return Path(*parts[:5]).readlink().joinpath(*parts[5:])


def storage_error(path: Path, error: OSError) -> StorageError:
    """Return the error for a failed write: DiskFullError if the disk or the quota is full."""
    kind = DiskFullError if error.errno in {errno.ENOSPC, errno.EDQUOT} else StorageError
    return kind(
        f"writing {shown_path(path)} failed: {error.strerror or error} (errno {error.errno}). What was complete stays "
        "complete; free space or repair the storage, then run the rest again"
    )


def aligned_memory(size: int) -> memoryview:
    """Return `size` bytes of writable zeroed memory, aligned so that `write_durably` can use direct I/O.

    Pages take memory only once they are touched, so `size` may exceed the memory of the machine.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    return memoryview(mmap.mmap(-1, max(1, size), flags=flags))[:size]


def partial_name(path: Path) -> Path:
    """Return a new name beside `path` for an item that is incomplete or being removed."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")


def write_durably(path: Path, parts: Sequence[type_bytes], mode: int = FILE_MODE) -> None:
    """Write the concatenated parts to `path` atomically: the file holds all of them or does not exist.

    Its folder must exist: a folder removed during a job is not recreated.

    Args:
        mode: permissions of the file; by default only the owner may read it.

    Raises:
        StorageError: the operating system refused; nothing is left behind.
    """
    temporary = partial_name(path)
    try:
        try:
            _write_file(temporary, parts, mode)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_path(path.parent)
    except OSError as error:
        raise storage_error(path, error) from error


def write_file(path: Path, parts: Sequence[type_bytes]) -> None:
    """Write a result, a data set or a form as `write_durably` does, and create its folder.

    Such files are meant to be shared, so their permissions follow the umask; archives are private to their owner.
    """
    try:
        make_folder(path.parent, mode=0o777)
    except OSError as error:
        raise storage_error(path, error) from error
    write_durably(path, parts, 0o666)


def _write_file(path: Path, parts: Sequence[type_bytes], mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        for part in parts:
            _write_all(descriptor, memoryview(part).cast("B"))
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, view: memoryview) -> None:
    view = _write_blocks(descriptor, view)
    while view:
        view = view[os.write(descriptor, view) :]


def _write_blocks(descriptor: int, view: memoryview) -> memoryview:
    """Write the whole blocks of a large aligned view by direct I/O; return the rest.

    The four bytes of CRC32C leave every chunk unaligned, so its last block always goes through the page cache.
    """
    if not _can_be_direct(descriptor, view):
        return view
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
        while len(view) >= DIRECT_BLOCK:
            view = view[os.write(descriptor, view[: len(view) - len(view) % DIRECT_BLOCK]) :]
    except OSError as error:
        # EINVAL: this file system refuses direct I/O, or a partial write ended inside a block
        if error.errno != errno.EINVAL:
            raise
    finally:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
    return view


def _can_be_direct(descriptor: int, view: memoryview) -> bool:
    if len(view) < DIRECT_FROM or not hasattr(os, "O_DIRECT"):
        return False
    address = np.frombuffer(view, dtype=np.uint8).ctypes.data
    return address % DIRECT_BLOCK == 0 and os.lseek(descriptor, 0, os.SEEK_CUR) % DIRECT_BLOCK == 0


def make_folder(path: Path, within: Path | None = None, mode: int = FOLDER_MODE) -> None:
    """Create a folder and its parents durably; by default only the owner may read them.

    Args:
        within: a folder that must exist; only folders below it are created.
    """
    if path.is_dir():
        return
    above = path.parents if within is None else [folder for folder in path.parents if folder.is_relative_to(within)]
    for folder in reversed([path, *above]):
        if folder != within and not folder.exists():
            folder.mkdir(mode, exist_ok=True)
            sync_path(folder.parent)


def rename_new(old: Path, new: Path) -> None:
    """Rename a folder to a name that must be free; a plain rename would silently replace an empty folder.

    Raises:
        FileExistsError: the name is taken.
    """
    if _rename_no_replace(old, new):
        return
    new.mkdir(FOLDER_MODE)  # takes the name, or raises
    try:
        old.rename(new)  # replaces the empty folder
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new)) from error


def _rename_no_replace(old: Path, new: Path) -> bool:
    """Call Linux's renameat2; return False if this system or file system lacks it."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), _RENAME_NOREPLACE) == 0:
        return True
    number = ctypes.get_errno()
    if number in {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}:
        return False
    raise OSError(number, os.strerror(number), str(new))


def sync_path(path: Path) -> None:
    """Make a file, or the entries of a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def crc32c_suffix(data: type_bytes) -> bytes:
    """Return the four bytes that Zarr's `crc32c` codec appends: the CRC32C of `data`, little-endian.

    The library releases the interpreter lock for large data; google-crc32c does so only for `bytes`.
    """
    return crc32c(data).to_bytes(4, "little")


class DurableStore(LocalStore):
    """A local Zarr store that syncs each write before renaming it into place.

    Creates missing folders below its root, but never the root itself.

    zarr writes several chunks concurrently and raises the first failure while other writes run or wait to start. Close
    the store before removing or rewriting its contents.
    """

    def __init__(self, root: Path | str, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self._writing = 0
        self._closed = False
        self._change = threading.Condition()

    async def set(self, key: str, value: Buffer) -> None:
        """Write one value, synced; raises StorageError if that fails."""
        await asyncio.to_thread(self.set_sync, key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write one value if the key is missing; check and write cannot race, as there is only one writer."""
        if not await self.exists(key):
            await self.set(key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        """`set` for callers without an event loop."""
        path = self.root / key
        with self._write(path):
            self._make_folder(path.parent)
            write_durably(path, [value.to_bytes()])

    def _make_folder(self, path: Path) -> None:
        try:
            make_folder(path, within=self.root)
        except OSError as error:
            raise storage_error(path, error) from error

    def close(self) -> None:
        """Refuse further writes and wait for running ones; then nothing in the folder changes any more."""
        super().close()
        with self._change:
            self._closed = True
            self._change.wait_for(lambda: self._writing == 0)

    @contextlib.contextmanager
    def _write(self, path: Path) -> Iterator[None]:
        with self._change:
            if self._closed:
                raise StorageError(f"writing {path} was cancelled because an earlier write failed")
            self._writing += 1
        try:
            yield
        finally:
            with self._change:
                self._writing -= 1
                self._change.notify_all()


class FixedStore(DurableStore):
    """The store of an archive that a job writes to; all folders exist since the archive was created.

    A write into a removed folder raises StorageError.
    """

    def _make_folder(self, path: Path) -> None:
        pass
