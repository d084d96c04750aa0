"""Plan of the token axis: the rows of each instruction, decided before the first token runs.

Rule 1 of the archive: `token_start` depends only on prompt lengths and options, never on scheduling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparcom_data.schema.metadata import Positions

TARGET_CHUNK_BYTES = 8 << 20  # measured: docs/decisions/0027-chunks-of-8-mib.md
MAX_CHUNK_TOKENS = 4096
COUNT_CHUNK_BYTES = 4 << 20  # uncompressed; instructions of a chunk commit together, so larger chunks commit later


@dataclass(frozen=True, slots=True)
class Layout:
    """Rows of n instructions.

    prompt_length: int32 (n,), T of the paper. token_start: int64 (n,). capacity: int32 (n,), rows reserved.
    first_position: int32 (n,), the sequence position that the instruction's first row holds.
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
    """Place instructions one after the other on the token axis.

    Prompt rows come first, then `max_tokens` reserved response rows if responses are captured. An instruction that
    cannot run (`runnable` false: its prompt exceeds the context length) gets no rows.
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
    """Return the rows per mask chunk: the largest power of two whose chunk stays within `TARGET_CHUNK_BYTES`.

    Args:
        row_bytes: mask bytes per token that one writer holds: layers × neuron bytes.
        tokens: length of the token axis, an upper bound.
    """
    rows = max(1, min(TARGET_CHUNK_BYTES // max(1, row_bytes), MAX_CHUNK_TOKENS))
    rows = 1 << (rows.bit_length() - 1)
    return max(1, min(rows, tokens))


def choose_chunk_instructions(count_bytes: int, instructions: int) -> int:
    """Return the instructions per count chunk: the largest power of two within `COUNT_CHUNK_BYTES`, at least 1.

    Args:
        count_bytes: uncompressed count bytes per instruction that one writer holds: layers × neurons × 4.
        instructions: length of the instruction axis, an upper bound.
    """
    fit = max(1, COUNT_CHUNK_BYTES // max(1, count_bytes))
    return max(1, min(1 << (fit.bit_length() - 1), instructions))
