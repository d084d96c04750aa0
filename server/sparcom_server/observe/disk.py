"""Watch the free space of the data folder, so that a job pauses before the disk is full and no row is lost."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

CHECK_SECONDS = 5.0
RESUME_FACTOR = 1.1  # a full disk counts as full until this multiple of `min_bytes` is free


class DiskWatch:
    """Free space of one folder.

    Args:
        folder: any folder on the disk.
        warn_bytes: below this, `problems` and the log warn.
        min_bytes: below this, `full` is true, and jobs must wait.
        statvfs: `os.statvfs`, or a substitute.
    """

    def __init__(
        self,
        folder: Path,
        warn_bytes: int,
        min_bytes: int,
        statvfs: Callable[[Path], os.statvfs_result] = os.statvfs,
    ) -> None:
        self._folder, self._statvfs = folder, statvfs
        self._warn_bytes, self._min_bytes = max(warn_bytes, min_bytes), min_bytes
        self._error = ""
        self._warning = ""  # kind of the last logged problem
        self.free_bytes: int | None = None  # None if it cannot be read
        self.full = False

    def check(self) -> None:
        """Read the free space, and log a change between enough, little and too little. Blocks."""
        try:
            found = self._statvfs(self._folder)
        except OSError as error:
            self.free_bytes, self._error = None, f"{error.strerror}"
            self.full = True
        else:
            self.free_bytes, self._error = found.f_bavail * found.f_frsize, ""
            self.full = self.free_bytes < self._min_bytes * (RESUME_FACTOR if self.full else 1)
        kind = "full" if self.full else "low" if self._low else ""
        if kind != self._warning:
            logger.warning(self.problem or "the disk of the data folder has enough free space again")
        self._warning = kind

    async def run(self) -> None:
        """Check every few seconds until cancelled."""
        while True:
            await asyncio.to_thread(self.check)
            await asyncio.sleep(CHECK_SECONDS)

    @property
    def _low(self) -> bool:
        return self.free_bytes is not None and self.free_bytes < self._warn_bytes

    @property
    def problem(self) -> str:
        """Why jobs must wait, or soon must; empty if there is enough space."""
        if self._error:
            return f"the free space of the data folder cannot be read: {self._error}. Jobs wait until it can be"
        if not (self.full or self._low):
            return ""
        least = f"{self._min_bytes / 2**30:,.2f} GiB"
        state = f"jobs wait until more than {least} are free" if self.full else f"jobs wait below {least}"
        return (
            f"the disk of the data folder has {(self.free_bytes or 0) / 2**30:,.2f} GiB left; {state}. Delete "
            "archives that are no longer needed, or enlarge the disk"
        )
