"""Where a session's rows end up: as masks, a row a token, or as counts, a row an instruction.

Both put rows into chunks of one array and say which instructions are durable; `session.py` does the rest. Used from
the session's own thread.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sparcom_extractor.writer.chunks import ChunkTarget, ChunkWriter
from sparcom_extractor.writer.counting import add_counts_host, unpack_bits


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive rows of one instruction within a step's captured rows.

    source: first row within the step's arrays. rows: how many. offset: first row within the instruction.
    """

    index: int
    row: int
    capacity: int
    source: int
    rows: int
    offset: int


@dataclass(frozen=True, slots=True)
class Settlement:
    """The submitting side's word that an instruction has run: `length` rows hold data; -1: it did not, forget it."""

    index: int
    row: int
    capacity: int
    length: int


class Sink(Protocol):
    """What a session needs of the place where rows end up."""

    def take(self, segment: Segment, masks: NDArray[np.uint8]) -> None:
        """Rows of a running instruction: uint8 (rows, layer, neuron_byte)."""

    def take_counts(self, index: int, rows: int, counts: NDArray[np.int32], last: NDArray[np.uint8]) -> None:
        """Counts over the first `rows` rows of an instruction, made elsewhere, and the mask of the last of them."""

    def finish(self, item: Settlement, written: int) -> str | None:
        """The instruction has run; rows [0, written) were taken. The reason why it cannot be trusted, or None."""

    def forget(self, item: Settlement) -> None:
        """The instruction will not be complete."""

    def durable(self, item: Settlement) -> bool:
        """Whether all of a finished instruction is on disk."""

    def flush(self) -> None:
        """Write what is open as it is."""

    def close(self) -> None:
        """Give the threads back."""


class _ChunkSink:
    """What both sinks do with their chunks."""

    def __init__(self, target: ChunkTarget, *, buffers: int, threads: int) -> None:
        self._writer = ChunkWriter(target, buffers=buffers, threads=threads)

    def flush(self) -> None:
        """Write what is open as it is, and wait for it."""
        self._writer.flush()

    def close(self) -> None:
        """Give the threads back; what is being written is finished first."""
        self._writer.close()


class MaskSink(_ChunkSink):
    """Masks, a row a token."""

    def take(self, segment: Segment, masks: NDArray[np.uint8]) -> None:
        """Put the rows where the layout has them. Again is harmless."""
        self._writer.put(segment.row + segment.offset, masks)

    def take_counts(self, index: int, rows: int, counts: NDArray[np.int32], last: NDArray[np.uint8]) -> None:
        """Never: an archive of masks has no place for counts."""
        raise TypeError(f"an archive of masks takes rows; counts came for instruction {index}")

    def finish(self, item: Settlement, written: int) -> str | None:
        """Rows past the end that a step wrote all the same are set back to zeros, as reserved rows are."""
        if written > item.length:
            self._writer.put(item.row + item.length, self._writer.zeros(written - item.length))
        self.forget(item)
        return None

    def forget(self, item: Settlement) -> None:
        """No more rows of it will come."""
        self._writer.settle(item.row, item.row + item.capacity)

    def durable(self, item: Settlement) -> bool:
        """Whether every chunk under the instruction's rows is on disk."""
        return self._writer.durable(item.row, item.row + item.length)


@dataclass(slots=True)
class _Sum:
    """Counts over the first `rows` rows of an instruction: uint32 (layer, neuron). last: the mask of the last row."""

    counts: NDArray[np.uint32]
    rows: int = 0
    last: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, dtype=np.uint8))

    def add(self, offset: int, masks: NDArray[np.uint8]) -> None:
        """Add the rows that were not added before; rows after a gap are left out, and the number of rows tells."""
        new = offset + len(masks) - self.rows
        if new > 0 and offset <= self.rows:
            add_counts_host(masks[-new:], self.counts)
            self.rows += new
            self.last = np.array(masks[-1])

    def cut(self, length: int) -> str | None:
        """Take off the row past the end, if there is one; the reason why the counts cannot be trusted, or None."""
        if self.rows == length + 1:
            self.counts -= unpack_bits(self.last, self.counts.shape[1])
            self.rows = length
        if self.rows == length:
            return None
        return f"every one of its {length} rows must be counted once; {self.rows} were. Run the instruction again"


class CountSink(_ChunkSink):
    """Counts, a row an instruction: uint32 (layer, neuron). One sum is held for every running instruction."""

    def __init__(self, target: ChunkTarget, *, buffers: int, threads: int) -> None:
        super().__init__(target, buffers=buffers, threads=threads)
        self._shape = target.chunk_shape[1:]
        self._sums: dict[int, _Sum] = {}

    def take(self, segment: Segment, masks: NDArray[np.uint8]) -> None:
        """Add the rows to the instruction's sum, each row once however often it comes."""
        if segment.index not in self._sums:
            self._sums[segment.index] = self._zeros()
        self._sums[segment.index].add(segment.offset, masks)

    def take_counts(self, index: int, rows: int, counts: NDArray[np.int32], last: NDArray[np.uint8]) -> None:
        """Keep what a device has summed."""
        self._sums[index] = _Sum(counts.astype(np.uint32), rows, np.array(last))

    def finish(self, item: Settlement, written: int) -> str | None:
        """Put the sum into its chunk, if it is over all rows and no other."""
        total = self._sums.pop(item.index, None) or self._zeros()
        reason = total.cut(item.length)
        if reason is None:
            self._writer.put(item.index, total.counts[None])
        self._writer.settle(item.index, item.index + 1)
        return reason

    def forget(self, item: Settlement) -> None:
        """Throw the sum away."""
        self._sums.pop(item.index, None)
        self._writer.settle(item.index, item.index + 1)

    def durable(self, item: Settlement) -> bool:
        """Whether the chunk that holds the instruction is on disk."""
        return self._writer.durable(item.index, item.index + 1)

    def _zeros(self) -> _Sum:
        return _Sum(np.zeros(self._shape, dtype=np.uint32))


def make_sink(target: ChunkTarget, **options: Any) -> MaskSink | CountSink:
    """The sink for an array: counts where it holds uint32."""
    return CountSink(target, **options) if target.dtype == "uint32" else MaskSink(target, **options)
