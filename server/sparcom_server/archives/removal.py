"""Remove archives, and the leftovers of a crash, from the folder of archives. Locked folders are never touched."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from sparcom_data.archive import open_archive
from sparcom_data.errors import ArchiveError, ArchiveNotFoundError, JobStateError, StorageError
from sparcom_data.storage import PARTIAL_NAME, partial_name, sync_path
from sparcom_data.storage.leftovers import locked_folder, remove_partial_files, remove_partial_folder
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
        with locked_folder(path) as free:
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
            if partial and remove_partial_folder(path):
                logger.info("removed %s, left by a crash", path.name)
            elif path.name.endswith(SUFFIX) and _is_open(path):
                with locked_folder(path) as free:
                    if free:
                        remove_partial_files(path)
        except OSError as error:
            logger.warning("leftovers of a crash in %s cannot be removed: %s", path, error)


def _is_open(path: Path) -> bool:
    """Return whether an archive was left open; only open archives have incomplete files."""
    try:
        return open_archive(path, follow_links=False).attributes.state == "open"
    except ArchiveError:
        return False
