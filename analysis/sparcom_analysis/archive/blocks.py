"""Reads masks, router choices or counts in blocks of bounded size; a thread reads one block ahead.

spans ─▶ plan_reads         runs of whole chunks: no chunk is decoded twice, and none without a needed row is read
                            (a chunk of failed instructions alone may not exist)
      ─▶ read_blocks        masks and positions; for routed experts also which expert each mask belongs to
         read_route_blocks  router choices and positions
         read_count_blocks  of an archive of counts, whose rows are instructions
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

DEFAULT_BLOCK_BYTES = 32 << 20  # of masks or counts, as fast as 16 and 64 MiB; up to three blocks are held at a time
ROUTES = "router/expert"
POSITIONS = "token/position"


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
    masks: NDArray[np.uint8] | None = None
    experts: NDArray[np.uint16] | None = None

    @property
    def stop(self) -> int:
        """Row after the last."""
        return self.start + len(self.positions)


class RowWindow:
    """Reads ascending rows of an array, and keeps the last chunks for the next read: none is decoded more than twice.

    For arrays whose chunks have more rows than those of masks.
    """

    def __init__(self, archive: Archive, name: str) -> None:
        self._archive, self._name = archive, name
        self._start = 0
        self._rows: NDArray[Any] = np.empty(0)

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows [start, stop)."""
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
            memory = np.empty(size, dtype=np.uint8).data
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
    archive: Archive, spans: RowSpans, population: Population, block_bytes: int = DEFAULT_BLOCK_BYTES
) -> Iterator[Block]:
    """Yield masks in blocks that cover every span, by ascending row."""
    name = population.array(archive)
    row = archive.array(name).shape[1:]
    positions = RowWindow(archive, POSITIONS)
    routes = RowWindow(archive, ROUTES) if population.routed else None
    memory = _Memory()

    def read(start: int, stop: int) -> Block:
        masks = archive.read_rows(name, start, stop, memory.take((stop - start, *row)))
        if routes is not None:
            return Block(start, positions.rows(start, stop), masks, routes.rows(start, stop))
        return Block(start, positions.rows(start, stop), masks.reshape(stop - start, -1))

    return _read_ahead(_plan(archive, name, spans.start, spans.stop, block_bytes), read)


def read_route_blocks(archive: Archive, spans: RowSpans, block_bytes: int = DEFAULT_BLOCK_BYTES) -> Iterator[Block]:
    """Yield router choices in blocks that cover every span, by ascending row."""
    positions = RowWindow(archive, POSITIONS)

    def read(start: int, stop: int) -> Block:
        experts: NDArray[np.uint16] = archive.read_rows(ROUTES, start, stop)
        return Block(start, positions.rows(start, stop), experts=experts)

    return _read_ahead(_plan(archive, ROUTES, spans.start, spans.stop, block_bytes), read)


def read_count_blocks(
    archive: Archive, instructions: NDArray[np.int64], name: str, block_bytes: int = DEFAULT_BLOCK_BYTES
) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """Yield the first instruction and uint32 (instruction, layer, …) of blocks that cover these instructions."""
    reads = _plan(archive, name, instructions, instructions + 1, block_bytes)
    return _read_ahead(reads, lambda start, stop: (start, archive.read_rows(name, start, stop)))


def _plan(
    archive: Archive, name: str, starts: NDArray[np.int64], stops: NDArray[np.int64], block_bytes: int
) -> list[tuple[int, int]]:
    array = archive.array(name)
    row_bytes = math.prod(array.shape[1:]) * array.dtype.itemsize
    return plan_reads(starts, stops, int(array.chunks[0]), max(1, block_bytes // row_bytes))


def _read_ahead(reads: list[tuple[int, int]], read: Callable[[int, int], T]) -> Iterator[T]:
    """Yield the result of `read` for each range, in order; a thread reads the next one meanwhile."""
    with ThreadPoolExecutor(1, thread_name_prefix="sparcom-read") as reader:
        ahead = [reader.submit(read, *first) for first in reads[:1]]
        for following in [*reads[1:], None]:
            if not ahead:
                return
            block = ahead.pop().result()
            if following is not None:
                ahead.append(reader.submit(read, *following))
            yield block
