"""Results and errors of instructions as JSON lines, read from an archive block by block, also while a job writes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from sparcom_data.archive import Archive, open_archive
from sparcom_data.errors import ArchiveNotFoundError
from sparcom_data.schema import STRING_CHUNK, State

Kind = Literal["results", "errors"]
CANCELLED = "the extraction was cancelled before this instruction ran"
_STATES = {"results": {State.COMPLETE}, "errors": {State.FAILED, State.CANCELLED}}
_COLUMNS = {"results": ("prompt_length", "token_length", "token_start", "response", "category"), "errors": ("error",)}


def open_results(path: Path, run: str | None) -> Archive | None:
    """Return the archive of a job's part; None if there is none. Blocks.

    Raises:
        ArchiveNotFoundError: another archive has taken its place. ArchiveError: it cannot be read.
    """
    if not path.exists():
        return None
    archive = open_archive(path, follow_links=False)
    if archive.attributes.run != run:
        raise ArchiveNotFoundError("the archive of this extraction was deleted; another one has its name now")
    return archive


def result_lines(archive: Archive, kind: Kind, model: str, name: str) -> Iterator[bytes]:
    """Yield the lines of one kind in the order of submission, a block at a time. Blocks. name: the archive's."""
    states = archive.column("state")  # read first: a job sets a state after everything else of an instruction
    has_rows = archive.granularity == "token"
    for start in range(0, len(states), STRING_CHUNK):
        block = states[start : start + STRING_CHUNK]
        wanted = [index for index, state in enumerate(block) if state in _STATES[kind]]
        if not wanted:
            continue
        stop = start + len(block)
        columns = {
            column: archive.read_rows(f"instruction/{column}", start, stop).tolist() for column in ("id", *_COLUMNS[kind])
        }
        lines = []
        for index in wanted:
            state, item = State(block[index]), {column: values[index] for column, values in columns.items()}
            facts: dict[str, Any] = {"id": item["id"], "custom_id": item["id"], "model": model, "archive": name}
            facts |= {"index": start + index, "state": state.name.lower()}
            if kind == "errors":
                code = state.name.lower()
                message = CANCELLED if state == State.CANCELLED else item["error"]
                facts["error"] = {"code": code, "message": message}
            else:
                facts |= {"prompt_length": item["prompt_length"], "token_length": item["token_length"]}
                facts["row"] = item["token_start"] if has_rows else None
                facts |= {"response": item["response"], "category": item["category"]}
            lines.append(json.dumps(facts) + "\n")
        yield "".join(lines).encode()
