"""Reads masks, router choices or counts in blocks of bounded size, and splits them by instruction.

spans ─▶ plan_reads    runs of whole chunks: no chunk is decoded twice, and none without a needed row is read (a chunk
                       of failed instructions alone may not exist)
      ─▶ read_blocks   masks or router choices, with positions; a thread reads one block ahead
      ─▶ parts         the rows of each instruction, checked: each must hold the position that belongs there

`stored_counts` does the same for an archive of counts, whose rows are instructions.
"""

from __future__ import annotations

import math
import mmap
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.archive.populations import Population
from sparcom_analysis.archive.rows import RowSpans
from sparcom_data.archive import Archive
from sparcom_data.errors import DamagedArchiveError

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Called with rows done and rows in all."""

DEFAULT_BLOCK_BYTES = 8 << 20  # of masks or counts, as fast as 16 and 32 MiB; up to three blocks are held at a time
COLUMN_ROWS = 1 << 20  # rows per read of a column, 4 MiB of token ids
ROUTES = "router/expert"


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Consecutive rows of the token axis.

    Attributes:
        start: first row.
        positions: int32 (row,).
        masks: uint8 (row, layer × neuron_byte), or (row, layer, choice, neuron_byte) of routed experts; None if only
            router choices were read.
        experts: uint16 (row, layer, choice); None if nothing is routed.
    """

    start: int
    positions: NDArray[np.int32]
    masks: NDArray[np.uint8] | None
    experts: NDArray[np.uint16] | None


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The rows of one instruction that lie in one block.

    Attributes:
        k, index: index in the spans, and in the instruction table.
        rows: within the block.
        last: whether the instruction ends here.
        kept: bool (row,), which of these rows count; None: all.
    """

    k: int
    index: int
    block: Block
    rows: slice
    last: bool
    kept: NDArray[np.bool_] | None

    @property
    def start(self) -> int:
        """First row on the token axis."""
        return self.block.start + int(self.rows.start)

    def counted(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return those of the part's rows, (row, …), that count: a view if they are contiguous, else a copy."""
        if self.kept is None:
            return rows
        where = np.flatnonzero(self.kept)
        if len(where) and where[-1] - where[0] + 1 != len(where):
            return rows[where]
        return rows[where[0] : where[-1] + 1] if len(where) else rows[:0]


