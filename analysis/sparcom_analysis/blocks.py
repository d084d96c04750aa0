"""Reads the mask rows or the counts that are needed, in blocks of bounded size, one ahead of whoever computes.

    spans ─▶ plan_reads: runs of whole chunks, so that no chunk is decoded twice and none is read that holds no needed
             row (a chunk of failed instructions alone may not exist)
          ─▶ read_blocks: masks and positions of each read, the next one on a thread while this one is used
             read_count_blocks: the same of an archive of counts, whose rows are instructions

Knows nothing of what is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.rows import RowSpans
from sparcom_data.archive import Archive

T = TypeVar("T")

DEFAULT_BLOCK_BYTES = 64 << 20  # packed masks, or counts; two blocks are held at a time


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows from `start` on: masks uint8 (row, layer × neuron_byte), positions int32 (row,)."""

    start: int
    masks: NDArray[np.uint8]
    positions: NDArray[np.int32]

    @property
    def stop(self) -> int:
        """Row after the last."""
        return self.start + len(self.masks)


@dataclass(frozen=True, slots=True)
class CountBlock:
    """Consecutive instructions from `start` on: counts uint32 (instruction, layer, neuron)."""

    start: int
    counts: NDArray[np.uint32]

    @property
    def stop(self) -> int:
        """Instruction after the last."""
        return self.start + len(self.counts)


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


def read_blocks(archive: Archive, spans: RowSpans, block_bytes: int = DEFAULT_BLOCK_BYTES) -> Iterator[Block]:
    """Blocks that cover every span, ascending. While one is used, the next is read on a thread."""
    rows = max(1, block_bytes // (archive.layers * archive.neuron_bytes))

    def read(start: int, stop: int) -> Block:
        masks = archive.read_active(start, stop)
        _, positions = archive.read_tokens(start, stop)
        return Block(start, masks.reshape(stop - start, -1), positions)

    return _read_ahead(plan_reads(spans.start, spans.stop, archive.chunk_tokens, rows), read)


def read_count_blocks(
    archive: Archive, instructions: NDArray[np.int64], block_bytes: int = DEFAULT_BLOCK_BYTES
) -> Iterator[CountBlock]:
    """Blocks that cover these instructions, ascending; those between them in a chunk come along."""
    at_once = max(1, block_bytes // (archive.layers * archive.neurons * 4))
    reads = plan_reads(instructions, instructions + 1, archive.chunk_instructions, at_once)
    return _read_ahead(reads, lambda start, stop: CountBlock(start, archive.read_counts(start, stop)))


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
