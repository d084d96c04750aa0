"""Which rows of a step belong to which request and session."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_extractor.capture.requests import RunningRequests
from sparcom_extractor.vllm_surface.runner import BatchRows
from sparcom_extractor.writer.session import CaptureSession

RUN = np.dtype([(name, np.int64) for name in ("slot", "source", "rows", "position")])
"""Consecutive captured rows of the request in `slot`: first row in the step, number of rows, position of the first."""


def captured_runs(batch: BatchRows, requests: RunningRequests) -> NDArray[Any]:
    """Return the rows of a step that are within a plan: `RUN` (runs,)."""
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
) -> list[tuple[CaptureSession, NDArray[np.int64]]]:
    """Return each session with its runs, int64 (runs, 7): fields of `RowRange`, and the tokens of the prompt.

    first: row of the step from which `source` counts.
    """
    names = ("session", "index", "row", "begin", "end", "prompt")
    owner, index, row, begin, end, prompt = (requests.table[name][runs["slot"]] for name in names)
    source, offset = runs["source"] - first, runs["position"] - begin
    columns = np.stack([index, row, end - begin, source, runs["rows"], offset, prompt], axis=1)
    return [(session, columns[owner == session]) for session in dict.fromkeys(owner.tolist())]


def expected_positions(batch: BatchRows) -> NDArray[np.int64]:
    """Return the positions that the layout of the batch implies, int64 (rows,)."""
    return np.arange(batch.count) + np.repeat(batch.first_position - batch.start[:-1], np.diff(batch.start))


def check_positions(expected: NDArray[np.int64], fed: NDArray[np.int64]) -> None:
    """Raise RuntimeError if the positions fed to the model differ: rows would be stored for the wrong tokens."""
    if not np.array_equal(expected, fed):
        row = int(np.flatnonzero(expected != fed)[0])
        raise RuntimeError(
            f"row {row} of a step must be position {int(expected[row])} of its request; the model was fed position "
            f"{int(fed[row])}. The layout of vLLM's batch is not the one this release knows"
        )
