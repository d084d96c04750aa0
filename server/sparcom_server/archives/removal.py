"""Removes archives, and what a crash left behind, from the folder of archives.

A process that creates or writes an archive holds a shared lock on its folder (`PinnedFolder.lock`). A locked folder is
left alone.
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
    """Remove an archive. It vanishes whole, since it is renamed first. No link is followed. Blocks.

    Raises:
        ArchiveNotFoundError: no folder is at `path`.
        JobStateError: a process writes it.
        StorageError: the operating system refused.
    """
    try:
        with _locked(path) as free:
            if free is False:
                raise JobStateError(
                    f"an archive can be deleted once nobody writes it; another process writes {path}. End it first"
                )
            aside = partial_name(path)
            path.rename(aside)
            sync_path(path.parent)
            shutil.rmtree(aside)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArchiveNotFoundError(f"there is no archive at {path}") from error
    except OSError as error:
        raise StorageError(
            f"deleting {path} failed: {error.strerror or error} (errno {error.errno}). Check who may write its folder; "
            "what is left of it is removed when the service starts again"
        ) from error


def sweep(folder: Path) -> None:
    """Remove incomplete folders and files that a crash left in the folder of archives. Blocks."""
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
                    logger.info("removed %s, which a crash had left", path.name)
                elif free:
                    _remove_partial_files(path)
        except OSError as error:
            logger.warning("what a crash left in %s cannot be removed: %s", path, error)


def _is_open(path: Path) -> bool:
    """Return whether an archive was left open: only such a one has incomplete files."""
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
    """Lock a folder exclusively. Yields False if somebody writes in it, None if the file system has no locks."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield try_lock(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)
