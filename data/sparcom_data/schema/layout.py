"""Where every instruction's rows go on the token axis, decided before the first token runs.

Rule 1 of the archive: `token_start` depends on the prompts' lengths and the options alone, never on scheduling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparcom_data.schema.metadata import Positions

TARGET_CHUNK_BYTES = 8 << 20  # measured: docs/decisions/0027-chunks-of-8-mib.md
MAX_CHUNK_TOKENS = 4096
COUNT_CHUNK_BYTES = 4 << 20  # uncompressed; instructions of a chunk are committed together, so larger ones commit later


@dataclass(frozen=True, slots=True)
class Layout:
    """Rows of n instructions.

    prompt_length: int32 (n,), T of the paper. token_start: int64 (n,). capacity: int32 (n,), rows reserved.
    first_position: int32 (n,), the position within the sequence that goes to an instruction's first row.
    """

    prompt_length: NDArray[np.int32]
    token_start: NDArray[np.int64]
    capacity: NDArray[np.int32]
    first_position: NDArray[np.int32]

    @property
    def tokens(self) -> int:
        """Length of the token axis."""
        return int(self.capacity.sum(dtype=np.int64))


def plan_layout(
    prompt_lengths: Sequence[int],
    positions: Positions,
    max_tokens: int,
    runnable: Sequence[bool] | None = None,
) -> Layout:
    """Lay instructions out one after the other.

    Prompt rows come first, then `max_tokens` reserved response rows where responses are captured. An instruction that
    cannot run (`runnable` false: its prompt does not fit the model) gets no rows.
    """
    prompt = np.asarray(prompt_lengths, dtype=np.int32)
    reserved = 0 if positions == "prompt" else max_tokens
    rows = np.full_like(prompt, reserved) if positions == "response" else prompt + np.int32(reserved)
    if runnable is not None:
        rows = np.where(np.asarray(runnable, dtype=bool), rows, np.int32(0)).astype(np.int32)
    start = np.zeros(len(prompt), dtype=np.int64)
    np.cumsum(rows[:-1], dtype=np.int64, out=start[1:])
    first = prompt.copy() if positions == "response" else np.zeros_like(prompt)
    return Layout(prompt_length=prompt, token_start=start, capacity=rows, first_position=first)


def choose_chunk_tokens(row_bytes: int, tokens: int) -> int:
    """Rows a mask chunk holds: the largest power of two whose chunk stays within `TARGET_CHUNK_BYTES`.

    Args:
        row_bytes: bytes of one token's masks as one writer has them, layers × neuron bytes.
        tokens: length of the token axis, the most that is useful.
    """
    rows = max(1, min(TARGET_CHUNK_BYTES // max(1, row_bytes), MAX_CHUNK_TOKENS))
    rows = 1 << (rows.bit_length() - 1)
    return max(1, min(rows, tokens))


def choose_chunk_instructions(count_bytes: int, instructions: int) -> int:
    """Instructions a chunk of counts holds: the largest power of two within `COUNT_CHUNK_BYTES`, at least 1.

    Args:
        count_bytes: uncompressed bytes of one instruction's counts as one writer has them, layers × neurons × 4.
        instructions: length of the instruction axis, the most that is useful.
    """
    fit = max(1, COUNT_CHUNK_BYTES // max(1, count_bytes))
    return max(1, min(1 << (fit.bit_length() - 1), instructions))
