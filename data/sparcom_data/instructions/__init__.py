"""Instructions: one line of a JSON Lines file, or one item of a REST batch. `files` reads other formats.

The model's input is given as `text` (a prompt), `messages` (a chat) or `token_ids` (already tokenized).
Validation reports every problem of a batch at once, each with its location, field, rule and value.
It uses no tokenizer or model: prompts that are too long are found later, once the context length is known.
"""

from __future__ import annotations

import codecs
import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, ConfigDict, FailFast, Field, ValidationError, model_validator

from sparcom_data.errors import InvalidInputError
from sparcom_data.schema.strict import StrictModel, one_of

MAX_TOKEN_ID = 2**31 - 1  # token/id is int32
ID_ALIAS = "custom_id"
MAX_METADATA_DEPTH = 100  # pydantic cannot serialize objects nested 255 deep
MAX_METADATA_VALUES = 100_000  # an instruction is written as one text, beside its values in memory


def _encodable(value: str) -> str:
    """Refuse lone surrogates: JSON can spell half of a surrogate pair (\\ud800), UTF-8 in archives cannot."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        raise ValueError(
            f"must be Unicode text; character {error.start + 1} is a lone surrogate, U+{code:X}"
        ) from error
    return value


def _encodable_metadata(value: dict[str, Any]) -> dict[str, Any]:
    level, values = list[Any]([value]), 0
    for _ in range(MAX_METADATA_DEPTH):
        values += sum(map(len, level))
        if values > MAX_METADATA_VALUES:
            raise ValueError(f"metadata may hold at most {MAX_METADATA_VALUES:,} values; this holds more")
        level = [inner for outer in level for inner in _inner(outer)]
    if level:
        raise ValueError(f"metadata may be nested at most {MAX_METADATA_DEPTH} deep; this is deeper")
    return value


def _inner(value: Any) -> list[Any]:
    """Return the objects and lists directly inside `value`, and check its strings. Copies none of them."""
    values = value.values() if isinstance(value, dict) else value
    for text in chain(value, values) if isinstance(value, dict) else values:
        if isinstance(text, str) and not text.isascii():
            _encodable(text)
    return [inner for inner in values if isinstance(inner, dict | list)]


UNICODE = AfterValidator(_encodable)
Text = Annotated[str, UNICODE]
_TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID, strict=True)]
Metadata = Annotated[dict[str, Any], AfterValidator(_encodable_metadata)]


class Message(StrictModel):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(min_length=1), UNICODE]


def _describe_rules(schema: dict[str, Any]) -> None:
    schema["properties"][ID_ALIAS] = schema["properties"]["id"]
    schema["required"].remove("id")
    one_of("text", "messages", "token_ids")(schema)
    schema["allOf"] = [{"oneOf": [{"required": ["id"]}, {"required": [ID_ALIAS]}]}]


class Instruction(StrictModel):
    """One instruction. Exactly one of `text`, `messages` and `token_ids` is given, and it may not be empty.

    `id` may be given as `custom_id`, its name in OpenAI's Batch API.

    Data sets record `license`, `half` and `sha256` of their items; they are accepted but not stored in archives. Other
    facts belong under `metadata`. An unknown field is refused, since it may be a misspelt known one.
    """

    model_config = ConfigDict(json_schema_extra=_describe_rules)

    id: Annotated[str, Field(min_length=1, max_length=512, validation_alias=AliasChoices("id", ID_ALIAS)), UNICODE]
    text: Text | None = None
    messages: Annotated[tuple[Message, ...] | None, FailFast()] = None
    token_ids: Annotated[tuple[_TokenId, ...] | None, FailFast()] = None  # of a million bad ids, one is named
    category: Text = ""
    source: Text = ""
    metadata: Metadata | None = None
    license: Text = ""
    half: Text = ""
    sha256: Text = ""

    @model_validator(mode="before")
    @classmethod
    def _one_id(cls, value: Any) -> Any:
        if isinstance(value, dict) and "id" in value and ID_ALIAS in value:
            raise ValueError(f"the id must be given once; found id and {ID_ALIAS}. Remove one of them")
        return value

    @model_validator(mode="after")
    def _one_content(self) -> Instruction:
        given = [name for name in ("text", "messages", "token_ids") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            raise ValueError(f"exactly one of text, messages and token_ids must be given; found {found}")
        content = getattr(self, given[0])
        if not content or (isinstance(content, str) and not content.strip()):
            raise ValueError(f"{given[0]} must not be empty")
        return self

    @property
    def readable(self) -> str:
        """Human-readable content: the text, or the turns of a conversation; empty for token ids."""
        if self.messages is not None:
            return "\n\n".join(message.content for message in self.messages)
        return self.text or ""


def text_sha256(text: str) -> str:
    """Return the SHA-256 of a text's UTF-8 bytes, in hexadecimal: the `sha256` of an instruction."""
    return hashlib.sha256(text.encode()).hexdigest()


