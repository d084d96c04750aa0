"""Store masks, one row per token, or counts, one row per instruction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_extractor.protocol import FinishedRequest
from sparcom_extractor.writer.chunks import ChunkWriter
from sparcom_extractor.writer.counting import count_rows
from sparcom_extractor.writer.rows import CountedRows, row_numbers, source_rows
from sparcom_extractor.writer.settled import NOTHING_SETTLED, Settled
from sparcom_extractor.writer.targets import ArrayPart

Arrays = Mapping[str, NDArray[Any]]


class MaskSink:
    """Stores masks and routes, one row per token. Used by the session's thread. options: see `ChunkWriter`."""

    def __init__(
        self, parts: Sequence[ArrayPart], pool: ThreadPoolExecutor, settled: Settled = NOTHING_SETTLED, **options: Any
    ) -> None:
        self._writers = [(part, ChunkWriter(part.target, pool, settled=settled, **options)) for part in parts]
        self._waiting: defaultdict[tuple[int, int], list[int]] = defaultdict(list)  # per writer and chunk: instructions
        self._chunks_left: dict[int, int] = {}  # per completed instruction
        self._durable: list[int] = []

    def append_rows(self, ranges: NDArray[Any], arrays: Arrays) -> None:
        """Take rows of running instructions: `RANGES` (n,). arrays: of the step, by the archive's token array."""
        rows, source = row_numbers(ranges["row"] + ranges["offset"], ranges["rows"]), source_rows(ranges)
        for part, writer in self._writers:
            writer.write_rows(rows, part.select_layer(arrays[part.name])[source])

    def append_counts(self, counted: CountedRows) -> None:
        """Take counts from a device, which replace earlier ones. Only `CountSink` supports it."""
        raise TypeError(f"an archive of masks takes rows; instruction {counted.index} came with counts")

    def complete_instruction(self, item: FinishedRequest, written: int) -> str | None:
        """Finish an instruction with rows [0, written). Return why it is invalid, or None."""
        if written > item.length:  # a step ran past the end, but unused rows must hold the fill value
            for part, writer in self._writers:
                fill = part.target.fill_rows(written - item.length)
                writer.write_rows(np.arange(item.row + item.length, item.row + written), fill)
        self.end_instruction(item)
        self._await_chunks(item)
        return None

    def end_instruction(self, item: FinishedRequest) -> None:
        """Accept no more rows of an instruction, complete or not."""
        for _, writer in self._writers:
            writer.mark_final(*self._axis_range(item, item.capacity))

    def take_durable(self) -> list[int]:
        """Return the completed instructions with all rows on disk, each once. Raises the error of a failed write."""
        for number, (_, writer) in enumerate(self._writers):
            for chunk in writer.take_durable():
                for index in self._waiting.pop((number, chunk), ()):
                    self._chunk_is_durable(index)
        durable, self._durable = self._durable, []
        return durable

    @property
    def read_backs(self) -> int:
        """Number of chunks that were written before they were full, and read back."""
        return sum(writer.read_backs for _, writer in self._writers)

    @property
    def written_bytes(self) -> int:
        """Bytes of all writes that have ended."""
        return sum(writer.written_bytes for _, writer in self._writers)

    def flush(self) -> None:
        """Write all open chunks as they are and wait."""
        for _, writer in self._writers:
            writer.flush_chunks()

    def _await_chunks(self, item: FinishedRequest) -> None:
        """Note the chunks that must be on disk before a completed instruction is durable."""
        missing = 0
        for number, (_, writer) in enumerate(self._writers):
            for chunk in writer.not_durable(*self._axis_range(item, item.length)):
                self._waiting[number, chunk].append(item.index)
                missing += 1
        self._chunks_left[item.index] = missing + 1
        self._chunk_is_durable(item.index)  # the one too many: an instruction may have none to wait for

    def _chunk_is_durable(self, index: int) -> None:
        self._chunks_left[index] -= 1
        if not self._chunks_left[index]:
            del self._chunks_left[index]
            self._durable.append(index)

    def _axis_range(self, item: FinishedRequest, rows: int) -> tuple[int, int]:
        """Return start and stop of an instruction's first `rows` rows on the arrays' first axis."""
        return item.row, item.row + rows


@dataclass(slots=True)
class _RunningCount:
    """Counts over the first `rows` rows of an instruction.
    counts: uint32 (layer, …), per count array. last: the last of these rows, per token array."""

    counts: dict[str, NDArray[np.uint32]]
    rows: int = 0
    last: Arrays = field(default_factory=dict)

    def count_new_rows(self, offset: int, arrays: Arrays) -> None:
        """Count rows that were not counted before. After a gap nothing is counted, so `rows` stays too low."""
        new = offset + len(next(iter(arrays.values()))) - self.rows
        if new > 0 and offset <= self.rows:
            fresh = {name: array[-new:] for name, array in arrays.items()}
            for name, counts in self.counts.items():
                count_rows(name, fresh, counts)
            self.rows += new
            self.last = {name: np.array(array[-1:]) for name, array in fresh.items()}

    def end_at(self, length: int) -> str | None:
        """Subtract the row computed past the end, if any. Return why the counts are invalid, or None."""
        if self.rows == length + 1:
            for name, counts in self.counts.items():
                extra = np.zeros_like(counts)
                count_rows(name, self.last, extra)
                np.subtract(counts, extra, out=counts)
            self.rows = length
        if self.rows == length:
            return None
        return f"every one of its {length} rows must be counted once; {self.rows} were. Run the instruction again"


class CountSink(MaskSink):
    """Stores counts, one uint32 row (layer, …) per instruction. Keeps the counts of running instructions in memory."""

    def __init__(self, parts: Sequence[ArrayPart], *arguments: Any, **options: Any) -> None:
        super().__init__(parts, *arguments, **options)
        self._running: defaultdict[int, _RunningCount] = defaultdict(
            lambda: _RunningCount({part.name: np.zeros(part.row, dtype=np.uint32) for part in parts})
        )

    def append_rows(self, ranges: NDArray[Any], arrays: Arrays) -> None:
        for index, source, rows, offset in ranges[["index", "source", "rows", "offset"]].tolist():
            own = {name: array[source : source + rows] for name, array in arrays.items()}
            self._running[index].count_new_rows(offset, own)

    def append_counts(self, counted: CountedRows) -> None:
        counts, last = {"neuron/count": counted.counts.astype(np.uint32)}, {"neuron/active": counted.last[None].copy()}
        self._running[counted.index] = _RunningCount(counts, counted.rows, last)

    def complete_instruction(self, item: FinishedRequest, written: int) -> str | None:
        running = self._running[item.index]
        reason = running.end_at(item.length)
        if reason is None:
            for part, writer in self._writers:
                writer.write_rows(np.array([item.index]), part.select_layer(running.counts[part.name][None]))
        self.end_instruction(item)
        if reason is None:
            self._await_chunks(item)
        return reason

    def end_instruction(self, item: FinishedRequest) -> None:
        self._running.pop(item.index, None)
        super().end_instruction(item)

    def _axis_range(self, item: FinishedRequest, rows: int) -> tuple[int, int]:
        return item.index, item.index + 1
