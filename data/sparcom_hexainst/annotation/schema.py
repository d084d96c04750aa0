"""Types of the two files of an annotation study: the form, and the answers to it.

A form hides ids and contains neither category nor source, so that people judge blind. Answers repeat the ids and hashes
of the form, so that they can be checked without it.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from sparcom_data.instructions import Instruction, Message, Text
from sparcom_hexainst.annotation.criteria import CATEGORY, NONE_OF_THESE, Criterion

ANSWERS_FORMAT = "sparcom-annotation"
VERSION = 1

Kind = Literal["annotation", "adjudication"]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PriorAnswers(_Frozen):
    """Answers of one of the two unnamed annotators to the disputed criteria."""

    answers: dict[str, str]
    comment: str = ""


class FormItem(_Frozen):
    """One instruction of a form. `number` is shown, `id` is hidden; only adjudicators see `said`."""

    number: int
    id: str
    sha256: Sha256
    text: str | None = None
    messages: tuple[Message, ...] | None = None
    ask: tuple[str, ...]
    said: tuple[PriorAnswers, ...] = ()


class Reference(_Frozen):
    """An item that an adjudicator may look up to judge redundancy."""

    number: int
    text: str


class Form(_Frozen):
    """A form, to be rendered as a page or a table. `sha256` identifies it."""

    format: Literal["sparcom-annotation-form"] = "sparcom-annotation-form"
    version: Literal[1] = 1
    kind: Kind
    dataset: Sha256
    criteria: tuple[Criterion, ...]
    items: tuple[FormItem, ...]
    reference: tuple[Reference, ...] = ()

    @property
    def sha256(self) -> str:
        """SHA-256 of the form as JSON."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @property
    def categories(self) -> tuple[str, ...]:
        """Categories that may be answered, without "none of these"."""
        values = next((criterion.values for criterion in self.criteria if criterion.name == CATEGORY), ())
        return tuple(value for value in values if value != NONE_OF_THESE)


class ItemAnswers(_Frozen):
    """Answers to one item: one key per criterion asked, None if unanswered."""

    number: Annotated[int, Field(ge=1)]
    id: Annotated[Text, Field(min_length=1)]
    sha256: Sha256
    answers: dict[str, str | None]
    comment: Text = ""

    @property
    def missing(self) -> tuple[str, ...]:
        """Criteria without an answer."""
        return tuple(name for name, value in self.answers.items() if value is None)


class Answers(_Frozen):
    """One person's answers to one form. Times come from the browser's clock; a table has none."""

    format: Literal["sparcom-annotation"]
    version: Literal[1]
    kind: Kind
    dataset: Sha256
    form: Sha256
    categories: tuple[Text, ...]
    annotator: Text
    started: AwareDatetime | None = None
    saved: AwareDatetime | None = None
    complete: bool
    items: tuple[ItemAnswers, ...]

    @cached_property
    def by_id(self) -> dict[str, ItemAnswers]:
        """Items keyed by id."""
        return {item.id: item for item in self.items}


def item_sha256(instruction: Instruction) -> str:
    """Return the SHA-256 of an instruction's id and readable content: its category may change, its text may not."""
    seen = instruction.model_dump_json(include={"id", "text", "messages"}, exclude_none=True)
    return hashlib.sha256(seen.encode()).hexdigest()


def shown_text(instruction: Instruction) -> str:
    """Return an instruction as plain text, for tables and references; a conversation includes its roles."""
    if instruction.text is not None:
        return instruction.text
    return "\n\n".join(f"{message.role}: {message.content}" for message in instruction.messages or ())


def canonical_json(value: object) -> str:
    """Return a value as JSON on one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
