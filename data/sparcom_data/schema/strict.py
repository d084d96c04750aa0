"""Base class of user input: frozen, refuses unknown fields, and limits the number of fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

MAX_FIELDS = 100


def _is_number(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise ValueError("must be an integer, neither a string nor a boolean")  # noqa: TRY004  (pydantic's protocol)
    return value


NUMBER = BeforeValidator(_is_number)
"""Validates an integer as JSON Schema defines it: 3 and 3.0, but neither "3" nor true, which pydantic would convert."""


class StrictModel(BaseModel):
    """A model that refuses unknown fields by name, and any object with more than 100 fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MAX_FIELDS:  # else each of a million is reported
            raise ValueError(f"an object may have at most {MAX_FIELDS} fields; this one has {len(value):,}")
        return value


def one_of(*names: str) -> Callable[[dict[str, Any]], None]:
    """Return a change of a JSON schema: exactly one of these optional fields is given, neither null nor empty."""
    filled: dict[str, dict[str, Any]] = {"array": {"minItems": 1}, "string": {"pattern": r"\S"}}

    def change(schema: dict[str, Any]) -> None:
        kinds = {name: schema["properties"][name]["anyOf"][0]["type"] for name in names}
        schema["oneOf"] = [
            {"required": [name], "properties": {name: {"type": kind} | filled[kind]}} for name, kind in kinds.items()
        ]

    return change
