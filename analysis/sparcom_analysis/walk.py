"""Takes blocks of rows apart by instruction, and proves that each row is the one that belongs there.

Knows positions and spans; not what the rows hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from sparcom_analysis.blocks import Block
from sparcom_analysis.rows import RowSpans
from sparcom_data.archive import Archive
from sparcom_data.errors import DamagedArchiveError


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one instruction that lie in one block.

    k: index into the spans. index: into the instruction table. rows: within the block. last: whether the instruction
    ends here.
    """

    k: int
    index: int
    block: Block
    rows: slice
    last: bool

    @property
    def start(self) -> int:
        """First row on the token axis."""
        return self.block.start + int(self.rows.start)


def parts(
    archive: Archive, spans: RowSpans, blocks: Iterator[Block], progress: Callable[[int, int], None] | None
) -> Iterator[Part]:
    """The parts of every instruction, in the order of their rows; an instruction may lie in several blocks.

    Raises:
        DamagedArchiveError: a row does not hold the position that belongs there.
    """
    order = np.argsort(spans.start, kind="stable").tolist()
    done, total = 0, int(spans.tokens.sum())
    at = 0
    for block in blocks:
        while at < len(order) and spans.start[order[at]] < block.stop:
            k = order[at]
            start, stop = max(int(spans.start[k]), block.start), min(int(spans.stop[k]), block.stop)
            rows = slice(start - block.start, stop - block.start)
            part = Part(k, int(spans.instruction[k]), block, rows, bool(spans.stop[k] <= block.stop))
            _check_positions(archive, part, int(spans.position[k]) + start - int(spans.start[k]))
            done += stop - start
            yield part
            if not part.last:
                break
            at += 1
        if progress is not None:
            progress(done, total)


def _check_positions(archive: Archive, part: Part, first: int) -> None:
    found = part.block.positions[part.rows]
    wrong = np.flatnonzero(found != np.arange(first, first + len(found)))
    if len(wrong):
        offset = int(wrong[0])
        raise DamagedArchiveError(
            f"row {part.start + offset} of instruction {archive.instructions.id[part.index]!r} must hold position "
            f"{first + offset}; token/position of {archive.path} says {int(found[offset])}. "
            "Run `sparcom verify`, then extract the archive again"
        )
