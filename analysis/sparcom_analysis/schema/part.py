"""What every part of metrics.json is: immutable, with the fields that are written down and no other."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """Base of the parts of metrics.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)
