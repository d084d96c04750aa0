"""Remove archives, and the leftovers of a crash, from the folder of archives.

A process that creates or writes an archive holds a shared lock on its folder (`PinnedFolder.lock`). Locked folders are
never touched.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparcom_data.archive import open_archive
from sparcom_data.errors import ArchiveError, ArchiveNotFoundError, JobStateError, StorageError
from sparcom_data.storage import PARTIAL_NAME, partial_name, sync_path
from sparcom_data.storage.identity import try_lock
from sparcom_server.archives import SUFFIX

logger = logging.getLogger(__name__)


def remove_archive(path: Path) -> None:
    """Remove an archive. Renames it first, so that it vanishes as a whole. Follows no link. Blocks.

    Raises:
        ArchiveNotFoundError: no folder is at `path`.
        JobStateError: a process is writing it.
        StorageError: the operating system refused.
    """
    try:
        with _locked(path) as free:
            if free is False:
                raise JobStateError(
                    f"an archive can be deleted once no process writes it; another process writes {path}. Stop it first"
                )
            aside = partial_name(path)
            path.rename(aside)
            sync_path(path.parent)
            shutil.rmtree(aside)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArchiveNotFoundError(f"there is no archive at {path}") from error
    except OSError as error:
        raise StorageError(
            f"deleting {path} failed: {error.strerror or error} (errno {error.errno}). Check its permissions; "
            "the next start of the service removes the rest"
        ) from error


def sweep(folder: Path) -> None:
    """Remove the incomplete folders and files of a crash from the folder of archives. Blocks."""
    for path in sorted(folder.glob("*")):  # nothing if there is no folder
        partial = PARTIAL_NAME.fullmatch(path.name)
        if path.is_symlink() or not path.is_dir():
            continue
        try:
            if not partial and not (path.name.endswith(SUFFIX) and _is_open(path)):
                continue
            with _locked(path) as free:
                if free and partial:
                    shutil.rmtree(path)
                    logger.info("removed %s, left by a crash", path.name)
                elif free:
                    _remove_partial_files(path)
        except OSError as error:
            logger.warning("leftovers of a crash in %s cannot be removed: %s", path, error)


def _is_open(path: Path) -> bool:
    """Return whether an archive was left open; only open archives have incomplete files."""
    try:
        return open_archive(path, follow_links=False).attributes.state == "open"
    except ArchiveError:
        return False


def _remove_partial_files(path: Path) -> None:
    for parent, _, names in os.walk(path):
        for name in filter(PARTIAL_NAME.fullmatch, names):
            (Path(parent) / name).unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[bool | None]:
    """Lock a folder exclusively. Yield False if a process writes in it, None if the file system has no locks."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield try_lock(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)
