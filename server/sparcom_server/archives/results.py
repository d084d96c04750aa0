"""Results and errors of instructions as JSON lines, read from an archive block by block, also while a job writes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
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


def result_lines(archive: Archive, kind: Kind, model: str, name: str, hide: Callable[[str], str]) -> Iterator[bytes]:
    """Yield the lines of one kind in the order of submission, a block at a time. Blocks.

    name: the archive's. hide: removes from a reason what the client must not see.
    """
    states = archive.column("state")  # read first: a job sets a state after everything else of an instruction
    describe = _error if kind == "errors" else _result
    has_rows = archive.granularity == "token"
    for start in range(0, len(states), STRING_CHUNK):
        block = states[start : start + STRING_CHUNK]
        wanted = [index for index, state in enumerate(block) if state in _STATES[kind]]
        if not wanted:
            continue
        names = ("id", *_COLUMNS[kind])
        columns = [archive.read_rows(f"instruction/{column}", start, start + len(block)).tolist() for column in names]
        lines = []
        for index in wanted:
            item = dict(zip(names, (values[index] for values in columns), strict=True))
            if kind == "errors":
                item["error"] = hide(item["error"])
            state = State(block[index]).name.lower()
            head = {"id": item["id"], "custom_id": item["id"], "model": model, "archive": name, "index": start + index}
            lines.append(json.dumps(head | {"state": state} | describe(item, state, has_rows)))
        yield "".join(f"{line}\n" for line in lines).encode()


def _result(item: dict[str, Any], _: str, has_rows: bool) -> dict[str, Any]:
    return {
        "prompt_length": item["prompt_length"],
        "token_length": item["token_length"],
        "row": item["token_start"] if has_rows else None,
        "response": item["response"],
        "category": item["category"],
    }


def _error(item: dict[str, Any], state: str, _: bool) -> dict[str, Any]:
    return {"error": {"code": state, "message": CANCELLED if state == "cancelled" else item["error"]}}
