"""How far an extraction is: a snapshot that the extractor makes and that clients see."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """Counts of instructions and prompt or response rows; a row is one token.

    `complete` counts what is durable on disk. `tokens` is the number of rows planned, `tokens_done` the rows of
    complete instructions. `seconds_left` is None until there is a rate to go by, and once the extraction has ended.
    `storage_wait_seconds` is how long the engine stood still because storage was slower than the model.
    """

    instructions: int = 0
    complete: int = 0
    failed: int = 0
    cancelled: int = 0
    tokens: int = 0
    tokens_done: int = 0
    seconds: float = 0.0
    tokens_per_second: float = 0.0
    seconds_left: float | None = None
    storage_wait_seconds: float = 0.0

    @property
    def settled(self) -> int:
        """Instructions that are in a final state."""
        return self.complete + self.failed + self.cancelled
