"""Leftovers of a crash: partial files in an archive, and partial folders beside it.

A process that creates or writes an archive holds a shared lock on its folder (`PinnedFolder.lock`). Locked folders are
never touched.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparcom_data.storage import PARTIAL_ENDING, PARTIAL_NAME
from sparcom_data.storage.identity import try_lock


@contextmanager
def locked_folder(path: Path) -> Iterator[bool | None]:
    """Lock a folder exclusively. Yield False if a process writes in it, None if the file system has no locks.

    Raises:
        OSError: no folder is at `path`, or a link.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield try_lock(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


def remove_partial_files(archive: Path) -> None:
    """Remove the incomplete files in an archive that no process writes."""
    for parent, _, names in os.walk(archive):
        for name in filter(PARTIAL_NAME.fullmatch, names):
            (Path(parent) / name).unlink(missing_ok=True)


def remove_partial_folder(path: Path) -> bool:
    """Remove a partial folder unless a process writes in it. Return whether it was removed."""
    with locked_folder(path) as free:
        if free:
            shutil.rmtree(path)
        return bool(free)


def remove_partial_siblings(archive: Path) -> None:
    """Remove the partial folders that crashes left beside an archive of this name."""
    own = re.compile(re.escape(archive.name) + PARTIAL_ENDING)
    for path in archive.parent.iterdir():
        if own.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            remove_partial_folder(path)
