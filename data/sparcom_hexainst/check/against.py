"""Read texts that a set must not contain, from files in the usual formats of public data.

The text of a record is that of its fields with usual names (an instruction's text, a benchmark's prompt, question or
problem). Other fields are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sparcom_data.errors import InvalidInputError
from sparcom_data.instructions import Instruction
from sparcom_hexainst.build.records import ENDINGS, is_readable, read_records
from sparcom_hexainst.build.sources import Record
from sparcom_hexainst.check.pairs import Member

FIELDS = ("text", "prompt", "problem", "question", "Question", "instruction", "input", "inputs")


def read_against(path: Path) -> tuple[list[Member], int]:
    """Return the texts of a file or of the files in a folder, and the number of records without text.

    Raises:
        InvalidInputError: no file can be read, or no record has a text; names the expected fields.
    """
    files = sorted(filter(is_readable, path.rglob("*"))) if path.is_dir() else [path]
    members, empty = [], 0
    for file in files:
        unit = "line" if ".jsonl" in file.name.lower() else "record"
        for number, record in enumerate(_records(file), start=1):
            if text := _text(record):
                where = f"{file.name}, {unit} {number}"
                members.append(Member(where, Instruction(id=str(record.get("id") or where)[:512], text=text)))
            else:
                empty += 1
    if not members:
        raise InvalidInputError(
            f"a set is compared with texts (fields {', '.join(FIELDS)}, or messages) in files of "
            f"{', '.join(ENDINGS)}; {path} has none. Give another file or folder"
        )
    return members, empty


def _records(file: Path) -> Iterator[Record]:
    if not file.exists():
        raise InvalidInputError(f"cannot read {file}: there is no such file or folder")
    if not is_readable(file):
        raise InvalidInputError(f"{file} must be a file of {', '.join(ENDINGS)}; give one, or a folder of them")
    return read_records(file)


def _text(record: Record) -> str:
    found = [value for name in FIELDS if isinstance(value := record.get(name), str)]
    messages = record.get("messages")
    turns = [turn for turn in messages if isinstance(turn, dict)] if isinstance(messages, list) else []
    found += [turn["content"] for turn in turns if isinstance(turn.get("content"), str)]
    return "\n\n".join(text.strip() for text in found if text.strip())
