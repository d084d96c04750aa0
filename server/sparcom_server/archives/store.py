"""The folder of archives: paths, the list, the facts of one archive, and safe access to its files.

Nothing outside the folder can be reached: names are validated, keys are resolved part by part, links are refused.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from functools import lru_cache
from pathlib import Path

from sparcom_data.archive import open_archive
from sparcom_data.describe import describe_states
from sparcom_data.errors import ArchiveNotFoundError, NotAnArchiveError
from sparcom_data.schema.metadata import ArchiveAttributes, parse_attributes
from sparcom_data.storage import PARTIAL_SUFFIX
from sparcom_data.storage.beneath import open_beneath
from sparcom_server.access.principal import is_stored_name
from sparcom_server.archives import SUFFIX
from sparcom_server.archives.removal import remove_archive
from sparcom_server.schemas.reports import ArchiveFacts, ArchiveState


def archive_state(attributes: ArchiveAttributes, instructions: dict[str, int]) -> ArchiveState:
    """Return the state for clients. `instructions`: number in each state, see `describe_states`."""
    if attributes.state == "open":
        return "open"
    return "complete" if instructions["complete"] == sum(instructions.values()) else "incomplete"


class ArchiveStore:
    """Archives NAME.zarr in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """Return the path of an archive; the name is not validated here."""
        return self.folder / f"{name}{SUFFIX}"

    async def remove(self, name: str) -> None:
        """Remove an archive; errors as in `remove_archive`."""
        await asyncio.to_thread(remove_archive, self._existing(name))

    def names(self) -> list[str]:
        """Return the names of all archives, newest first by modification time of the folder. Blocks."""
        try:
            with os.scandir(self.folder) as entries:
                found = [
                    (entry.stat(follow_symlinks=False).st_mtime, entry.name.removesuffix(SUFFIX))
                    for entry in entries
                    if entry.name.endswith(SUFFIX) and entry.is_dir(follow_symlinks=False)
                ]
        except FileNotFoundError:  # no archive was ever written
            return []
        return [name for _, name in sorted(found, reverse=True) if is_stored_name(name)]

    def _existing(self, name: str) -> Path:
        path = self.path(name)
        if not is_stored_name(name) or path.is_symlink() or not path.is_dir():
            raise no_archive(name)
        return path

    def attributes(self, name: str) -> ArchiveAttributes:
        """Return only the attributes, from one small file. Blocks.

        Raises:
            ArchiveError: it is not an archive, or has a newer format.
        """
        path = str(self.path(name))
        descriptor = self.open_file(name, "zarr.json")
        if descriptor is None:
            raise NotAnArchiveError(f"a SPARCOM archive is a Zarr v3 group; {path} has no zarr.json")
        with os.fdopen(descriptor, "rb") as file:
            try:
                attributes = json.load(file)["attributes"]
            except (ValueError, KeyError, TypeError) as error:
                raise NotAnArchiveError(f"zarr.json of {path} does not describe a Zarr v3 group") from error
        return parse_attributes(attributes if isinstance(attributes, dict) else {}, path)

    def states(self, name: str, attributes: ArchiveAttributes) -> dict[str, int]:
        """Count the instructions in each state; counts of a closed archive are cached. Blocks.

        Raises:
            ArchiveError: they cannot be read.
        """
        path = self.path(name)
        if attributes.state == "open":
            return _read_states(path)
        try:
            status = (path / "zarr.json").lstat()
        except FileNotFoundError as error:
            raise no_archive(name) from error
        return _cached_states(path, status.st_ino, status.st_mtime_ns)

    def facts(self, name: str) -> ArchiveFacts:
        """Read the instruction table and walk the folder of one archive. Links are not followed. Blocks.

        Raises:
            ArchiveError: no archive has that name, or it cannot be read.
        """
        path = self._existing(name)
        archive = open_archive(path, follow_links=False)
        table = archive.instructions
        instructions = describe_states(table.state)
        return ArchiveFacts(
            state=archive_state(archive.attributes, instructions),
            attributes=archive.attributes,
            instructions=instructions,
            categories=dict(sorted(Counter(table.category).items())),
            tokens=int(table.token_length[table.complete].sum(dtype="int64")),
            bytes=folder_bytes(path),
        )

    def open_file(self, name: str, key: str) -> int | None:
        """Return a descriptor of the regular file at `key` of an archive, or None. The caller closes it.

        Each part of the key is opened relative to the one before, and links are refused. Neither `..` nor a link can
        therefore lead out of the archive. Files that are still being written count as missing.
        """
        parts = [f"{name}{SUFFIX}", *key.split("/")]
        if not is_stored_name(name) or any(part.endswith(PARTIAL_SUFFIX) for part in parts):
            return None
        return open_beneath(self.folder, parts)


def _read_states(path: Path) -> dict[str, int]:
    return describe_states(open_archive(path, follow_links=False).column("state"))


@lru_cache(maxsize=4096)
def _cached_states(path: Path, _inode: int, _modified: int) -> dict[str, int]:
    """Return the states of an archive. The cache key identifies zarr.json, which a job writes last."""
    return _read_states(path)


def folder_bytes(folder: Path) -> int:
    """Return the total bytes of all files below a folder. A file that vanishes meanwhile was being replaced."""
    total = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            try:
                total += (Path(parent) / file).lstat().st_size
            except FileNotFoundError:
                continue
    return total


def no_archive(name: str) -> ArchiveNotFoundError:
    """Return the error for an archive that does not exist, or that the client may not see."""
    return ArchiveNotFoundError(f"there is no archive {name[:140]!r}; GET /v1/archives lists all archives")
