"""Read the body of a new extraction and return a validated request.

Values are counted before they are decoded. One byte of JSON can take up to 80 bytes as Python objects (`{"":{"":{…`),
so `max_body_bytes` alone does not bound memory. Instructions are checked one at a time to let other threads run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from sparcom_data.errors import MAX_PROBLEMS, InvalidInputError
from sparcom_data.instructions import Instruction, duplicate_id_problems
from sparcom_server.errors import IncompleteBodyError, NotJsonError, UnsupportedMediaError, describe_problem
from sparcom_server.schemas.requests import ExtractionHead, ExtractionRequest

MAX_VALUES = 8_000_000  # numbers and strings; at most 72 bytes each
MAX_CONTAINERS = 1_000_000  # objects and lists; at most 232 bytes each
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
    _check_size(body)
    raw = _decode(body)
    body.clear()
    if not isinstance(raw, dict):
        raise InvalidInputError(f"body: must be a JSON object with 'instructions'; it is a {type(raw).__name__}")
    problems = _Problems()
    if isinstance(items := raw.get("instructions"), list):
        problems.check(ExtractionHead, {name: value for name, value in raw.items() if name != "instructions"})
        raw["instructions"] = _check_instructions(items, max_instructions, problems)
    request = None if problems.total else problems.check(ExtractionRequest, raw)
    if request is None:
        raise InvalidInputError(problems.first, problems.total)
    return request


def _check_size(body: bytearray) -> None:
    if not body:
        raise InvalidInputError("body: must not be empty; give a JSON object with 'instructions'")
    values = body.count(b",") + body.count(b"[") + body.count(b"{")
    for found, limit, kind in (
        (values, MAX_VALUES, "numbers and strings"),
        (_count_containers(body), MAX_CONTAINERS, "objects and lists"),
    ):
        if found > limit:
            message = (
                f"body: may hold at most {limit:,} {kind}; it holds more. Send the instructions in several requests"
            )
            raise InvalidInputError(message)


def _count_containers(body: bytearray) -> int:
    """Count objects and lists, up to MAX_CONTAINERS + 1. Up to the limit, brackets in strings count too."""
    brackets = body.count(b"[") + body.count(b"{")
    if brackets <= MAX_CONTAINERS:
        return brackets
    found = (match for match in _STRING_OR_CONTAINER.finditer(body) if body[match.start()] != ord('"'))
    return sum(1 for _ in islice(found, MAX_CONTAINERS + 1))


def _decode(body: bytearray) -> Any:
    try:
        return from_json(body)
    except ValueError as error:
        if "recursion limit" in str(error):
            raise InvalidInputError(f"body: JSON may be nested at most 200 levels deep; {error}") from None
        raise NotJsonError(f"the body must be JSON: {error}") from None


@dataclass(slots=True)
class _Problems:
    """The first 100 problems as sentences, and the number of all problems."""

    first: list[str] = field(default_factory=list)
    total: int = 0

    def check(self, model: type[Model], value: Any, *prefix: str | int) -> Model | None:
        """Return the value as a model, or None if it breaks rules. `prefix`: location of the value in the body."""
        try:
            return model.model_validate(value)
        except ValidationError as error:
            self.total += error.error_count()
            if len(self.first) < MAX_PROBLEMS:
                self.first += [describe_problem(item, *prefix) for item in error.errors(include_url=False)]
            return None


def _check_instructions(items: list[Any], limit: int, problems: _Problems) -> tuple[Instruction, ...]:
    if len(items) > limit:
        message = (
            f"instructions: a request may have at most {limit:,}; it has {len(items):,}. Send them in several "
            "requests, or have the operator raise max_instructions"
        )
        raise InvalidInputError(message)
    # Duplicate ids are found even if other rules are broken, so that one response names every problem.
    ids = [item["id"] for item in items if isinstance(item, dict) and isinstance(item.get("id"), str)]
    duplicates = duplicate_id_problems(ids)
    problems.first += duplicates[:MAX_PROBLEMS]
    problems.total += len(duplicates)
    instructions = []
    for number, item in enumerate(items):
        items[number] = None  # hold only one copy of each
        instructions.append(problems.check(Instruction, item, "instructions", number))
    return tuple(instruction for instruction in instructions if instruction is not None)
