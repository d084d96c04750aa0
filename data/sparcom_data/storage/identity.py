"""Identity of an archive, so that readers and writers notice if another archive takes its place.

    writer   PinnedArchive   holds the folder open and writes through the descriptor, wherever the path leads
    reader   ArchiveWatch    checks the folder again after each read

The attributes identify an archive: the run id is unique, and only `state` may change. Reading zarr.json for every chunk
would be slow, so both first compare five numbers from `stat` of the folder and of zarr.json.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from sparcom_data.errors import ArchiveNotFoundError, DamagedArchiveError, StorageError

ROOT_METADATA = "zarr.json"
_CHANGING = ("state", "engine")  # fields of the attribute that closing an archive changes
_Marks = tuple[int, int, int, int, int]


def _marks(path: Path) -> _Marks:
    """Return numbers from `stat` of the folder and of its zarr.json that change if another archive takes the place."""
    folder, file = path.stat(), (path / ROOT_METADATA).stat()
    return folder.st_dev, folder.st_ino, file.st_ino, file.st_mtime_ns, file.st_size


def identity_of(section: object) -> dict[str, Any]:
    """Return the identity of an archive: its attribute `sparcom` without the fields that closing it changes.

    Empty if that is no object.
    """
    return {key: held for key, held in section.items() if key not in _CHANGING} if isinstance(section, dict) else {}


def _read_identity(metadata: bytes) -> dict[str, Any]:
    """Return the identity in the contents of a root's zarr.json."""
    try:
        return identity_of(json.loads(metadata)["attributes"]["sparcom"])
    except (ValueError, KeyError, TypeError):
        return {}


def _identity_at(folder: Path) -> dict[str, Any]:
    # O_NONBLOCK: opening a FIFO must not wait for a writer.
    descriptor = os.open(folder / ROOT_METADATA, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        return _read_identity(file.read() if stat.S_ISREG(os.fstat(descriptor).st_mode) else b"")


class ArchiveWatch:
    """Notices if the archive in a folder was removed or replaced. For readers.

    Create it before opening the archive: it notices any later replacement.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._marks = _marks(path)

    def check(self, identity: dict[str, Any]) -> None:
        """Check the folder again; takes two calls of `stat` if nothing changed.

        Args:
            identity: identity of the opened archive, see `identity_of`.

        Raises:
            ArchiveNotFoundError: the archive was removed.
            DamagedArchiveError: another archive took its place.
        """
        try:
            marks = _marks(self._path)
            if marks == self._marks:
                return
            found = _identity_at(self._path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _gone_while_read(str(self._path)) from error
        if found != identity:
            raise _replaced_while_read(str(self._path))
        self._marks = marks


class RemoteWatch:
    """Notices if the archive at an HTTP address, opened as `group`, was removed or replaced."""

    def __init__(self, address: str, group: zarr.Group) -> None:
        self._address, self._group = address, group

    def check(self, identity: dict[str, Any]) -> None:
        """Fetch zarr.json again; arguments and errors as in `ArchiveWatch.check`."""
        key = f"{self._group.path}/{ROOT_METADATA}".lstrip("/")
        found = sync(self._group.store.get(key, default_buffer_prototype()))
        if found is None:
            raise _gone_while_read(self._address)
        if _read_identity(found.to_bytes()) != identity:
            raise _replaced_while_read(self._address)


def _gone_while_read(where: str) -> ArchiveNotFoundError:
    """Return the error for an archive that was removed during reading."""
    return ArchiveNotFoundError(
        f"an archive must stay in place while it is read; {where} was removed. Restore it and start again"
    )


def _replaced_while_read(where: str) -> DamagedArchiveError:
    """Return the error for an archive that was replaced during reading."""
    return DamagedArchiveError(
        f"an archive must stay in place while it is read; another archive took the place of {where}. Start again "
        "to read only the new one"
    )


class PinnedFolder:
    """A folder held open by a descriptor, which is closed when this object is garbage-collected.

    root: path of the folder through the descriptor. It follows renames and leads nowhere after a removal. Names below
    it never lead into a replacement folder.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        self.root = Path(f"/proc/self/fd/{self._descriptor}")

    def lock(self) -> bool:
        """Mark the folder as in use by a live process, until `unlock` or the end of the process.

        Returns:
            False if another process is removing the folder, or resumes the archive.
        """
        return try_lock(self._descriptor, fcntl.LOCK_SH) is not False

    def lock_alone(self) -> bool:
        """Lock the folder for this object alone, until `lock`, `unlock` or the end of the process.

        Returns:
            False if a process uses the folder.
        """
        return try_lock(self._descriptor, fcntl.LOCK_EX) is not False

    def unlock(self) -> None:
        """Release the lock."""
        try_lock(self._descriptor, fcntl.LOCK_UN)

    @contextmanager
    def unlocked_on_error(self) -> Iterator[None]:
        """Release the lock at an error: its traceback keeps this object alive for longer than the caller expects."""
        try:
            yield
        except BaseException:
            self.unlock()
            raise

    def is_at(self, path: Path) -> bool:
        """Return whether the folder is at this path."""
        try:
            return os.path.samestat(path.stat(), os.fstat(self._descriptor))
        except OSError:
            return False


def try_lock(descriptor: int, kind: int) -> bool | None:
    """Lock a folder without waiting; `kind` is one of fcntl.LOCK_….

    Returns:
        False if another process holds the lock; None if the file system supports no such locks.
    """
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


class PinnedArchive:
    """The archive that one job writes to. All writes go through `root`, so none can reach another archive.

    Args:
        path: path of the archive.
        run: required run id; None accepts any.
        folder: the folder at `path`, if the caller already holds it open.

    Raises:
        StorageError: nothing is at `path`, or the archive of another run.
    """

    def __init__(self, path: Path, run: str | None = None, folder: PinnedFolder | None = None) -> None:
        self.path = path.absolute()
        try:
            self.folder = folder or PinnedFolder(path)
            self._marks = _marks(self.root)
            self._identity = _identity_at(self.root)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._gone() from error
        if run is not None and self.run != run:
            raise self._replaced()
        self.check()

    @property
    def root(self) -> Path:
        """The folder of this archive, wherever `path` leads."""
        return self.folder.root

    @property
    def run(self) -> str | None:
        """The run id; None in archives of earlier releases."""
        return self._identity.get("run")

    def check(self) -> None:
        """Raise StorageError if the archive is no longer at its path. Takes some microseconds."""
        try:
            marks = _marks(self.path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._gone() from error
        if marks == self._marks:
            return
        if not self.folder.is_at(self.path) or _identity_at(self.root) != self._identity:
            raise self._replaced()
        self._marks = marks  # `state` was written

    @contextmanager
    def checked(self) -> Iterator[None]:
        """Check before and after a write; a write that fails because the archive is gone reports that cause."""
        self.check()
        try:
            yield
        except Exception:
            self.check()
            raise
        self.check()

    def _gone(self) -> StorageError:
        return StorageError(
            f"an archive must stay in place until its job has ended; {self.path} was removed or renamed. Run the "
            "instructions again"
        )

    def _replaced(self) -> StorageError:
        return StorageError(
            f"an archive must stay in place until its job has ended; another archive took the place of {self.path}. "
            "Nothing was written into that one: run the instructions again under another name"
        )
