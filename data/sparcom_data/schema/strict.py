"""Base class of user input: frozen, refuses unknown fields, and limits the number of fields."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

MAX_FIELDS = 100


class StrictModel(BaseModel):
    """A model that refuses unknown fields by name, and any object with more than 100 fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MAX_FIELDS:  # else each of a million is reported
            raise ValueError(f"an object may have at most {MAX_FIELDS} fields; this one has {len(value):,}")
        return value
