"""Which archive lies at a path, so that another archive in its place is noticed and never mixed with it.

    writer   PinnedArchive   holds the folder open and writes through the descriptor, wherever the path leads by then
    reader   ArchiveWatch    looks at the folder again after each read

An archive is told from another by its attributes, of which the run id is unique; only `state` may change. Reading
zarr.json for every chunk would be slow, so both compare five numbers of the folder and of zarr.json first.
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
_Marks = tuple[int, int, int, int, int]


def _marks(path: Path) -> _Marks:
    """Numbers that change when another archive takes the place: of the folder, and of its zarr.json."""
    folder, file = path.stat(), (path / ROOT_METADATA).stat()
    return folder.st_dev, folder.st_ino, file.st_ino, file.st_mtime_ns, file.st_size


def identity_of(section: object) -> dict[str, Any]:
    """What tells an archive from another: the attribute `sparcom` without `state`; empty where it is no object."""
    return {key: value for key, value in section.items() if key != "state"} if isinstance(section, dict) else {}


def _read_identity(metadata: bytes) -> dict[str, Any]:
    """The identity in the content of a root's zarr.json."""
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
    """Notices that the archive in a folder was removed or replaced. For readers.

    Make it before the archive is opened: what takes its place from then on is noticed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._marks = _marks(path)

    def check(self, identity: dict[str, Any]) -> None:
        """Look at the folder again: two calls of `stat` where nothing has changed.

        Args:
            identity: of the archive that was opened, see `identity_of`.

        Raises:
            ArchiveNotFoundError: nothing is there any more.
            DamagedArchiveError: another archive is there.
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
    """The same for an archive behind an address, opened as `group`."""

    def __init__(self, address: str, group: zarr.Group) -> None:
        self._address, self._group = address, group

    def check(self, identity: dict[str, Any]) -> None:
        """Ask the server for zarr.json again; arguments and errors are those of `ArchiveWatch.check`."""
        key = f"{self._group.path}/{ROOT_METADATA}".lstrip("/")
        found = sync(self._group.store.get(key, default_buffer_prototype()))
        if found is None:
            raise _gone_while_read(self._address)
        if _read_identity(found.to_bytes()) != identity:
            raise _replaced_while_read(self._address)


def _gone_while_read(where: str) -> ArchiveNotFoundError:
    """The error for an archive that was removed under a reader."""
    return ArchiveNotFoundError(
        f"an archive must stay in place while it is read; {where} was removed. Restore it and start again"
    )


def _replaced_while_read(where: str) -> DamagedArchiveError:
    """The error for an archive that was replaced under a reader."""
    return DamagedArchiveError(
        f"an archive must stay in place while it is read; another archive took the place of {where}. Start again, to "
        "read the new one alone"
    )


class PinnedFolder:
    """A folder held open by a descriptor, which is closed when nobody refers to this object any more.

    root: the folder through the descriptor. It leads to this folder after it was renamed, and nowhere after it was
    removed. Names below it never lead into a folder that took its place.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        self.root = Path(f"/proc/self/fd/{self._descriptor}")

    def lock(self) -> bool:
        """Say that a live process writes here, until `unlock` or the end of the process.

        Returns:
            False where another process is removing the folder.
        """
        return try_lock(self._descriptor, fcntl.LOCK_SH) is not False

    def unlock(self) -> None:
        """Take back what `lock` said."""
        try_lock(self._descriptor, fcntl.LOCK_UN)

    def is_at(self, path: Path) -> bool:
        """Whether the folder lies at this path."""
        try:
            return os.path.samestat(path.stat(), os.fstat(self._descriptor))
        except OSError:
            return False


def try_lock(descriptor: int, kind: int) -> bool | None:
    """Lock a folder without waiting; `kind` is one of fcntl.LOCK_….

    Returns:
        False where another holds it; None where the file system has no such locks.
    """
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


class PinnedArchive:
    """The archive that one job writes. All writes go through `root`, so none can reach another archive.

    Args:
        path: where it lies.
        run: the run id that it must have; None takes what is there.
        folder: the folder at `path`, where the caller holds it open already.

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
        """The folder, whatever `path` leads to."""
        return self.folder.root

    @property
    def run(self) -> str | None:
        """The run id; None in archives of earlier releases."""
        return self._identity.get("run")

    def check(self) -> None:
        """Raise StorageError where the archive is no longer at its path: some microseconds."""
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
        """Check before and after a write; a write that fails because the archive is gone says that."""
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
