"""Where a session's rows end up: as they are, a row a token, or as counts, a row an instruction.

Both put rows into the chunks of one or more arrays and say which instructions are durable; `session.py` does the rest.
Used from the session's own thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sparcom_extractor.protocol import FinishedRequest
from sparcom_extractor.writer.chunks import ChunkWriter, write_pool
from sparcom_extractor.writer.counting import add_rows
from sparcom_extractor.writer.targets import ArrayPart

Rows = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class RowRange:
    """Consecutive rows of one instruction within a step's captured rows.

    source: first row within the step's arrays. rows: how many. offset: first row within the instruction.
    """

    index: int
    row: int
    capacity: int
    source: int
    rows: int
    offset: int


class Sink(Protocol):
    """What a session needs of the place where rows end up."""

    def take(self, segment: RowRange, rows: Rows) -> None:
        """Rows of a running instruction: (rows, …) each, by the name of the archive's token array."""

    def take_counts(self, index: int, rows: int, counts: NDArray[np.int32], last: NDArray[np.uint8]) -> None:
        """Counts of dense layers over the first `rows` rows of an instruction, made elsewhere, and the mask of the last
        of them."""

    def finish(self, item: FinishedRequest, written: int) -> str | None:
        """The instruction has run; rows [0, written) were taken. The reason why it cannot be trusted, or None."""

    def forget(self, item: FinishedRequest) -> None:
        """The instruction will not be complete."""

    def durable(self, item: FinishedRequest) -> bool:
        """Whether all of a finished instruction is on disk."""

    def flush(self) -> None:
        """Write what is open as it is."""

    def close(self) -> None:
        """Give the threads back."""


class _ChunkSink:
    """What both sinks do with their chunks."""

    def __init__(self, parts: Sequence[ArrayPart], *, buffers: int, threads: int) -> None:
        pool = write_pool(threads)
        self._parts = [(part, ChunkWriter(part.target, buffers=buffers, threads=threads, pool=pool)) for part in parts]

    def _settle(self, start: int, stop: int) -> None:
        for _, writer in self._parts:
            writer.settle(start, stop)

    def _durable(self, start: int, stop: int) -> bool:
        states = [writer.durable(start, stop) for _, writer in self._parts]  # of all: each hears of its failed writes
        return all(states)

    def flush(self) -> None:
        """Write what is open as it is, and wait for it."""
        for _, writer in self._parts:
            writer.flush()

    def close(self) -> None:
        """Give the threads back; what is being written is finished first."""
        for _, writer in self._parts:
            writer.close()


class MaskSink(_ChunkSink):
    """Masks and routes, a row a token."""

    def take(self, segment: RowRange, rows: Rows) -> None:
        """Put the rows where the layout has them. Again is harmless."""
        for part, writer in self._parts:
            writer.put(segment.row + segment.offset, part.of(rows[part.name]))

    def take_counts(self, index: int, rows: int, counts: NDArray[np.int32], last: NDArray[np.uint8]) -> None:
        """Never: an archive of masks has no place for counts."""
        raise TypeError(f"an archive of masks takes rows; counts came for instruction {index}")

    def finish(self, item: FinishedRequest, written: int) -> str | None:
        """Rows past the end that a step wrote all the same are emptied again, as reserved rows are."""
        if written > item.length:
            for _, writer in self._parts:
                writer.put(item.row + item.length, writer.nothing(written - item.length))
        self.forget(item)
        return None

    def forget(self, item: FinishedRequest) -> None:
        """No more rows of it will come."""
        self._settle(item.row, item.row + item.capacity)

    def durable(self, item: FinishedRequest) -> bool:
        """Whether every chunk under the instruction's rows is on disk."""
        return self._durable(item.row, item.row + item.length)


@dataclass(slots=True)
class _Sum:
    """Counts over the first `rows` rows of an instruction: uint32 (layer, …), by the name of the archive's array.

    last: the last of these rows.
    """

    counts: dict[str, NDArray[np.uint32]]
    rows: int = 0
    last: dict[str, NDArray[Any]] = field(default_factory=dict)

    def add(self, offset: int, rows: Rows) -> None:
        """Add the rows that were not added before; rows after a gap are left out, and the number of rows tells."""
        new = offset + len(next(iter(rows.values()))) - self.rows
        if new > 0 and offset <= self.rows:
            fresh = {name: array[-new:] for name, array in rows.items()}
            for name, counts in self.counts.items():
                add_rows(name, fresh, counts)
            self.rows += new
            self.last = {name: np.array(array[-1:]) for name, array in fresh.items()}

    def cut(self, length: int) -> str | None:
        """Take off the row past the end, if there is one; the reason why the counts cannot be trusted, or None."""
        if self.rows == length + 1:
            for name, counts in self.counts.items():
                extra = np.zeros_like(counts)
                add_rows(name, self.last, extra)
                np.subtract(counts, extra, out=counts)
            self.rows = length
        if self.rows == length:
            return None
        return f"every one of its {length} rows must be counted once; {self.rows} were. Run the instruction again"


class CountSink(_ChunkSink):
    """Counts, a row an instruction: uint32 (layer, …). One sum is held for every running instruction."""

    def __init__(self, parts: Sequence[ArrayPart], *, buffers: int, threads: int) -> None:
        super().__init__(parts, buffers=buffers, threads=threads)
        self._shapes = {part.name: part.row for part in parts}
        self._sums: dict[int, _Sum] = {}

    def take(self, segment: RowRange, rows: Rows) -> None:
        """Add the rows to the instruction's sum, each row once however often it comes."""
        if segment.index not in self._sums:
            self._sums[segment.index] = self._zeros()
        self._sums[segment.index].add(segment.offset, rows)

    def take_counts(self, index: int, rows: int, counts: NDArray[np.int32], last: NDArray[np.uint8]) -> None:
        """Keep what a device has summed."""
        total = {"neuron/count": counts.astype(np.uint32)}
        self._sums[index] = _Sum(total, rows, {"neuron/active": np.array(last[None])})

    def finish(self, item: FinishedRequest, written: int) -> str | None:
        """Put the sum into its chunks, if it is over all rows and no other."""
        total = self._sums.pop(item.index, None) or self._zeros()
        reason = total.cut(item.length)
        if reason is None:
            for part, writer in self._parts:
                writer.put(item.index, part.of(total.counts[part.name][None]))
        self._settle(item.index, item.index + 1)
        return reason

    def forget(self, item: FinishedRequest) -> None:
        """Throw the sum away."""
        self._sums.pop(item.index, None)
        self._settle(item.index, item.index + 1)

    def durable(self, item: FinishedRequest) -> bool:
        """Whether the chunks that hold the instruction are on disk."""
        return self._durable(item.index, item.index + 1)

    def _zeros(self) -> _Sum:
        return _Sum({name: np.zeros(shape, dtype=np.uint32) for name, shape in self._shapes.items()})


def make_sink(parts: Sequence[ArrayPart], **options: Any) -> MaskSink | CountSink:
    """The sink for the arrays: counts where they hold uint32."""
    counted = any(part.target.dtype == "uint32" for part in parts)
    return CountSink(parts, **options) if counted else MaskSink(parts, **options)
