"""The two files of a study with annotators, as types: the form that goes out, and the answers that come back.

A form carries ids, hidden, and neither category nor source: people judge blindly. Answers repeat the ids and hashes of
the form, so that they can be checked without it. Knows nothing of HTML, CSV or agreement.
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


class Said(_Frozen):
    """What one of two unnamed annotators answered of the criteria in question."""

    answers: dict[str, str]
    comment: str = ""


class FormItem(_Frozen):
    """One instruction of a form: `number` is shown, `id` is not; `said` is for an adjudicator alone."""

    number: int
    id: str
    sha256: Sha256
    text: str | None = None
    messages: tuple[Message, ...] | None = None
    ask: tuple[str, ...]
    said: tuple[Said, ...] = ()


class Reference(_Frozen):
    """An item that an adjudicator may look up, where it is in question whether two ask the same."""

    number: int
    text: str


class Form(_Frozen):
    """A form, ready to be shown as a page or a table. `sha256` tells it from any other form."""

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
        """The categories that may be answered, without "none of these"."""
        values = next((criterion.values for criterion in self.criteria if criterion.name == CATEGORY), ())
        return tuple(value for value in values if value != NONE_OF_THESE)


class ItemAnswers(_Frozen):
    """One item's answers: a key for each criterion that was asked, None where it is not answered yet."""

    number: Annotated[int, Field(ge=1)]
    id: Annotated[Text, Field(min_length=1)]
    sha256: Sha256
    answers: dict[str, str | None]
    comment: Text = ""

    @property
    def missing(self) -> tuple[str, ...]:
        """The criteria without an answer."""
        return tuple(name for name, value in self.answers.items() if value is None)


class Answers(_Frozen):
    """One person's answers to one form. Times are those of the browser; a table has none."""

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
        """The items by their ids."""
        return {item.id: item for item in self.items}


def item_sha256(instruction: Instruction) -> str:
    """SHA-256 of an instruction's id and of what people read of it: its category may be mended, its text not."""
    seen = instruction.model_dump_json(include={"id", "text", "messages"}, exclude_none=True)
    return hashlib.sha256(seen.encode()).hexdigest()


def shown_text(instruction: Instruction) -> str:
    """An instruction as plain text, for tables and for looking up; a conversation with its roles."""
    if instruction.text is not None:
        return instruction.text
    return "\n\n".join(f"{message.role}: {message.content}" for message in instruction.messages or ())


def canonical_json(value: object) -> str:
    """JSON on one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
