"""Which rows of a step belong to which request and session."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_extractor.capture.requests import RunningRequests
from sparcom_extractor.vllm_surface.runner import BatchRows
from sparcom_extractor.writer.sinks import RowRange

RUN = np.dtype([(name, np.int64) for name in ("slot", "source", "rows", "position")])
"""Consecutive captured rows of the request in `slot`: first row in the step, number of rows, position of the first."""


@dataclass(frozen=True, slots=True)
class SessionRows:
    """The rows of a step that belong to one session, as columns (runs,); see `RowRange`.

    Attributes:
        columns: int64 (fields of `RowRange`, runs). prompts: int64 (runs,), tokens of each run's prompt, -1 if unknown.
    """

    columns: NDArray[np.int64]
    prompts: NDArray[np.int64]

    def ranges(self) -> list[RowRange]:
        """Return the runs as `RowRange`s."""
        return [RowRange(*values) for values in self.columns.T.tolist()]


def captured_runs(batch: BatchRows, requests: RunningRequests) -> NDArray[Any]:
    """Return the rows of a step that are within a plan: `RUN` (runs,)."""
    slots = requests.slots(batch.request_ids)
    plans, first = requests.table[slots], batch.first_position
    runs = np.zeros(len(slots), dtype=RUN)
    runs["slot"] = slots
    runs["position"] = np.maximum(first, plans["begin"])
    runs["rows"] = np.minimum(first + np.diff(batch.start), plans["end"]) - runs["position"]
    runs["source"] = batch.start[:-1] + runs["position"] - first
    return runs[(slots >= 0) & (runs["rows"] > 0)]


def session_rows(runs: NDArray[Any], requests: RunningRequests, first: int) -> Iterator[tuple[int, SessionRows]]:
    """Yield the number of each session with its rows; their `source` counts from row `first` of the step."""
    owner = requests.table["session"][runs["slot"]]
    for number in np.unique(owner).tolist():
        own = runs[owner == number]
        plans = requests.table[own["slot"]]
        capacity, offset = plans["end"] - plans["begin"], own["position"] - plans["begin"]
        columns = [plans["index"], plans["row"], capacity, own["source"] - first, own["rows"], offset]
        yield number, SessionRows(np.stack(columns), plans["prompt"])


def expected_positions(batch: BatchRows) -> NDArray[np.int64]:
    """Return the positions that the layout of the batch implies, int64 (rows,)."""
    return np.arange(batch.count) + np.repeat(batch.first_position - batch.start[:-1], np.diff(batch.start))


def check_positions(expected: NDArray[np.int64], fed: NDArray[np.int64]) -> None:
    """Check that the positions fed to the model are those that the layout of the batch implies.

    Raises:
        RuntimeError: they differ: rows would be stored for the wrong tokens.
    """
    if not np.array_equal(expected, fed):
        row = int(np.flatnonzero(expected != fed)[0])
        raise RuntimeError(
            f"row {row} of a step must be position {int(expected[row])} of its request; the model was fed position "
            f"{int(fed[row])}. The layout of vLLM's batch is not the one this release knows"
        )
