"""Read and check an uploaded file line by line. Memory does not grow with the file, only with its longest line."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pydantic_core import from_json

from sparcom_data.errors import InvalidInputError
from sparcom_data.instructions import ID_ALIAS, Instruction
from sparcom_server.http.request_body import Problems, check_size

MAX_LINE_BYTES = 16 * 2**20  # with its line end


def check_file(path: Path, max_instructions: int) -> int:
    """Return the number of instructions of a file of JSON lines. Blocks; call it in a thread.

    Raises:
        InvalidInputError: it breaks rules; holds the first 100 problems, each with its line, and their total number.
    """
    problems, first_lines, count = Problems(), dict[bytes, int](), 0
    with path.open("rb") as file:
        for number, value in read_lines(file, max_instructions):
            count += 1
            where = f"line {number}"
            if count > max_instructions:
                problems.add(
                    f"{where}: a file may have at most {max_instructions:,} instructions; it has more. Split it, or "
                    "have the operator raise max_instructions"
                )
                break
            if isinstance(value, InvalidInputError):
                problems.add(f"{where}: {value}")
            elif instruction := problems.check(Instruction, value, where=where):
                digest = hashlib.blake2b(instruction.id.encode(), digest_size=16).digest()
                earlier = first_lines.setdefault(digest, number)
                if earlier != number:
                    name = ID_ALIAS if ID_ALIAS in value else "id"
                    problems.add(f"{where}: {name}: must be unique; line {earlier} has {instruction.id[:60]!r} too")
    if not count:
        problems.add("a file must hold at least one instruction, one JSON object per line; it holds none")
    problems.raise_any()
    return count


def read_lines(file: BinaryIO, max_instructions: int) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each line that is not blank; an InvalidInputError if it cannot be read."""
    most = 2 * max_instructions
    for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
        if number > most:
            yield number, InvalidInputError(f"a file may have at most {most:,} lines, blank ones included")
            return
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            _skip_line(file)
        content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if content.strip():
            yield number, _parse(content)


def _parse(line: bytes) -> Any:
    if len(line) > MAX_LINE_BYTES:
        return InvalidInputError(f"a line may have at most {MAX_LINE_BYTES:,} bytes; this one has more")
    try:
        check_size(line)
        return from_json(line)
    except ValueError as error:
        return InvalidInputError(f"must be one JSON object; {error}")
    except InvalidInputError as error:
        return error


def _skip_line(file: BinaryIO) -> None:
    while (part := file.readline(MAX_LINE_BYTES)) and not part.endswith(b"\n"):
        pass
