"""Read the instructions of a submission: lines for its body if they are few, otherwise a file to upload."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

LARGE = 8 * 2**20  # bytes; more are uploaded

Instructions = str | os.PathLike[str] | Iterable[Mapping[str, Any] | BaseModel]
"""A file, as for `sparcom submit`, or objects with the fields of an instruction."""


@dataclass(slots=True)
class Batch:
    """Instructions as JSON lines: in memory, or in a file. name: of the data set, "" for objects."""

    name: str
    lines: list[bytes]
    file: Path | None = None
    is_temporary: bool = False

    def close(self) -> None:
        """Delete the file if it is temporary."""
        if self.is_temporary and self.file is not None:
            self.file.unlink(missing_ok=True)


def read_batch(source: Instructions) -> Batch:
    """Read instructions. Blocks. A large file of JSON lines stays where it is, and objects are never all held.

    Raises:
        InvalidInputError: a file breaks rules; lists each line that does. The server checks what was not checked here.
    """
    if not isinstance(source, str | os.PathLike):
        return _spool("", source)
    from sparcom_data.instructions.files import default_dataset_name, read_instructions

    path = Path(source)
    name = default_dataset_name(path)
    if path.suffix.lower() in {".jsonl", ".ndjson"} and path.is_file() and path.stat().st_size > LARGE:
        return Batch(name, [], path)
    return _spool(name, read_instructions(path))


def _spool(name: str, items: Iterable[Mapping[str, Any] | BaseModel]) -> Batch:
    """Keep the lines in memory, or write them to a temporary file if they are large."""
    held: list[bytes] = []
    size, lines = 0, _lines(items)
    for line in lines:
        held.append(line)
        size += len(line)
        if size > LARGE:
            break
    else:
        return Batch(name, held)
    with tempfile.NamedTemporaryFile(prefix="sparcom-", suffix=".jsonl", delete=False) as file:
        batch = Batch(name, [], Path(file.name), is_temporary=True)
        try:
            file.writelines(held)
            file.writelines(lines)
        except BaseException:
            batch.close()
            raise
    return batch


def _lines(items: Iterable[Mapping[str, Any] | BaseModel]) -> Iterator[bytes]:
    for item in items:
        value = item.model_dump(mode="json", exclude_defaults=True) if isinstance(item, BaseModel) else dict(item)
        yield json.dumps(value).encode() + b"\n"
