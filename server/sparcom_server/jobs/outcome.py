"""Read from an archive how far a part of a job is, and close the archive of a cancelled job. All of it blocks."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sparcom_data.archive import open_archive
from sparcom_data.commit import ArchiveCommitter
from sparcom_data.errors import SparcomError, StorageError
from sparcom_data.progress import Progress
from sparcom_data.schema import State
from sparcom_data.storage.identity import PinnedArchive
from sparcom_server.archives.store import ArchiveStore, folder_bytes
from sparcom_server.database.tables import JobRow, PartRow
from sparcom_server.schemas.reports import Failure

logger = logging.getLogger(__name__)

MAX_FAILURES = 20  # listed per job


@dataclass(frozen=True, slots=True)
class PartFacts:
    """State of a part's archive. closed: nothing writes it any more."""

    closed: bool
    progress: Progress


def part_facts(path: Path, part: PartRow) -> PartFacts | None:
    """Return the facts of the archive of a part; None if it was not created.

    Raises:
        StorageError: the archive vanished, or another one is in its place.
        OSError: it cannot be read.
    """
    if not os.path.lexists(path):
        if part.state == "pending":
            return None
        raise StorageError(
            f"an archive must stay in place until its job has ended; {path} was removed or renamed. "
            "Submit the instructions again"
        )
    PinnedArchive(path, part.run)
    archive = open_archive(path, follow_links=False)
    table = archive.instructions
    states = np.asarray(table.state)
    progress = replace(
        Progress(**part.progress),
        complete=int((states == State.COMPLETE).sum()),
        failed=int((states == State.FAILED).sum()),
        cancelled=int((states == State.CANCELLED).sum()),
        tokens_done=int(table.token_length[table.complete].sum(dtype="int64")),
        seconds_left=None,
    )
    return PartFacts(archive.attributes.state == "complete", progress)


def kept_bytes(path: Path, part: PartRow) -> int | None:
    """Return the bytes on disk of the archive of a part; None if it is gone, or another one is in its place."""
    try:
        PinnedArchive(path, part.run)
        return folder_bytes(path)
    except StorageError:
        return None
    except OSError as error:  # it is there, and its owner keeps it
        logger.warning("the size of %s cannot be read: %s", path, error)
        return 0


def close_cancelled(path: Path, part: PartRow) -> Progress | None:
    """Mark the pending instructions of a part as cancelled and close its archive; None if there is none."""
    try:
        facts = part_facts(path, part)
    except SparcomError as error:
        logger.warning("an archive cannot be closed: %s", error)
        return None
    if facts is None or facts.closed:
        return None if facts is None else facts.progress
    committer = ArchiveCommitter(PinnedArchive(path, part.run))
    pending = np.flatnonzero(open_archive(path, follow_links=False).instructions.state == State.PENDING).tolist()
    committer.cancel(pending)
    committer.close()
    return replace(facts.progress, cancelled=facts.progress.cancelled + len(pending))


def read_failures(archives: ArchiveStore, job: JobRow) -> list[str]:
    """Return the first failed instructions of a job as JSON of `Failure`, at most 20, in order of submission."""
    found: list[str] = []
    for part in job.parts:
        path = archives.path(part.archive)
        if not part.progress.get("failed"):
            continue
        try:
            if not path.exists():
                continue
            PinnedArchive(path, part.run)
            archive = open_archive(path, follow_links=False)
            ids, reasons = archive.strings("id"), archive.strings("error")
            rows = np.flatnonzero(archive.instructions.state == State.FAILED)[: MAX_FAILURES - len(found)]
            failures = [Failure(id=ids[row], error=reasons[row]) for row in rows]
        except (SparcomError, OSError) as error:
            logger.warning("the failures of extraction %s cannot be read: %s", job.id, error)
            failures = [Failure(id="", error="the reasons cannot be read from the archive; see the server's log")]
        found += [failure.model_dump_json() for failure in failures]
    return found
