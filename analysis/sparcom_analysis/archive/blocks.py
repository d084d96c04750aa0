"""Reads the mask rows or the counts that are needed, in blocks of bounded size, one ahead of whoever computes.

    spans ─▶ plan_reads: runs of whole chunks, so that no chunk is decoded twice and none is read that holds no needed
             row (a chunk of failed instructions alone may not exist)
          ─▶ read_blocks: masks and positions of each read, the next one on a thread while this one is used; of routed
             experts also which expert each mask belongs to
             read_route_blocks: the routers' choices and positions alone
             read_count_blocks: counts of an archive of counts, whose rows are instructions

Knows nothing of what is counted.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.archive.populations import Population
from sparcom_analysis.archive.rows import RowSpans
from sparcom_data.archive import Archive

T = TypeVar("T")

DEFAULT_BLOCK_BYTES = 32 << 20  # packed masks, or counts; as fast as 64 and 16; up to three blocks are held at a time
ROUTES = "router/expert"
POSITIONS = "token/position"


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows from `start` on: positions int32 (row,).

    masks: uint8 (row, layer × neuron_byte), or (row, layer, choice, neuron_byte) of routed experts; None where only the
    routers' choices were read. experts: uint16 (row, layer, choice); None where nothing is routed.
    """

    start: int
    positions: NDArray[np.int32]
    masks: NDArray[np.uint8] | None = None
    experts: NDArray[np.uint16] | None = None

    @property
    def stop(self) -> int:
        """Row after the last."""
        return self.start + len(self.positions)


@dataclass(frozen=True, slots=True)
class CountBlock:
    """Consecutive instructions from `start` on: counts uint32 (instruction, layer, …)."""

    start: int
    counts: NDArray[np.uint32]

    @property
    def stop(self) -> int:
        """Instruction after the last."""
        return self.start + len(self.counts)


class _Held:
    """An array whose chunks have more rows than those of masks: chunks that reach past one read are kept for the next,
    so that reads in ascending order decode no chunk more than twice."""

    def __init__(self, archive: Archive, name: str) -> None:
        self._archive, self._name = archive, name
        self._start = 0
        self._rows: NDArray[Any] = np.empty(0)

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop) of the array."""
        if start < self._start or stop > self._start + len(self._rows):
            array = self._archive.array(self._name)
            step = array.chunks[0]
            self._start = start // step * step
            self._rows = self._archive.read_rows(self._name, self._start, min(-(-stop // step) * step, array.shape[0]))
        return self._rows[start - self._start : stop - self._start]


class _Memory:
    """Memory of masks that nobody holds any more is used again: new memory costs a fault a page, a fifth of reading.

    Views of an array keep it alive, and its memory comes back when it dies, so what somebody holds is never written to.
    """

    def __init__(self) -> None:
        self._free: list[memoryview] = []

    def take(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """uint8 memory of that shape, with anything in it."""
        size = math.prod(shape)
        fitting = next((place for place, held in enumerate(self._free) if len(held) >= size), None)
        if fitting is None:
            self._free.clear()  # reads that grow would otherwise leave one behind each
            memory = np.empty(size, dtype=np.uint8).data
        else:
            memory = self._free.pop(fitting)
        flat = np.frombuffer(memory[:size], dtype=np.uint8)
        weakref.finalize(flat, self._free.append, memory).atexit = False
        return flat.reshape(shape)


def plan_reads(
    starts: NDArray[np.int64], stops: NDArray[np.int64], chunk_rows: int, block_rows: int
) -> list[tuple[int, int]]:
    """Row ranges that cover every span, ascending, cut on chunk borders.

    Args:
        starts, stops: int64 (n,), rows [start, stop) that are needed.
        chunk_rows: rows of one chunk of the array.
        block_rows: the most rows of one read, rounded up to whole chunks.
    """
    step = chunk_rows * max(1, -(-block_rows // chunk_rows))
    reads: list[tuple[int, int]] = []
    for first, last in _runs(starts, stops, chunk_rows):
        inner = range(first // chunk_rows * chunk_rows + step, last, step)
        borders = [first, *inner, last]
        reads.extend(pairwise(borders))
    return reads


def _runs(starts: NDArray[np.int64], stops: NDArray[np.int64], chunk_rows: int) -> list[list[int]]:
    """Spans joined where the chunks they lie in touch: [first row, last row + 1]."""
    runs: list[list[int]] = []
    order = np.argsort(starts, kind="stable")
    for start, stop in zip(starts[order].tolist(), stops[order].tolist(), strict=True):
        if runs and start // chunk_rows <= (runs[-1][1] - 1) // chunk_rows + 1:
            runs[-1][1] = stop
        else:
            runs.append([start, stop])
    return runs


def read_blocks(
    archive: Archive, spans: RowSpans, population: Population, block_bytes: int = DEFAULT_BLOCK_BYTES
) -> Iterator[Block]:
    """Masks in blocks that cover every span, ascending. While one is used, the next is read on a thread."""
    name, row = population.array("token")
    positions = _Held(archive, POSITIONS)
    routes = _Held(archive, ROUTES) if population.routed else None
    memory = _Memory()
    of_row = archive.array(name).shape[1:]

    def read(start: int, stop: int) -> Block:
        masks = archive.read_rows(name, start, stop, memory.take((stop - start, *of_row)))
        if routes is not None:
            return Block(start, positions.rows(start, stop), masks, routes.rows(start, stop))
        return Block(start, positions.rows(start, stop), masks.reshape(stop - start, -1))

    return _read_ahead(_plan(archive, spans, name, math.prod(row), block_bytes), read)


def read_route_blocks(archive: Archive, spans: RowSpans, block_bytes: int = DEFAULT_BLOCK_BYTES) -> Iterator[Block]:
    """The routers' choices alone, as `read_blocks`."""

    positions = _Held(archive, POSITIONS)

    def read(start: int, stop: int) -> Block:
        experts: NDArray[np.uint16] = archive.read_rows(ROUTES, start, stop)
        return Block(start, positions.rows(start, stop), experts=experts)

    row_bytes = 2 * math.prod(archive.array(ROUTES).shape[1:])
    return _read_ahead(_plan(archive, spans, ROUTES, row_bytes, block_bytes), read)


def _plan(archive: Archive, spans: RowSpans, name: str, row_bytes: int, block_bytes: int) -> list[tuple[int, int]]:
    rows = max(1, block_bytes // row_bytes)
    return plan_reads(spans.start, spans.stop, int(archive.array(name).chunks[0]), rows)


def read_count_blocks(
    archive: Archive, instructions: NDArray[np.int64], name: str, block_bytes: int = DEFAULT_BLOCK_BYTES
) -> Iterator[CountBlock]:
    """Blocks of an array of counts that cover these instructions, ascending; those between them in a chunk come
    along."""
    array = archive.array(name)
    at_once = max(1, block_bytes // (math.prod(array.shape[1:]) * 4))
    reads = plan_reads(instructions, instructions + 1, int(array.chunks[0]), at_once)
    return _read_ahead(reads, lambda start, stop: CountBlock(start, archive.read_rows(name, start, stop)))


def _read_ahead(reads: list[tuple[int, int]], read: Callable[[int, int], T]) -> Iterator[T]:
    """What `read` gives for each range, in order; the next is read on a thread while one is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="sparcom-read") as reader:
        ahead = [reader.submit(read, *first) for first in reads[:1]]
        for following in [*reads[1:], None]:
            if not ahead:
                return
            block = ahead.pop().result()
            if following is not None:
                ahead.append(reader.submit(read, *following))
            yield block
