"""Finds instructions with a gate or routing weight that is NaN or infinite.

Such a gate compares as inactive, or as active by an overflow: its neuron would count without having been computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sparcom_extractor.capture.discovery.describe import LayerName
from sparcom_extractor.writer.rows import RowFault, RowRange


def find_faults(
    names: Sequence[LayerName],
    ranges: Sequence[RowRange],
    prompts: NDArray[np.int64],
    nonfinite: NDArray[np.uint8],
    positions: NDArray[np.int64],
) -> dict[int, RowFault]:
    """Return the first fault of each instruction that has one, by its index.

    ranges: rows of one session. prompts: int64 (ranges,), tokens of each one's prompt, -1 if unknown.
    nonfinite: uint8 (rows, layers), flags of the layers `names`. positions: int64 (rows,), within the sequence.
    """
    if not nonfinite.any():
        return {}
    faults = {}
    for item, prompt in zip(ranges, prompts.tolist(), strict=True):
        own = nonfinite[item.source : item.source + item.rows]
        if own.any():
            row = int(own.any(axis=1).argmax())
            found = sorted((names[layer] for layer in np.flatnonzero(own[row])), key=lambda name: name.number)
            reason = _reason(found, int(positions[item.source + row]), prompt)
            faults[item.index] = RowFault(item.offset + row, reason)
    return faults


def _reason(found: Sequence[LayerName], position: int, prompt: int) -> str:
    values = "weights or logits" if found[0].component == "router" else "gates"
    others = f", and {len(found) - 1} more of its layers have" if len(found) > 1 else ""
    part = "" if prompt < 0 else " of the prompt" if position < prompt else " of the response"
    number = position - prompt if 0 <= prompt <= position else position
    return (
        f"every gate and routing weight of a token must be a finite number; {found[0]} has {values} that are NaN or "
        f"infinite at position {number}{part}{others}. Check the model's weights; where a model overflows in float16 "
        "use dtype 'bfloat16' or 'float32'"
    )
