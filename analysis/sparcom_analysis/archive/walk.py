"""Splits blocks by instruction, and checks that each row holds the position that belongs there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.archive.blocks import Block, read_count_blocks
from sparcom_analysis.archive.rows import RowSpans
from sparcom_data.archive import Archive
from sparcom_data.errors import DamagedArchiveError

Progress = Callable[[int, int], None]
"""Called with rows done and rows in all."""


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
    kept: NDArray[np.bool_] | None = None

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


def parts(archive: Archive, spans: RowSpans, blocks: Iterator[Block], progress: Progress | None) -> Iterator[Part]:
    """Yield the parts of every instruction, by ascending row; an instruction may lie in several blocks.

    Raises:
        DamagedArchiveError: a row does not hold the position that belongs there.
    """
    order = np.argsort(spans.start, kind="stable").tolist()
    done, total = 0, int(spans.lengths.sum())
    first_kept = spans.first
    at = 0
    for block in blocks:
        while at < len(order) and spans.start[order[at]] < block.stop:
            k = order[at]
            start, stop = max(int(spans.start[k]), block.start), min(int(spans.stop[k]), block.stop)
            rows = slice(start - block.start, stop - block.start)
            offset = int(first_kept[k] - spans.start[k])
            kept = None if spans.kept is None else spans.kept[offset + start : offset + stop]
            part = Part(k, int(spans.instruction[k]), block, rows, bool(spans.stop[k] <= block.stop), kept)
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


def stored_counts(
    archive: Archive, spans: RowSpans, name: str, progress: Progress | None, block_bytes: int
) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """Yield k and the counts (layer, …) of each instruction, as an archive of counts holds them."""
    at, total = 0, int(spans.tokens.sum())
    for start, counts in read_count_blocks(archive, spans.instruction, name, block_bytes):
        while at < len(spans) and spans.instruction[at] < start + len(counts):
            yield at, counts[int(spans.instruction[at]) - start]
            at += 1
        if progress is not None:
            progress(int(spans.tokens[:at].sum()), total)
