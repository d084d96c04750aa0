"""Read planning and blocks: rows are read once, in order."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sparcom_analysis.archive.blocks import _BufferPool, plan_reads, read_blocks
from sparcom_analysis.archive.populations import choose_population
from sparcom_analysis.archive.rows import RowSpans, row_spans


def spans_of(pieces: list[tuple[int, int]]) -> RowSpans:
    """Spans from (gap before, length)."""
    starts, stops, at = [], [], 0
    for gap, length in pieces:
        starts.append(at + gap)
        at += gap + length
        stops.append(at)
    start = np.array(starts, dtype=np.int64)
    return RowSpans("prompt", np.arange(len(pieces)), start, np.array(stops, dtype=np.int64), np.zeros_like(start))


@given(
    pieces=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), max_size=12),
    chunk=st.integers(1, 16),
    block=st.integers(1, 60),
)
def test_reads_cover_needed_chunks_once_and_no_other(pieces: list[tuple[int, int]], chunk: int, block: int) -> None:
    """Each needed row is in exactly one read, each chunk is decoded at most once, and only chunks with a needed row."""
    spans = spans_of(pieces)
    reads = plan_reads(spans.start, spans.stop, chunk, block)
    needed = {row for start, stop in zip(spans.start, spans.stop, strict=True) for row in range(start, stop)}
    rows = [row for start, stop in reads for row in range(start, stop)]
    chunks = [number for start, stop in reads for number in range(start // chunk, (stop - 1) // chunk + 1)]
    assert needed <= set(rows)
    assert len(rows) == len(set(rows))
    assert rows == sorted(rows)
    assert len(chunks) == len(set(chunks))
    assert set(chunks) == {row // chunk for row in needed}
    assert all(stop - start <= chunk * -(-block // chunk) for start, stop in reads)


def test_blocks_hold_the_archive_rows(typical) -> None:  # type: ignore[no-untyped-def]
    """Blocks read ahead on a thread arrive in order and unchanged."""
    spans, population = row_spans(typical.archive, "prompt"), choose_population(typical.archive)
    for block_bytes in (1, 100, 10_000):
        blocks = list(read_blocks(typical.archive, spans, population, block_bytes))
        assert all(a.start + len(a.positions) <= b.start for a, b in itertools.pairwise(blocks))
        for block in blocks:
            expected = typical.archive.read_active(block.start, block.start + len(block.positions))
            assert (block.masks == expected.reshape(len(block.masks), -1)).all()


@settings(deadline=None, max_examples=40)
@given(steps=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3), st.booleans()), max_size=30))
def test_memory_in_use_is_not_reused(steps: list[tuple[int, int, bool]]) -> None:
    """No two live arrays, or views of them, share memory, whichever others are freed."""
    memory, held = _BufferPool(), []
    for rows, dropped, as_view in steps:
        array = memory.take((rows, 2, 5))
        assert (array.shape, array.dtype) == ((rows, 2, 5), np.uint8)
        array[:] = 0  # equal contents do not make memory the same
        held.append(array.reshape(rows, -1)[rows - 1 :, 3:] if as_view else array)
        del array
        del held[:dropped]
        for one, other in itertools.combinations(held, 2):
            assert not np.shares_memory(one, other)


def test_freed_memory_is_reused() -> None:
    """Freed buffers are reused, also for fewer rows; buffers that are too small are dropped."""
    memory = _BufferPool()
    address = memory.take((8, 5)).ctypes.data
    assert memory.take((3, 5)).ctypes.data == address
    first, second = memory.take((8, 5)), memory.take((8, 5))
    assert first.ctypes.data == address
    assert second.ctypes.data != address
    del first, second
    larger = memory.take((9, 5))
    assert not memory._free
    del larger
    assert [len(held) for held in memory._free] == [45]


def test_no_span_reads_nothing(typical) -> None:  # type: ignore[no-untyped-def]
    """An empty plan ends at once."""
    assert list(read_blocks(typical.archive, spans_of([]), choose_population(typical.archive))) == []
