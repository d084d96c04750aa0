"""Validated settings of fine-tuning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from sparcom_data.errors import InvalidInputError
from sparcom_data.schema.metadata import PromptFormat


@dataclass(frozen=True, slots=True)
class TuneSettings:
    """Settings of fine-tuning: lengths in tokens, sizes in instructions. `epochs` may be fractional."""

    epochs: float = 1.0
    learning_rate: float = 5e-5  # peak of the schedule
    batch_size: int = 8
    max_length: int = 256  # longer instructions are truncated
    seed: int = 0  # for the train/test split, the order and dropout
    held_out: float = 0.05  # fraction of the instructions in the test split
    prompt_format: PromptFormat = "raw"
    # Precision of matrix products in training. None: bfloat16 if the processor supports it. All else is float32.
    precision: Literal["float32", "bfloat16"] | None = None

    def __post_init__(self) -> None:
        rules = {
            "epochs": (0 < self.epochs < math.inf, "must be above 0"),
            "learning_rate": (0 < self.learning_rate < 1, "must lie between 0 and 1"),
            "batch_size": (self.batch_size >= 1, "must be at least 1"),
            "max_length": (self.max_length >= 2, "must be at least 2, since the first token is never predicted"),
            "seed": (0 <= self.seed < 2**32, "must lie between 0 and 4294967295"),
            "held_out": (0 < self.held_out < 1, "must lie between 0 and 1, since the test loss is measured"),
        }
        problems = [
            f"{name}: {rule}; it is {getattr(self, name)}" for name, (holds, rule) in rules.items() if not holds
        ]
        if problems:
            raise InvalidInputError(problems)
