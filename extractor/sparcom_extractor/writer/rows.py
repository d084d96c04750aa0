"""Input of a capture session: the rows of one step, or counts from a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

RANGES = np.dtype([(name, np.int64) for name in ("index", "row", "capacity", "source", "rows", "offset", "prompt")])
"""Consecutive rows of one instruction within one step.

index: the instruction's index. row: its first row on the token axis. capacity: number of rows reserved there.
source: first row within the step's arrays. rows: number of rows. offset: first row within the instruction.
prompt: prompt length in tokens, for errors; -1 if unknown.
"""


def row_numbers(starts: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return start, start + 1, … of each range, `rows` numbers each, range after range: int64 (sum of rows,)."""
    stops = np.cumsum(rows)
    return np.repeat(starts - (stops - rows), rows) + np.arange(stops[-1] if len(stops) else 0)


def source_rows(ranges: NDArray[Any]) -> slice | NDArray[np.int64]:
    """Return the ranges' rows of the step's arrays: a slice, which copies nothing, if they follow each other."""
    starts, stops = ranges["source"], ranges["source"] + ranges["rows"]
    if len(ranges) and np.array_equal(starts[1:], stops[:-1]):
        return slice(int(starts[0]), int(stops[-1]))
    return row_numbers(starts, ranges["rows"])


@dataclass(frozen=True, slots=True)
class RowFault:
    """Why a row of an instruction is invalid. offset: the row's offset within the instruction."""

    offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class StepRows:
    """The captured rows of one step.

    ranges: `RANGES` (m,); no row occurs twice. arrays: (n, …) each, by the name of the archive's token array; empty
    if a device counts them. ids: int32 (n,). positions: int64 (n,). done: called once the arrays are no longer needed.
    faults: first fault of each instruction in this step, by instruction index.
    """

    ranges: NDArray[Any]
    arrays: Mapping[str, NDArray[Any]]
    ids: NDArray[np.int32]
    positions: NDArray[np.int64]
    done: Callable[[], None] = lambda: None
    faults: Mapping[int, RowFault] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (*self.arrays.values(), self.ids, self.positions))


@dataclass(frozen=True, slots=True)
class CountedRows:
    """Counts from a device over the first `rows` rows of an instruction: int32 (layer, neuron).
    last: mask of the last of these rows, uint8 (layer, neuron_byte). done: as in `StepRows`."""

    index: int
    rows: int
    counts: NDArray[np.int32]
    last: NDArray[np.uint8]
    done: Callable[[], None] = lambda: None

    @property
    def nbytes(self) -> int:
        return self.counts.nbytes + self.last.nbytes
