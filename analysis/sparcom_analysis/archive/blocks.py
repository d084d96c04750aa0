"""Read masks, top-k experts or counts in blocks of bounded size, and split them by instruction.

spans ─▶ plan_reads    runs of whole chunks: each chunk needed is decoded once; others are never read (a chunk with
                       only failed instructions may not exist)
      ─▶ read_blocks   masks or top-k experts, with positions; a thread reads one block ahead
      ─▶ parts         the rows of each instruction; every row must hold the expected position

`stored_counts` does the same for an archive of counts, with one row per instruction.
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
"""Called with rows done and rows in total."""

DEFAULT_BLOCK_BYTES = 8 << 20  # masks or counts per block, as fast as 16 and 32 MiB; at most three blocks are in memory
COLUMN_ROWS = 1 << 20  # rows per read of a column, 4 MiB of token ids
ROUTES = "router/expert"


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Consecutive rows of the token axis.

    Attributes:
        start: first row.
        positions: int32 (row,).
        masks: uint8 (row, layer × neuron_byte), or (row, layer, choice, neuron_byte) for routed experts; None if only
            top-k experts were read.
        experts: uint16 (row, layer, choice), top-k experts; None if nothing is routed.
    """

    start: int
    positions: NDArray[np.int32]
    masks: NDArray[np.uint8] | None
    experts: NDArray[np.uint16] | None


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The rows of one instruction in one block.

    Attributes:
        k, index: index in the spans, and in the instruction table.
        rows: rows within the block.
        last: whether the instruction ends in this block.
        kept: bool (row,), rows that count; None: all.
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
        """Select the part's rows, (row, …), that count: a view if they are contiguous, else a copy."""
        if self.kept is None:
            return rows
        where = np.flatnonzero(self.kept)
        if len(where) and where[-1] - where[0] + 1 != len(where):
            return rows[where]
        return rows[where[0] : where[-1] + 1] if len(where) else rows[:0]


class _RowWindow:
    """Reads ascending rows of an array with long chunks; caches the last chunks, so each is decoded at most twice."""

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


class _BufferPool:
    """Reuses mask buffers after their arrays are freed, because page faults of new memory take a fifth of read time.

    Views keep an array alive. A buffer returns to the pool only when its array is freed.
    """

    def __init__(self) -> None:
        self._free: list[memoryview] = []

    def take(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Return an uninitialized uint8 array of this shape."""
        size = math.prod(shape)
        fitting = next((index for index, held in enumerate(self._free) if len(held) >= size), None)
        if fitting is None:
            self._free.clear()  # drop buffers that are too small
            memory = memoryview(mmap.mmap(-1, max(size, 1)))  # bypasses malloc's per-thread arenas
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
        starts, stops: int64 (n,), needed rows [start, stop).
        chunk_rows: rows per chunk of the array.
        block_rows: maximum rows per read, rounded up to whole chunks.
    """
    step = chunk_rows * max(1, -(-block_rows // chunk_rows))
    runs: list[list[int]] = []  # spans merged if their chunks are adjacent
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
    """Yield blocks that cover every span, by ascending row, with masks of `population` (None: only top-k experts)."""
    name = ROUTES if population is None else population.array(archive)
    shape, routed = archive.array(name).shape[1:], population is None or population.routed
    positions, routes, pool = _RowWindow(archive, "token/position"), _RowWindow(archive, ROUTES), _BufferPool()

    def read(start: int, stop: int) -> Block:
        masks = None
        if population is not None:
            masks = archive.read_rows(name, start, stop, pool.take((stop - start, *shape)))
            masks = masks if routed else masks.reshape(stop - start, -1)
        return Block(start, positions.rows(start, stop), masks, routes.rows(start, stop) if routed else None)

    return _read_ahead(_plan(archive, name, spans.start, spans.stop, block_bytes), read)


def stored_counts(
    archive: Archive, spans: RowSpans, name: str, progress: Progress | None, block_bytes: int
) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """Yield k and the stored counts (layer, …) of each instruction in an archive of counts."""
    reads = _plan(archive, name, spans.instruction, spans.instruction + 1, block_bytes)
    at, total = 0, int(spans.tokens.sum())
    for start, counts in _read_ahead(reads, lambda start, stop: (start, archive.read_rows(name, start, stop))):
        while at < len(spans) and spans.instruction[at] < start + len(counts):
            yield at, counts[int(spans.instruction[at]) - start]
            at += 1
        if progress is not None:
            progress(int(spans.tokens[:at].sum()), total)


def read_column(archive: Archive, spans: RowSpans, name: str) -> NDArray[Any]:
    """Return the rows of the spans in a column of the token axis, such as `token/id`; read each chunk once.

    Returns:
        (row,), grouped by instruction, as in `RowSpans.kept`.
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
    """Yield the result of `read` for each range, in order, while a thread reads the next range."""
    ahead: deque[Future[T]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="sparcom-read") as reader:
        for place in reads:
            ahead.append(reader.submit(read, *place))
            if len(ahead) > 1:
                yield ahead.popleft().result()
        if ahead:
            yield ahead.pop().result()


def parts(archive: Archive, spans: RowSpans, blocks: Iterator[Block], progress: Progress | None) -> Iterator[Part]:
    """Yield the parts of every instruction, by ascending row; an instruction may span several blocks."""
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
            f"{first + offset}; token/position of {archive.path} holds {int(positions[offset])}. "
            "Run `sparcom verify`, then extract the archive again"
        )