class _RowWindow:
    """Reads ascending rows of an array with long chunks, and keeps the last ones: none is decoded more than twice."""

    def __init__(self, archive: Archive, name: str) -> None:
        self._archive, self._name, self._start = archive, name, 0
        self._rows: NDArray[Any] = np.empty(0)

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        if start < self._start or stop > self._start + len(self._rows):
            array = self._archive.array(self._name)
            step = array.chunks[0]
            self._start = start // step * step
            self._rows = self._archive.read_rows(self._name, self._start, min(-(-stop // step) * step, array.shape[0]))
        return self._rows[start - self._start : stop - self._start]


class _Memory:
    """Uses memory of masks again once nobody holds it: page faults of new memory are a fifth of reading.

    Views keep an array alive, and its memory returns only when it dies; memory in use is never written to.
    """

    def __init__(self) -> None:
        self._free: list[memoryview] = []

    def take(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Return uint8 memory of that shape with undefined contents."""
        size = math.prod(shape)
        fitting = next((index for index, held in enumerate(self._free) if len(held) >= size), None)
        if fitting is None:
            self._free.clear()  # otherwise each larger read would leave a smaller one behind
            memory = memoryview(mmap.mmap(-1, max(size, 1)))  # outside the arenas that malloc keeps per thread
        else:
            memory = self._free.pop(fitting)
        flat = np.frombuffer(memory[:size], dtype=np.uint8)
        weakref.finalize(flat, self._free.append, memory).atexit = False
        return flat.reshape(shape)


def plan_reads(
    starts: NDArray[np.int64], stops: NDArray[np.int64], chunk_rows: int, block_rows: int
) -> list[tuple[int, int]]:
    """Return row ranges that cover every span, ascending, split at chunk borders.

    Args:
        starts, stops: int64 (n,), rows [start, stop) that are needed.
        chunk_rows: rows per chunk of the array.
        block_rows: the most rows per read, rounded up to whole chunks.
    """
    step = chunk_rows * max(1, -(-block_rows // chunk_rows))
    runs: list[list[int]] = []  # spans joined where their chunks touch
    order = np.argsort(starts, kind="stable")
    for start, stop in zip(starts[order].tolist(), stops[order].tolist(), strict=True):
        if runs and start // chunk_rows <= (runs[-1][1] - 1) // chunk_rows + 1:
            runs[-1][1] = stop
        else:
            runs.append([start, stop])
    reads: list[tuple[int, int]] = []
    for first, last in runs:
        inner = range(first // chunk_rows * chunk_rows + step, last, step)
        reads.extend(pairwise([first, *inner, last]))
    return reads


def read_blocks(
    archive: Archive, spans: RowSpans, population: Population | None, block_bytes: int = DEFAULT_BLOCK_BYTES
) -> Iterator[Block]:
    """Yield blocks that cover every span, by ascending row: masks of a population, or None: router choices alone."""
    name = ROUTES if population is None else population.array(archive)
    shape, routed = archive.array(name).shape[1:], population is None or population.routed
    positions, routes, memory = _RowWindow(archive, "token/position"), _RowWindow(archive, ROUTES), _Memory()

    def read(start: int, stop: int) -> Block:
        masks = None
        if population is not None:
            masks = archive.read_rows(name, start, stop, memory.take((stop - start, *shape)))
            masks = masks if routed else masks.reshape(stop - start, -1)
        return Block(start, positions.rows(start, stop), masks, routes.rows(start, stop) if routed else None)

    return _read_ahead(_plan(archive, name, spans.start, spans.stop, block_bytes), read)


def stored_counts(
    archive: Archive, spans: RowSpans, name: str, progress: Progress | None, block_bytes: int
) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """Yield k and the counts (layer, …) of each instruction, as an archive of counts holds them."""
    reads = _plan(archive, name, spans.instruction, spans.instruction + 1, block_bytes)
    at, total = 0, int(spans.tokens.sum())
    for start, counts in _read_ahead(reads, lambda start, stop: (start, archive.read_rows(name, start, stop))):
        while at < len(spans) and spans.instruction[at] < start + len(counts):
            yield at, counts[int(spans.instruction[at]) - start]
            at += 1
        if progress is not None:
            progress(int(spans.tokens[:at].sum()), total)


def read_column(archive: Archive, spans: RowSpans, name: str) -> NDArray[Any]:
    """Return the rows of the spans in a column of the token axis, such as `token/id`; each chunk is read once.

    Returns:
        (row,), the rows of one instruction after the other, as in `RowSpans.kept`.
    """
    array = archive.array(name)
    column = np.empty(int(spans.lengths.sum()), dtype=array.dtype)
    order = np.argsort(spans.start, kind="stable")
    starts, stops, first = spans.start[order], spans.stop[order], spans.first
    for begin, end in plan_reads(spans.start, spans.stop, int(array.chunks[0]), COLUMN_ROWS):
        values = archive.read_rows(name, begin, end)
        touched = slice(int(np.searchsorted(stops, begin, side="right")), int(np.searchsorted(starts, end)))
        for k in order[touched].tolist():
            start, stop = max(int(spans.start[k]), begin), min(int(spans.stop[k]), end)
            offset = int(first[k] - spans.start[k])
            column[offset + start : offset + stop] = values[start - begin : stop - begin]
    return column


def _plan(
    archive: Archive, name: str, starts: NDArray[np.int64], stops: NDArray[np.int64], block_bytes: int
) -> list[tuple[int, int]]:
    array = archive.array(name)
    row_bytes = math.prod(array.shape[1:]) * array.dtype.itemsize
    return plan_reads(starts, stops, int(array.chunks[0]), max(1, block_bytes // row_bytes))


def _read_ahead(reads: list[tuple[int, int]], read: Callable[[int, int], T]) -> Iterator[T]:
    """Yield the result of `read` for each range, in order; a thread reads the next one meanwhile."""
    ahead: deque[Future[T]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="sparcom-read") as reader:
        for place in reads:
            ahead.append(reader.submit(read, *place))
            if len(ahead) > 1:
                yield ahead.popleft().result()
        if ahead:
            yield ahead.pop().result()


def parts(archive: Archive, spans: RowSpans, blocks: Iterator[Block], progress: Progress | None) -> Iterator[Part]:
    """Yield the parts of every instruction, by ascending row; an instruction may lie in several blocks."""
    order, first_kept = np.argsort(spans.start, kind="stable").tolist(), spans.first
    at, done, total = 0, 0, int(spans.lengths.sum())
    for block in blocks:
        end = block.start + len(block.positions)
        while at < len(order) and spans.start[order[at]] < end:
            k = order[at]
            start, stop = max(int(spans.start[k]), block.start), min(int(spans.stop[k]), end)
            rows = slice(start - block.start, stop - block.start)
            offset = int(first_kept[k] - spans.start[k])
            kept = None if spans.kept is None else spans.kept[offset + start : offset + stop]
            part = Part(k, int(spans.instruction[k]), block, rows, bool(spans.stop[k] <= end), kept)
            _check_positions(archive, part, int(spans.position[k]) + start - int(spans.start[k]))
            done += stop - start
            yield part
            if not part.last:
                break
            at += 1
        if progress is not None:
            progress(done, total)


def _check_positions(archive: Archive, part: Part, first: int) -> None:
    positions = part.block.positions[part.rows]
    wrong = np.flatnonzero(positions != np.arange(first, first + len(positions)))
    if len(wrong):
        offset = int(wrong[0])
        raise DamagedArchiveError(
            f"row {part.start + offset} of instruction {archive.instructions.id[part.index]!r} must hold position "
            f"{first + offset}; token/position of {archive.path} says {int(positions[offset])}. "
            "Run `sparcom verify`, then extract the archive again"
        )
