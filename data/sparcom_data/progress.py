"""Progress of an extraction: a snapshot that the extractor takes and clients see."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """Counts of instructions and of rows; a row is one prompt or response token.

    `complete` counts instructions that are durable on disk. `tokens` counts the planned rows, `tokens_done` the rows of
    complete instructions. `seconds_left` is None until a rate is known and after the extraction has ended.
    `storage_wait_seconds` is the time that the engine waited because storage was slower than the model.
    `written_bytes` counts the chunks of masks or counts that this run wrote.
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
    written_bytes: int = 0

    @property
    def settled(self) -> int:
        """Number of instructions in a final state."""
        return self.complete + self.failed + self.cancelled
