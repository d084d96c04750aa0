"""Find the request and session of each row of a step, and detect invalid rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_extractor.capture.discovery.describe import LayerName
from sparcom_extractor.capture.requests import RunningRequests
from sparcom_extractor.vllm_surface.runner import BatchRows
from sparcom_extractor.writer.rows import RANGES, RowFault
from sparcom_extractor.writer.session import CaptureSession

RUN = np.dtype([(name, np.int64) for name in ("slot", "source", "rows", "position")])
"""Consecutive captured rows of the request in `slot`: first row in the step, number of rows, position of the first."""


def captured_runs(batch: BatchRows, requests: RunningRequests) -> NDArray[Any]:
    """Return the rows of a step that lie within a plan: `RUN` (runs,)."""
    slots = requests.slots(batch.request_ids)
    begin, end, first = requests.table["begin"][slots], requests.table["end"][slots], batch.first_position
    runs = np.zeros(len(slots), dtype=RUN)
    runs["slot"] = slots
    runs["position"] = np.maximum(first, begin)
    runs["rows"] = np.minimum(first + np.diff(batch.start), end) - runs["position"]
    runs["source"] = batch.start[:-1] + runs["position"] - first
    return runs[(slots >= 0) & (runs["rows"] > 0)]


def split_by_session(
    runs: NDArray[Any], requests: RunningRequests, first: int
) -> list[tuple[CaptureSession, NDArray[Any]]]:
    """Return each session with its `RANGES`. first: row of the step that becomes row 0 of `source`."""
    own = requests.table[runs["slot"]]
    ranges = np.empty(len(runs), dtype=RANGES)
    for name in ("index", "row", "prompt"):
        ranges[name] = own[name]
    ranges["capacity"] = own["end"] - own["begin"]
    ranges["source"], ranges["rows"] = runs["source"] - first, runs["rows"]
    ranges["offset"] = runs["position"] - own["begin"]
    sessions = dict.fromkeys(own["session"].tolist())
    return [(session, ranges if len(sessions) == 1 else ranges[own["session"] == session]) for session in sessions]


def check_positions(expected: NDArray[np.int64], fed: NDArray[np.int64]) -> None:
    """Raise RuntimeError if the model was fed other positions: rows would be stored for the wrong tokens."""
    if not np.array_equal(expected, fed):
        row = int(np.flatnonzero(expected != fed)[0])
        raise RuntimeError(
            f"row {row} of a step must be position {int(expected[row])} of its request; the model was fed position "
            f"{int(fed[row])}. vLLM's batch layout is unknown to this release: report the vLLM version"
        )


def find_faults(
    names: Sequence[LayerName],
    ranges: NDArray[Any],
    nonfinite: NDArray[np.uint8],
    positions: NDArray[np.int64],
) -> dict[int, RowFault]:
    """Return, by instruction index, the first row with a gate or routing weight that is NaN or infinite.

    Such a gate compares as inactive, or as active after an overflow: the mask would hold a value never computed.
    ranges: `RANGES` of one session. nonfinite: uint8 (rows, layers), flags of the layers `names`.
    positions: int64 (rows,), within the sequence.
    """
    if not nonfinite.any():
        return {}
    faults = {}
    for index, _, _, source, rows, offset, prompt in ranges.tolist():
        own = nonfinite[source : source + rows]
        if own.any():
            row = int(own.any(axis=1).argmax())
            found = sorted((names[layer] for layer in np.flatnonzero(own[row])), key=lambda name: name.number)
            reason = _reason(found, int(positions[source + row]), prompt)
            faults[index] = RowFault(offset + row, reason)
    return faults


def _reason(found: Sequence[LayerName], position: int, prompt: int) -> str:
    values = "weights or logits" if found[0].component == "router" else "gates"
    others = f", and in {len(found) - 1} more layers" if len(found) > 1 else ""
    part = "" if prompt < 0 else " of the prompt" if position < prompt else " of the response"
    number = position - prompt if 0 <= prompt <= position else position
    return (
        f"every gate and routing weight of a token must be a finite number; {found[0]} has {values} that are NaN or "
        f"infinite at position {number}{part}{others}. Check the model's weights; if the model overflows in float16, "
        "use dtype 'bfloat16' or 'float32'"
    )
