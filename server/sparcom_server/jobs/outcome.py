"""Read from an archive how far a part of a job is, and close the archive of a cancelled job. All of it blocks."""

from __future__ import annotations

import logging
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
    """State of a part's archive. closed: nothing writes it any more. bytes: on disk, 0 unless asked for."""

    closed: bool
    progress: Progress
    bytes: int = 0


def part_facts(path: Path, part: PartRow, *, size: bool = False) -> PartFacts | None:
    """Return the facts of the archive of a part; None if it was not created.

    Raises:
        StorageError: the archive vanished, or another one is in its place.
    """
    if not path.exists():
        if part.state == "pending" or size:
            return None
        raise StorageError(
            f"an archive must stay in place until its job has ended; {path} was removed or renamed. "
            "Submit the instructions again"
        )
    try:
        PinnedArchive(path, part.run)
        archive = open_archive(path, follow_links=False)
    except SparcomError:
        if size:
            return None
        raise
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
    return PartFacts(archive.attributes.state == "complete", progress, folder_bytes(path) if size else 0)


def close_cancelled(path: Path, part: PartRow) -> Progress | None:
    """Mark the pending instructions of a part as cancelled and close its archive; None if there is none."""
    facts = part_facts(path, part, size=True)
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
        if not part.progress.get("failed") or not path.exists():
            continue
        try:
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
