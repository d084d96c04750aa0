"""Read records of source files: JSON Lines and JSON, gzipped or not, and Parquet; streamed where the format allows it.

A record without the field `task` gets the name of its file.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparcom_data.errors import InvalidInputError
from sparcom_hexainst.build.sources import Record

ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")
_SPLIT = re.compile(r"(_10templates)?[_-](train|test|validation|dev)([_-].*)?$")

# These cover pyarrow's errors too: an unsupported codec raises NotImplementedError.
_UNREADABLE = (OSError, EOFError, ValueError, zlib.error, RecursionError, NotImplementedError)


def is_readable(path: Path) -> bool:
    """Return whether the path is a file in a supported format."""
    return path.is_file() and path.name.lower().endswith(ENDINGS)


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of a file.

    Raises:
        InvalidInputError: the file cannot be read, or its format does not match its name.
    """
    task = _SPLIT.sub("", path.name.split(".")[0])
    try:
        for record in _records(path):
            yield record if "task" in record else {**record, "task": task}
    except _UNREADABLE as error:
        raise InvalidInputError(f"{path} cannot be read ({error}): fetch it again, or remove it") from error


def _records(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix.lower() == ".parquet":
        return _parquet(path)
    return _json_lines(path) if ".jsonl" in path.name.lower() else _json(path)


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
            yield from batch.to_pylist()


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _an_object(json.loads(line), f"line {number}")


def _json(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a list, or of an object that holds one (TriviaQA's authors put it under "Data")."""
    with _open(path) as file:
        loaded = json.load(file)
    lists = [value for value in loaded.values() if isinstance(value, list)] if isinstance(loaded, dict) else [loaded]
    if len(lists) != 1 or not isinstance(lists[0], list):
        raise ValueError("it must be a list of records, or an object that holds one")
    for number, record in enumerate(lists[0], start=1):
        yield _an_object(record, f"record {number}")


def _an_object(record: object, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError(f"{where} is not a JSON object")  # noqa: TRY004  (read_records explains ValueErrors)
    return record
