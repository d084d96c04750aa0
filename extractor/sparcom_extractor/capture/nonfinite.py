"""Which instructions of a step have a gate that is NaN or infinite, and the sentence that says where.

Such a gate is not above the threshold, or above it by an overflow: its neuron would count as inactive or active without
having been computed. It does not know how gates are looked at: the buffers' flags say which rows and layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sparcom_extractor.capture.ops.buffers import LayerName
from sparcom_extractor.writer.rows import RowFault, RowRange


class NonfiniteRows:
    """Makes faults of flags. columns: the layers of the flags, in their order."""

    def __init__(self, columns: Sequence[LayerName]) -> None:
        self._columns = columns
        self._order = np.argsort([name.number for name in columns], kind="stable")

    def find(
        self,
        segments: Sequence[RowRange],
        prompts: NDArray[np.int64],
        flags: NDArray[np.uint8],
        positions: NDArray[np.int64],
    ) -> dict[int, RowFault]:
        """The first fault of each instruction that has one, by its index.

        Args:
            segments: of one session. prompts: int64 (segments,), tokens of each one's prompt, -1 where not known.
            flags: uint8 (rows, layers). positions: int64 (rows,), of each row within its sequence.
        """
        if not flags.any():
            return {}
        faults = {}
        for segment, prompt in zip(segments, prompts.tolist(), strict=True):
            own = flags[segment.source : segment.source + segment.rows]
            wrong = np.flatnonzero(own.any(axis=1))
            if len(wrong):
                row = int(wrong[0])
                place = _place(int(positions[segment.source + row]), prompt)
                faults[segment.index] = RowFault(segment.offset + row, self._reason(own[row], place))
        return faults

    def _reason(self, flags: NDArray[np.uint8], place: str) -> str:
        found = [self._columns[column] for column in self._order if flags[column]]
        what = "weights or logits" if found[0].component == "router" else "gates"
        others = f", and {len(found) - 1} more of its layers have" if len(found) > 1 else ""
        return (
            f"every gate and routing weight of a token must be a finite number; {found[0]} has {what} that are NaN or "
            f"infinite at {place}{others}. Check the model's weights; where a model overflows in float16 use dtype "
            "'bfloat16' or 'float32'"
        )


def _place(position: int, prompt: int) -> str:
    if prompt < 0:
        return f"position {position}"
    if position < prompt:
        return f"position {position} of the prompt"
    return f"position {position - prompt} of the response"
