"""Read the body of a new extraction and return a validated request.

Values are counted before they are decoded. One byte of JSON can take up to 80 bytes as Python objects (`{"":{"":{…`),
so `max_body_bytes` alone does not bound memory. Instructions are checked one at a time to let other threads run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from sparcom_data.errors import MAX_PROBLEMS, InvalidInputError
from sparcom_data.instructions import ID_ALIAS, Instruction, duplicate_id_problems
from sparcom_server.errors import IncompleteBodyError, NotJsonError, UnsupportedMediaError, describe_problem
from sparcom_server.schemas.requests import ExtractionRequest

MAX_VALUES = 8_000_000  # numbers and strings; a number takes at most 32 bytes
MAX_STRINGS = 2_000_000  # keys included; at most 72 bytes each besides their characters
MAX_CONTAINERS = 500_000  # objects and lists; at most 232 bytes each
Model = TypeVar("Model", bound=BaseModel)
_STRING_OR_CONTAINER = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\Z)|[\[{]', re.DOTALL)


async def read_body(request: Request) -> bytearray:
    """Return the bytes of a body declared as JSON. Only one copy is held.

    Raises:
        UnsupportedMediaError: it is not declared as JSON. Pages of other sites can send only such bodies.
        IncompleteBodyError: the client disconnected.
    """
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if declared != "application/json":
        raise UnsupportedMediaError("the body must be JSON; send the header 'Content-Type: application/json'")
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
    except ClientDisconnect:
        raise IncompleteBodyError("the connection closed before the body was complete; send it again") from None
    return body


def parse_extraction(body: bytearray, max_instructions: int) -> ExtractionRequest:
    """Decode and validate a body, and empty `body`. Blocks for seconds if it is large; call it in a thread.

    Raises:
        NotJsonError: it is not JSON.
        InvalidInputError: it breaks rules; holds the first 100 problems and their total number.
    """
    if not body:
        raise InvalidInputError("body: must not be empty; give a JSON object with 'instructions' or 'input_file_id'")
    check_size(body, "body: ")
    raw = _decode(body)
    body.clear()
    problems = Problems()
    items = raw.get("instructions") if isinstance(raw, dict) else None
    if not isinstance(items, list):
        request = problems.check(ExtractionRequest, raw)
        problems.raise_any()
        return cast(ExtractionRequest, request)
    # The other fields are checked first, so that their problems come first.
    request = problems.check(ExtractionRequest, raw | {"instructions": _PLACEHOLDER if items else ()})
    instructions = _check_instructions(items, max_instructions, problems)
    problems.raise_any()
    return cast(ExtractionRequest, request).model_copy(update={"instructions": instructions})


_PLACEHOLDER = (Instruction(id="x", text="x"),)


def check_size(data: bytes | bytearray, prefix: str = "") -> None:
    """Check that JSON takes little memory when it is decoded.

    Raises:
        InvalidInputError: it holds too many values. prefix: beginning of the message.
    """
    brackets = data.count(b"[") + data.count(b"{")
    strings, containers = data.count(b'"') // 2, brackets
    if strings > MAX_STRINGS or containers > MAX_CONTAINERS:  # quotes and brackets in strings count so far
        strings, containers = _count_strings_and_containers(data)
    for found, limit, kind in (
        (data.count(b",") + brackets, MAX_VALUES, "numbers and strings"),
        (strings, MAX_STRINGS, "strings"),
        (containers, MAX_CONTAINERS, "objects and lists"),
    ):
        if found > limit:
            raise InvalidInputError(f"{prefix}may hold at most {limit:,} {kind}; it holds more. Split it")


def _count_strings_and_containers(data: bytes | bytearray) -> tuple[int, int]:
    """Count strings, and objects and lists, until one of them is beyond its limit."""
    strings = containers = 0
    for match in _STRING_OR_CONTAINER.finditer(data):
        if data[match.start()] == ord('"'):
            strings += 1
        else:
            containers += 1
        if strings > MAX_STRINGS or containers > MAX_CONTAINERS:
            break
    return strings, containers


def _decode(body: bytearray) -> Any:
    try:
        return from_json(body)
    except ValueError as error:
        if "recursion limit" in str(error):
            raise InvalidInputError(f"body: JSON may be nested at most 200 levels deep; {error}") from None
        raise NotJsonError(f"the body must be JSON: {error}") from None


@dataclass(slots=True)
class Problems:
    """The first 100 problems as sentences, and the number of all problems."""

    first: list[str] = field(default_factory=list)
    total: int = 0

    def add(self, *problems: str) -> None:
        """Add problems."""
        self.total += len(problems)
        self.first += problems[: max(0, MAX_PROBLEMS - len(self.first))]

    def check(self, model: type[Model], value: Any, *prefix: str | int, where: str = "") -> Model | None:
        """Return the value as a model, or None if it breaks rules.

        Args:
            prefix: location of the value in the body. where: beginning of each problem.
        """
        try:
            return model.model_validate(value)
        except ValidationError as error:
            left = max(0, MAX_PROBLEMS - len(self.first))
            found = error.errors(include_url=False)[:left] if left else []
            self.first += [describe_problem(item, *prefix, where=where) for item in found]
            self.total += error.error_count()
            return None

    def raise_any(self) -> None:
        """Raise InvalidInputError if there are problems."""
        if self.total:
            raise InvalidInputError(self.first, self.total)


def _check_instructions(items: list[Any], limit: int, problems: Problems) -> tuple[Instruction, ...]:
    if len(items) > limit:
        message = (
            f"instructions: a request may have at most {limit:,}; it has {len(items):,}. Send them in several "
            "requests, or have the operator raise max_instructions"
        )
        raise InvalidInputError(message)
    # Duplicate ids are found even if other rules are broken, so that one response names every problem.
    ids = [item.get("id", item.get(ID_ALIAS)) for item in items if isinstance(item, dict)]
    problems.add(*duplicate_id_problems(id_ for id_ in ids if isinstance(id_, str)))
    instructions = []
    for number, item in enumerate(items):
        items[number] = None  # hold only one copy of each
        instructions.append(problems.check(Instruction, item, "instructions", number))
    return tuple(instruction for instruction in instructions if instruction is not None)