# Other data sets' names for the field `text`.
_NAMES_OF_TEXT = frozenset({"prompt", "instruction", "question", "content", "input", "query", "sentence", "user"})


def suggest_field(name: str) -> str | None:
    """Return the field of an instruction that the unknown field `name` probably means."""
    if name.lower() in _NAMES_OF_TEXT:
        return "text"
    return next(iter(difflib.get_close_matches(name.lower(), Instruction.model_fields, n=1)), None)


def describe_validation_error(error: ValidationError, where: str) -> list[str]:
    """Return one sentence per problem that pydantic found: location, field, rule, and the value if it is short."""
    lines = []
    for item in error.errors(include_url=False):
        field = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = _unknown_field(item["loc"])
        value = repr(item.get("input"))
        shown = f" (got {value})" if len(value) <= 60 and item["type"] != "value_error" else ""
        lines.append(f"{where}{': ' + field if field else ''}: {message}{shown}")
    return lines


def _unknown_field(location: tuple[int | str, ...]) -> str:
    """Describe an unknown field, in a line of a file or in one of the `instructions` of a request."""
    of_instruction = len(location) == 1 or (len(location) == 3 and location[0] == "instructions")
    meant = suggest_field(str(location[-1])) if of_instruction else None
    if meant:
        return f"unknown field; did you mean {meant!r}? Facts of your own go under metadata"
    return "unknown field; check its spelling, or remove it (an instruction's own facts go under metadata)"


def duplicate_id_problems(ids: Iterable[str]) -> list[str]:
    """Return one sentence per id that occurs more than once."""
    return [
        f"ids must be unique within a batch: {id_!r} occurs {count} times"
        for id_, count in Counter(ids).items()
        if count > 1
    ]


def check_batch(instructions: Sequence[Instruction]) -> None:
    """Check the rules that concern the batch as a whole.

    Raises:
        InvalidInputError: the batch is empty or two instructions share an id.
    """
    if not instructions:
        raise InvalidInputError("instructions must not be empty: give at least one instruction")
    if problems := duplicate_id_problems(instruction.id for instruction in instructions):
        raise InvalidInputError(problems)


def dataset_sha256(instructions: Iterable[Instruction]) -> str:
    """Return the SHA-256 over the canonical JSON lines of a batch: fields in order, defaults omitted."""
    digest = hashlib.sha256()
    for instruction in instructions:
        digest.update(instruction.model_dump_json(exclude_defaults=True).encode() + b"\n")
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class ReadFile:
    """Contents of a file: valid instructions, keyed by location ("in.jsonl, line 3"), and one sentence per problem."""

    instructions: dict[str, Instruction]
    problems: list[str]

    def require_all(self, name: str) -> list[Instruction]:
        """Return the instructions of the file `name`.

        Raises:
            InvalidInputError: the file has problems, ids that occur twice, or no instruction; lists every problem.
        """
        instructions = list(self.instructions.values())
        problems = [*self.problems, *duplicate_id_problems(instruction.id for instruction in instructions)]
        if problems:
            raise InvalidInputError(problems)
        if not instructions:
            raise InvalidInputError(f"{name} holds no instruction: give JSON lines, a JSON array or CSV")
        return instructions


def validate_records(records: Iterable[tuple[str, Any]]) -> ReadFile:
    """Validate the records of a file: pairs of a location and either fields or the ValueError raised in reading."""
    problems: list[str] = []
    instructions: dict[str, Instruction] = {}
    for where, record in records:
        try:
            if isinstance(record, ValueError):
                raise record
            instructions[where] = Instruction.model_validate(record)
        except ValidationError as error:
            problems.extend(describe_validation_error(error, where))
        except ValueError as error:
            problems.append(f"{where}: {error}")
    return ReadFile(instructions, problems)


def read_jsonl(path: Path) -> list[Instruction]:
    """Read a JSON Lines file of instructions; skip blank lines.

    Raises:
        InvalidInputError: the file cannot be read, or breaks rules; lists every line and field that does.
    """
    try:
        with path.open("rb") as file:
            return validate_records(json_lines(path.name, file)).require_all(str(path))
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror}") from error


def json_lines(name: str, lines: Iterable[bytes]) -> Iterator[tuple[str, Any]]:
    """Yield the location and the value, or the error, of each line that is not blank."""
    for number, raw in enumerate(lines, start=1):
        line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
        if line.strip():
            yield f"{name}, line {number}", parse_json(line)


def parse_json(text: bytes) -> Any:
    """Return the value, or a ValueError that describes the problem."""
    try:
        return json.loads(text.decode())
    except UnicodeDecodeError as error:
        return ValueError(f"not UTF-8 text: byte {error.start + 1} of the line cannot be decoded")
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        return ValueError(f"not JSON: {error.msg} at {line}column {error.colno}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        return ValueError(f"JSON that cannot be read: {error}")
