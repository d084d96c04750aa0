"""Which instructions of an archive failed, and why. It knows the archive format, not the job."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sparcom_data.archive import open_archive
from sparcom_data.errors import DamagedArchiveError
from sparcom_data.schema import State
from sparcom_server.schemas import Failure

SHOWN = 20


def read_failures(path: Path, run: str, limit: int = SHOWN) -> list[Failure]:
    """The first `limit` failed instructions of the archive at `path`, in the order they were submitted.

    Raises:
        ArchiveError: it cannot be read, or is not of this run.
    """
    archive = open_archive(path, follow_links=False)
    if archive.attributes.run != run:
        raise DamagedArchiveError(f"another archive took the place of {path}")
    ids, reasons = archive.strings("id"), archive.strings("error")
    rows = np.flatnonzero(archive.instructions.state == State.FAILED)[:limit]
    return [Failure(id=ids[row], error=reasons[row]) for row in rows]
