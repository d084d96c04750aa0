"""Read a file of instructions: JSON Lines, one JSON array, or CSV; `-` is standard input.

The suffix decides the format (.jsonl, .ndjson, .csv), otherwise the first character: `{` begins JSON Lines, `[` an
array, anything else CSV. Every problem is reported at once, with its line, item or row.
"""

from __future__ import annotations

import codecs
import csv
import io
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sparcom_data.errors import InvalidInputError
from sparcom_data.instructions import (
    ID_ALIAS,
    Instruction,
    ReadFile,
    json_lines,
    parse_json,
    suggest_field,
    validate_records,
)

STDIN = Path("-")
_JSON_COLUMNS = ("messages", "token_ids", "metadata")
_CONTENT = ("text", "messages", "token_ids")


def read_instructions(path: Path) -> list[Instruction]:
    """Read the instructions of a file.

    Raises:
        InvalidInputError: the file cannot be read, or breaks rules; lists every location and field that does.
    """
    return read_file(path).require_all(display_name(path))


def read_file(path: Path) -> ReadFile:
    """Read the valid instructions and the problems of a file.

    Raises:
        InvalidInputError: the file cannot be read.
    """
    try:
        content = sys.stdin.buffer.read() if path == STDIN else path.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror}") from error
    return validate_records(_records(display_name(path, short=True), path.suffix.lower(), content))


def display_name(path: Path, *, short: bool = False) -> str:
    """Return the file's name for messages."""
    return "standard input" if path == STDIN else path.name if short else str(path)


def default_dataset_name(path: Path) -> str:
    """Return the default name of a data set."""
    return "stdin" if path == STDIN else path.stem


def _records(name: str, suffix: str, content: bytes) -> Iterator[tuple[str, Any]]:
    content = content.removeprefix(codecs.BOM_UTF8)
    first = content.lstrip()[:1]
    if suffix not in (".jsonl", ".ndjson", ".csv"):
        if first == b"[":
            return _items(name, parse_json(content))
        if suffix == ".json" and isinstance(value := parse_json(content), dict):
            return _items(name, [value])
    if suffix == ".csv" or (suffix not in (".jsonl", ".ndjson", ".json") and first not in (b"{", b"")):
        return _rows(name, content)
    return json_lines(name, io.BytesIO(content))


def _items(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the items of a JSON array, numbered from 1."""
    if isinstance(value, ValueError):
        yield name, value
    else:
        yield from ((f"{name}, item {number}", item) for number, item in enumerate(value, start=1))


def _rows(name: str, content: bytes) -> Iterator[tuple[str, Any]]:
    """Yield the rows of CSV, numbered as in a spreadsheet: the header is row 1. Empty rows are skipped."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        yield name, ValueError(f"not UTF-8 text: byte {error.start + 1} cannot be decoded")
        return
    lines = io.StringIO(text, newline="").readlines()
    # Spreadsheets in some locales separate cells by semicolons.
    delimiter = max(",;\t", key=lines[0].count) if lines else ","
    header: list[str] = []
    for number, row in _numbered(csv.reader(lines, delimiter=delimiter, strict=True)):
        where = f"{name}, row {number}"
        if isinstance(row, ValueError):
            yield where, row
        elif not any(cell.strip() for cell in row):
            continue
        elif header:
            yield where, _fields(header, row)
        else:
            header = [cell.strip() for cell in row]
            problems = _header_problems(header)
            yield from ((name, ValueError(problem)) for problem in problems)
            if problems:
                return


def _numbered(rows: Iterable[list[str]]) -> Iterator[tuple[int, list[str] | ValueError]]:
    number = 0
    try:
        for number, row in enumerate(rows, start=1):
            yield number, row
    except csv.Error as error:  # later rows cannot be separated
        yield number + 1, ValueError(f"not CSV: {error}. Put cells that hold quotes or line ends in double quotes")


def _header_problems(header: Sequence[str]) -> list[str]:
    known = (*Instruction.model_fields, ID_ALIAS)
    unknown = [column for column in header if column not in known]
    problems = [f"column {column!r} occurs {count} times" for column, count in Counter(header).items() if count > 1]
    if unknown:
        shown = ", ".join(_with_suggestion(column) for column in dict.fromkeys(unknown))
        problems.append(f"unknown columns: {shown}. The first row names the columns, which may be {', '.join(known)}")
    if not {"id", ID_ALIAS} & set(header):
        problems.append("the column id is missing: give each instruction an id of its own")
    if not unknown and not set(_CONTENT) & set(header):
        problems.append("the column text is missing; messages or token_ids, as JSON, may take its place")
    return problems


def _with_suggestion(column: str) -> str:
    meant = suggest_field(column)
    return f"{column!r} (did you mean {meant!r}?)" if meant else repr(column)


def _fields(header: Sequence[str], row: Sequence[str]) -> Any:
    """Return the fields of a row; an empty cell is an omitted field."""
    if len(row) != len(header):
        return ValueError(f"a row has one cell for each of the {len(header)} columns; this one has {len(row)}")
    fields: dict[str, Any] = {}
    for column, cell in zip(header, row, strict=True):
        if not cell:
            continue
        value = parse_json(cell.encode()) if column in _JSON_COLUMNS else cell
        if isinstance(value, ValueError):
            return ValueError(f"{column}: {value}")
        fields[column] = value
    return fields
