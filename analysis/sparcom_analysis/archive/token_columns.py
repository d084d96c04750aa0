"""Reads a column of the token axis for the rows of spans, by whole chunks, each once; reads no mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.archive.blocks import plan_reads
from sparcom_analysis.archive.rows import RowSpans
from sparcom_data.archive import Archive

READ_ROWS = 1 << 20  # rows read at once, 4 MiB of token ids

Judge = Callable[[int, int, NDArray[Any]], NDArray[np.uint8]]
"""Takes an instruction's index, the first row and its values; returns one byte or bool per row."""


def judge_rows(archive: Archive, spans: RowSpans, name: str, judge: Judge) -> NDArray[np.uint8]:
    """What `judge` makes of each row: uint8 (row,), the rows of one instruction after the other, as in `RowSpans.kept`.

    Args:
        name: of the array, such as `token/id`.
        judge: called with pieces of instructions in ascending order of rows.
    """
    found = np.zeros(int(spans.lengths.sum()), dtype=np.uint8)
    order = np.argsort(spans.start, kind="stable")
    starts, stops, first = spans.start[order], spans.stop[order], spans.first
    for begin, end in plan_reads(spans.start, spans.stop, int(archive.array(name).chunks[0]), READ_ROWS):
        values = archive.read_rows(name, begin, end)
        touched = slice(int(np.searchsorted(stops, begin, side="right")), int(np.searchsorted(starts, end)))
        for k in order[touched].tolist():
            start, stop = max(int(spans.start[k]), begin), min(int(spans.stop[k]), end)
            at = int(first[k] - spans.start[k])
            own = values[start - begin : stop - begin]
            found[at + start : at + stop] = judge(int(spans.instruction[k]), start, own)
    return found
