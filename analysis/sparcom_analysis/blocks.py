"""Reads the mask rows that are needed, in blocks of bounded size, one block ahead of whoever computes.

    spans ─▶ plan_reads: runs of whole chunks, so that no chunk is decoded twice and none is read that holds no needed
             row (a chunk of failed instructions alone may not exist)
          ─▶ read_blocks: masks and positions of each read, the next one on a thread while this one is used

Knows nothing of what is counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.rows import RowSpans
from sparcom_data.archive import Archive

DEFAULT_BLOCK_BYTES = 64 << 20  # packed masks; two blocks are held at a time


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


def plan_reads(spans: RowSpans, chunk_rows: int, block_rows: int) -> list[tuple[int, int]]:
    """Row ranges that cover every span, ascending, cut on chunk borders.

    Args:
        spans: rows that are needed.
        chunk_rows: rows of one chunk of the mask array.
        block_rows: the most rows of one read, rounded up to whole chunks.
    """
    step = chunk_rows * max(1, -(-block_rows // chunk_rows))
    reads: list[tuple[int, int]] = []
    for first, last in _runs(spans, chunk_rows):
        inner = range(first // chunk_rows * chunk_rows + step, last, step)
        borders = [first, *inner, last]
        reads.extend(pairwise(borders))
    return reads


def _runs(spans: RowSpans, chunk_rows: int) -> list[list[int]]:
    """Spans joined where the chunks they lie in touch: [first row, last row + 1]."""
    runs: list[list[int]] = []
    order = np.argsort(spans.start, kind="stable")
    for start, stop in zip(spans.start[order].tolist(), spans.stop[order].tolist(), strict=True):
        if runs and start // chunk_rows <= (runs[-1][1] - 1) // chunk_rows + 1:
            runs[-1][1] = stop
        else:
            runs.append([start, stop])
    return runs


def _read(archive: Archive, start: int, stop: int) -> Block:
    masks = archive.read_active(start, stop)
    _, positions = archive.read_tokens(start, stop)
    return Block(start, masks.reshape(stop - start, -1), positions)


def read_blocks(archive: Archive, spans: RowSpans, block_bytes: int = DEFAULT_BLOCK_BYTES) -> Iterator[Block]:
    """Blocks that cover every span, ascending. While one is used, the next is read on a thread."""
    row_bytes = archive.layers * archive.neuron_bytes
    reads = plan_reads(spans, archive.chunk_tokens, max(1, block_bytes // row_bytes))
    with ThreadPoolExecutor(1, thread_name_prefix="sparcom-read") as reader:
        ahead = [reader.submit(_read, archive, *read) for read in reads[:1]]
        for following in [*reads[1:], None]:
            if not ahead:
                return
            block = ahead.pop().result()
            if following is not None:
                ahead.append(reader.submit(_read, archive, *following))
            yield block
