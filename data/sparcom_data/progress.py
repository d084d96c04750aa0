"""Progress of an extraction: a snapshot that the extractor takes and clients see, and its text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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


def describe_counts(counts: Mapping[str, int], total: int) -> str:
    """Return instructions by state, such as "106 of 600 instructions complete, 494 cancelled".

    Args:
        counts: number of instructions that are `complete`, `failed`, `cancelled` and, in an archive, `pending`.
        total: number of all instructions.
    """
    others = [f"{counts[name]:,} {name}" for name in ("failed", "cancelled", "pending") if counts.get(name)]
    return ", ".join([f"{counts['complete']:,} of {total:,} instructions complete", *others])


def describe_progress(progress: Mapping[str, Any], *more: str) -> str:
    """Return the text beside a progress bar: counts, `more`, tokens per second, time left as m:ss."""
    parts = [describe_counts(progress, progress["instructions"]), *more]
    if progress["tokens_per_second"]:
        parts.append(f"{progress['tokens_per_second']:,.0f} tokens/s")
    if progress["seconds_left"] is not None:
        minutes, seconds = divmod(round(progress["seconds_left"]), 60)
        parts.append(f"{minutes}:{seconds:02d} left")
    return " · ".join(parts)
