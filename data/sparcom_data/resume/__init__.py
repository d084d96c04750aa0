"""Reopen an archive that an interrupted extraction left open, if the same extraction would continue it.

    lock ─▶ compare with what would be created now ─▶ remove partial files ─▶ make unfinished instructions pending

Complete and failed instructions stay as they are. If none is complete, masks and counts start from empty arrays, whose
chunks fit the engine that runs now.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparcom_data.archive import Archive, InstructionTable, open_archive
from sparcom_data.commit import ArchiveCommitter
from sparcom_data.create import InstructionColumns, recreate_captured
from sparcom_data.errors import ArchiveExistsError, InvalidInputError, StorageError
from sparcom_data.schema import State
from sparcom_data.schema.layout import Layout
from sparcom_data.schema.metadata import ArchiveAttributes
from sparcom_data.storage.identity import PinnedArchive
from sparcom_data.storage.leftovers import remove_partial_files, remove_partial_siblings

LOCK_SECONDS = 15.0  # the engine of a process that was just killed may write for a moment
LOCK_CHECK_SECONDS = 0.1
ENGINE = ("vllm", "torch", "device", "tensor_parallel_size", "pipeline_parallel_size", "enforce_eager")  # of the bits
SETTLED = (State.COMPLETE, State.FAILED)
_SHOWN = 60  # characters of a value


def reopen_archive(
    path: Path, attributes: ArchiveAttributes, columns: InstructionColumns, layout: Layout, run: str | None = None
) -> tuple[PinnedArchive, InstructionTable]:
    """Reopen the archive at `path`, in state open, for the extraction that these arguments would create.

    Waits up to `LOCK_SECONDS` for another process to end.

    Args:
        attributes, columns, layout: as for `create_archive`.
        run: required run id; None accepts any.

    Returns:
        The archive, held open under an advisory lock like a new one, and its instructions. Each is complete, failed
        or pending.

    Raises:
        ArchiveError: no archive is there.
        ArchiveExistsError: the archive is complete.
        InvalidInputError: it belongs to another extraction; all differences are listed.
        StorageError: it has another run id, another process still writes it, or the file system refused.
    """
    _require_open(open_archive(path))
    pinned = PinnedArchive(path, run)
    _lock_alone(pinned)
    with pinned.folder.unlocked_on_error():
        return pinned, _reopen(pinned, attributes, columns, layout)


def _reopen(
    pinned: PinnedArchive, attributes: ArchiveAttributes, columns: InstructionColumns, layout: Layout
) -> InstructionTable:
    """Make an archive that is locked for this process alone ready to be written; return its instructions."""
    archive = open_archive(pinned.path)
    pinned.check()  # what was opened is what is locked
    _require_open(archive)
    if problems := list(_differences(archive, attributes, columns, layout)):
        raise InvalidInputError(problems)
    remove_partial_files(pinned.root)
    remove_partial_siblings(pinned.path)
    table = archive.instructions
    unfinished = np.flatnonzero(~np.isin(table.state, SETTLED))
    engine = None
    if not len(table.complete):
        recreate_captured(pinned.root, attributes, layout)
        engine = attributes.engine.model_dump(mode="json")
    ArchiveCommitter(pinned).restart(unfinished.tolist(), engine)
    table.state[unfinished] = State.PENDING
    if not pinned.folder.lock():
        raise _still_written(pinned.path)
    return table


def _require_open(archive: Archive) -> None:
    if archive.attributes.state != "open":
        raise ArchiveExistsError(
            f"only an archive in state open can be resumed; {archive.path} is complete. Choose another name to run "
            "the instructions again"
        )


def _lock_alone(archive: PinnedArchive) -> None:
    end = time.monotonic() + LOCK_SECONDS
    while not archive.folder.lock_alone():
        if time.monotonic() > end:
            raise _still_written(archive.path)
        time.sleep(LOCK_CHECK_SECONDS)


def _still_written(path: Path) -> StorageError:
    return StorageError(
        f"one process at a time may write an archive; another process still writes {path}. Wait until it has ended, "
        "or end it, then resume"
    )


def _differences(
    archive: Archive, attributes: ArchiveAttributes, columns: InstructionColumns, layout: Layout
) -> Iterator[str]:
    """Yield one sentence per difference between an archive and the extraction that would continue it."""
    held, table = archive.attributes, archive.instructions
    yield from _unequal("model", held.model.model_dump(), attributes.model.model_dump(), "Use the model of the archive")
    options = "Use the options of the archive"
    yield from _unequal("capture", held.capture.model_dump(), attributes.capture.model_dump(), options)
    if len(table.complete):
        old, new = ({name: getattr(one.engine, name) for name in ENGINE} for one in (held, attributes))
        remedy = "It can change bits, and instructions are complete: use the same, or run everything again"
        yield from _unequal("engine", old, new, remedy)
    if table.id != list(columns.id):
        at = next((n for n, (a, b) in enumerate(zip(table.id, columns.id, strict=False)) if a != b), None)
        what = f"number {at} is {columns.id[at]!r} and {table.id[at]!r} in the archive" if at is not None else (
            f"there are {len(columns.id):,} and {len(table):,} in the archive"
        )  # fmt: skip
        yield f"the instructions must have the ids of the archive, in its order; {what}. Give the same instructions"
    elif held.dataset.sha256 != attributes.dataset.sha256:
        yield (
            f"the instructions must be those of the archive, SHA-256 {held.dataset.sha256[:12]}…; these have "
            f"{attributes.dataset.sha256[:12]}…. Give the same instructions"
        )
    else:
        yield from _layout_differences(table, columns, layout)


def _layout_differences(table: InstructionTable, columns: InstructionColumns, layout: Layout) -> Iterator[str]:
    for name in ("prompt_length", "token_start"):
        old, new = getattr(table, name), getattr(layout, name)
        if len(differing := np.flatnonzero(old != new)):
            at = int(differing[0])
            yield (
                f"every prompt must have the place that the archive planned; {name} of instruction {table.id[at]!r} is "
                f"{new[at]} and {old[at]} in the archive. Use the same tokenizer and max_model_len"
            )
            return
    failing = (at for at, error in enumerate(columns.error) if error and table.state[at] not in SETTLED)
    for at in failing:
        yield f"instruction {table.id[at]!r} must be able to run, as in the archive: {columns.error[at]}"


def _unequal(section: str, old: Mapping[str, Any], new: Mapping[str, Any], remedy: str) -> Iterator[str]:
    for name in old:
        if old[name] != new[name]:
            shown = [f"{value!r}"[:_SHOWN] for value in (new[name], old[name])]
            yield f"{section}.{name} must be that of the archive; it is {shown[0]} and {shown[1]} there. {remedy}"
