"""Base of what users write: frozen, unknown fields refused, and no more fields than a person would write."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

MAX_FIELDS = 100


class StrictModel(BaseModel):
    """A model that refuses unknown fields, each by name, and an object of more than 100 fields as a whole."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MAX_FIELDS:  # otherwise each of a million is a problem of its own
            raise ValueError(f"an object may have at most {MAX_FIELDS} fields; this one has {len(value):,}")
        return value
