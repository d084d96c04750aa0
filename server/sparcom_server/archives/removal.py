"""Removes archives, and what a crash left behind, from the folder of archives. It does not know jobs.

A process that creates or writes an archive holds a shared lock on its folder (`PinnedFolder.lock`), also where it is
another service or an offline extraction. What is locked is left alone.
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

log = logging.getLogger(__name__)


def remove_archive(path: Path) -> None:
    """Remove an archive. It vanishes whole: it is renamed first. No link is followed. Blocks.

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


def sweep(folder: Path, suffix: str) -> None:
    """Remove what a crash left in the folder of archives: folders and files that were never whole. Blocks.

    Args:
        suffix: that the names of archives end in.
    """
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or not path.is_dir():
            continue
        try:
            if PARTIAL_NAME.fullmatch(path.name):
                _sweep_folder(path)
            elif path.name.endswith(suffix) and _is_open(path):
                _sweep_files(path)
        except OSError as error:
            log.warning("what a crash left in %s cannot be removed: %s", path, error)


def _sweep_folder(path: Path) -> None:
    with _locked(path) as free:
        if free:
            shutil.rmtree(path)
            log.info("removed %s, which a crash had left", path.name)


def _is_open(path: Path) -> bool:
    """Whether an archive was left open: a file that is not whole lies only in such a one."""
    try:
        return open_archive(path, follow_links=False).attributes.state == "open"
    except ArchiveError:
        return False


def _sweep_files(path: Path) -> None:
    with _locked(path) as free:
        if free:
            for parent, _, names in os.walk(path):
                for name in filter(PARTIAL_NAME.fullmatch, names):
                    (Path(parent) / name).unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[bool | None]:
    """Hold a folder for oneself: False where somebody writes in it, None where the file system has no locks."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield try_lock(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)
