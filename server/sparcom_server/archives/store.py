"""The folder of archives: names to paths, the list, the facts of one, and safe access to the files inside.

Nothing outside the folder can be reached: names follow a rule, keys are walked part by part, and no link is followed.
It does not know jobs.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sparcom_data.archive import Archive, describe_states, open_archive
from sparcom_data.errors import (
    ArchiveError,
    ArchiveExistsError,
    ArchiveNotFoundError,
    JobStateError,
    NotAnArchiveError,
)
from sparcom_data.schema.metadata import ArchiveAttributes, parse_attributes
from sparcom_data.storage import PARTIAL_SUFFIX
from sparcom_data.storage.beneath import open_beneath
from sparcom_server.archives.removal import remove_archive, sweep
from sparcom_server.schemas import ARCHIVE_NAME, ArchiveState

SUFFIX = ".zarr"


@dataclass(frozen=True, slots=True)
class ArchiveFacts:
    """What is known of one archive. `tokens`: rows of complete instructions. `bytes`: size on disk."""

    attributes: ArchiveAttributes
    instructions: dict[str, int]
    categories: dict[str, int]
    tokens: int
    bytes: int


def archive_state(attributes: ArchiveAttributes, instructions: dict[str, int]) -> ArchiveState:
    """What may be said of an archive: `complete` only where every instruction is.

    Args:
        instructions: how many are in each state, see `describe_states`.
    """
    if attributes.state == "open":
        return "open"
    return "complete" if instructions["complete"] == sum(instructions.values()) else "incomplete"


class ArchiveStore:
    """Archives NAME.zarr in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._reserved: set[str] = set()

    def path(self, name: str) -> Path:
        """Where the archive of that name lies or would lie. The name must follow the rule already."""
        return self.folder / f"{name}{SUFFIX}"

    @contextmanager
    def reserve(self, name: str) -> Iterator[Path]:
        """Keep a name to oneself while its archive is created.

        Raises:
            ArchiveExistsError: it exists, or another request is creating it.
        """
        path = self.path(name)
        if name in self._reserved or os.path.lexists(path):
            raise ArchiveExistsError(
                f"an archive must have a new name; {name!r} exists. Choose another, or give none to have one derived"
            )
        with self._held(name):
            yield path

    @contextmanager
    def removing(self, name: str) -> Iterator[None]:
        """Keep a name to oneself while its archive is removed.

        Raises:
            JobStateError: another request is creating or removing it.
        """
        if name in self._reserved:
            raise JobStateError(
                f"an archive can be deleted once nobody writes it; {name!r} is being created or deleted. Try again soon"
            )
        with self._held(name):
            yield

    @contextmanager
    def _held(self, name: str) -> Iterator[None]:
        self._reserved.add(name)
        try:
            yield
        finally:
            self._reserved.discard(name)

    def remove(self, name: str) -> None:
        """Remove an archive, within `removing`. Blocks.

        Raises:
            ArchiveNotFoundError: there is none of that name.
            JobStateError: another process writes it.
            StorageError: the operating system refused.
        """
        remove_archive(self._existing(name))

    def sweep(self) -> None:
        """Remove what a crash left behind. Blocks."""
        sweep(self.folder, SUFFIX)

    def names(self) -> list[str]:
        """Names of all archives, the newest first (by when their folder last changed). Blocks."""
        try:
            with os.scandir(self.folder) as entries:
                found = [
                    (entry.stat(follow_symlinks=False).st_mtime, entry.name.removesuffix(SUFFIX))
                    for entry in entries
                    if entry.name.endswith(SUFFIX) and entry.is_dir(follow_symlinks=False)
                ]
        except FileNotFoundError:  # no archive was ever written
            return []
        return [name for _, name in sorted(found, reverse=True) if ARCHIVE_NAME.fullmatch(name)]

    def open(self, name: str) -> Archive:
        """Open an archive for reading; links inside it are not followed. Blocks.

        Raises:
            ArchiveNotFoundError: there is none of that name.
            ArchiveError: it cannot be read.
        """
        return open_archive(self._existing(name), follow_links=False)

    def _existing(self, name: str) -> Path:
        path = self.path(name)
        if not ARCHIVE_NAME.fullmatch(name) or path.is_symlink() or not path.is_dir():
            raise _no_archive(name)
        return path

    def attributes(self, name: str) -> ArchiveAttributes:
        """The attributes alone, from one small file. Blocks.

        Raises:
            ArchiveError: it is no archive, or one of a later format.
        """
        where = str(self.path(name))
        descriptor = self.open_file(name, "zarr.json")
        if descriptor is None:
            raise NotAnArchiveError(f"a SPARCOM archive is a Zarr v3 group; {where} has no zarr.json")
        with os.fdopen(descriptor, "rb") as file:
            try:
                attributes = json.load(file)["attributes"]
            except (ValueError, KeyError, TypeError) as error:
                raise NotAnArchiveError(f"zarr.json of {where} is not that of a Zarr v3 group") from error
        return parse_attributes(attributes if isinstance(attributes, dict) else {}, where)

    def states(self, name: str, attributes: ArchiveAttributes) -> dict[str, int]:
        """How many instructions are in each state; of an archive that nobody writes they are remembered. Blocks.

        Raises:
            ArchiveError: they cannot be read.
        """
        path = self.path(name)
        if attributes.state == "open":
            return _read_states(path)
        try:
            status = (path / "zarr.json").lstat()
        except FileNotFoundError as error:
            raise _no_archive(name) from error
        return _remembered_states(path, status.st_ino, status.st_mtime_ns)

    def facts(self, name: str) -> ArchiveFacts:
        """Read what is known of one archive. Blocks: it reads the instruction table and walks the folder."""
        archive = self.open(name)
        table = archive.instructions
        return ArchiveFacts(
            attributes=archive.attributes,
            instructions=describe_states(table.state),
            categories=dict(sorted(Counter(table.category).items())),
            tokens=int(table.token_length[table.complete].sum(dtype="int64")),
            bytes=_size(self.path(name)),
        )

    def open_file(self, name: str, key: str) -> int | None:
        """A descriptor of the regular file at `key` inside an archive, for the caller to close; None if there is none.

        Each part of the key is opened relative to the one before and links are refused, so that neither `..` nor a
        link that somebody put into the archive leads out of it. Files that are still being written do not exist.
        """
        if not ARCHIVE_NAME.fullmatch(name):
            return None
        parts = [f"{name}{SUFFIX}", *key.split("/")]
        if any(part.endswith(PARTIAL_SUFFIX) for part in parts):
            return None
        return open_beneath(self.folder, parts)


def _read_states(path: Path) -> dict[str, int]:
    return describe_states(open_archive(path, follow_links=False).column("state"))


@lru_cache(maxsize=4096)
def _remembered_states(path: Path, _inode: int, _changed: int) -> dict[str, int]:
    """The same for an archive whose zarr.json is this file, last changed then: it is written when the job ends."""
    return _read_states(path)


def _size(folder: Path) -> int:
    """Bytes of all files below a folder; one that vanishes meanwhile was being replaced."""
    total = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            try:
                total += (Path(parent) / file).lstat().st_size
            except FileNotFoundError:
                continue
    return total


def _no_archive(name: str) -> ArchiveError:
    return ArchiveNotFoundError(f"there is no archive {name!r} here; GET /v1/archives lists those there are")
