"""What a user may choose about fine-tuning, checked, and what is fixed. Knows neither models nor data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sparcom_data.errors import InvalidInputError
from sparcom_data.schema.metadata import PromptFormat

Precision = Literal["float32", "bfloat16"]
WARM_UP = 0.1  # of the steps, in which the rate rises from 0; afterwards it falls to 0 along a cosine
GRADIENT_NORM = 1.0  # longer gradients are cut to this length
FIXED = {
    "optimizer": "AdamW, betas 0.9 and 0.999, epsilon 1e-8, no weight decay",
    "schedule": f"cosine to 0 after a warm-up of {WARM_UP:.0%} of the steps",
    "gradient_norm": GRADIENT_NORM,
}


@dataclass(frozen=True, slots=True)
class TuneSettings:
    """How a model is fine-tuned.

    epochs: how often each training instruction is read; a fraction stops within a round.
    learning_rate: the highest rate of the schedule.
    batch_size: instructions of a step.
    max_length: tokens of an instruction; what is longer is cut.
    seed: of the split, the order and the dropout.
    held_out: share of the instructions that is not trained on.
    prompt_format: `raw` or `chat`, as in an extraction.
    precision: of the multiplications in training; None takes bfloat16 where the processor multiplies it, else float32.
        Weights, optimizer and all losses before and after are float32.
    """

    epochs: float = 1.0
    learning_rate: float = 5e-5
    batch_size: int = 8
    max_length: int = 256
    seed: int = 0
    held_out: float = 0.05
    prompt_format: PromptFormat = "raw"
    precision: Precision | None = None

    def __post_init__(self) -> None:
        rules = [
            ("epochs", 0 < self.epochs < math.inf, "is above 0"),
            ("learning_rate", 0 < self.learning_rate < 1, "lies between 0 and 1"),
            ("batch_size", self.batch_size >= 1, "is at least 1"),
            (
                "max_length",
                self.max_length >= 2,
                "is at least 2, since the first token is never predicted",
            ),
            ("seed", 0 <= self.seed < 2**32, "lies between 0 and 4294967295"),
            ("held_out", 0 < self.held_out < 1, "lies between 0 and 1, since what is learned is measured on the rest"),
        ]
        problems = [f"{name}: {rule}; it is {getattr(self, name)}" for name, holds, rule in rules if not holds]
        if problems:
            raise InvalidInputError(problems)

    def recipe(self, precision: Precision) -> dict[str, Any]:
        """All of it by name, with the precision that this machine takes."""
        return {**asdict(self), "precision": precision}
