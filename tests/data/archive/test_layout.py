"""Rule 1: the rows of instructions follow from the lengths alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparcom_data.schema.layout import MAX_CHUNK_TOKENS, TARGET_CHUNK_BYTES, choose_chunk_tokens, plan_layout
from sparcom_data.schema.metadata import Positions

LENGTHS = st.lists(st.integers(0, 5000), max_size=60)
POSITIONS: st.SearchStrategy[Positions] = st.sampled_from(["prompt", "response", "all"])


def expected_rows(length: int, positions: Positions, reserved: int) -> range:
    """Positions of one instruction's rows, from the definition: prompt positions, then response positions."""
    first = length if positions == "response" else 0
    return range(first, length if positions == "prompt" else length + reserved)


@given(LENGTHS, POSITIONS, st.integers(1, 300), st.data())
def test_rows_are_contiguous_and_disjoint(
    lengths: list[int], positions: Positions, most: int, data: st.DataObject
) -> None:
    """Instructions are contiguous, each with the rows it may need; none has rows without reason."""
    runnable = data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    layout = plan_layout(lengths, positions, most, runnable)
    next_row = 0
    for k, length in enumerate(lengths):
        rows = expected_rows(length, positions, most)
        assert layout.token_start[k] == next_row
        assert layout.capacity[k] == (len(rows) if runnable[k] else 0)
        assert layout.first_position[k] == rows.start
        assert layout.prompt_length[k] == length
        next_row += int(layout.capacity[k])
    assert layout.tokens == next_row
    assert (layout.token_start.dtype, layout.prompt_length.dtype) == (np.dtype(np.int64), np.dtype(np.int32))


@given(LENGTHS, LENGTHS, POSITIONS)
def test_rows_depend_on_nothing_that_comes_later(first: list[int], more: list[int], positions: Positions) -> None:
    """The rows of a batch do not depend on later instructions: the start is the sum of earlier lengths."""
    alone, together = plan_layout(first, positions, 9), plan_layout(first + more, positions, 9)
    np.testing.assert_array_equal(together.token_start[: len(first)], alone.token_start)
    if more:
        assert together.token_start[len(first)] == alone.tokens


def test_the_token_axis_may_be_longer_than_int32() -> None:
    """Sums use 64 bits: 3,000 prompts of a million tokens end past 2³¹."""
    layout = plan_layout([1_000_000] * 3000, "prompt", 0)
    assert layout.tokens == 3_000_000_000
    assert layout.token_start[-1] == 2_999_000_000


@given(st.integers(1, 2**26), st.integers(0, 2**40))
def test_chunks_keep_their_bounds(row_bytes: int, tokens: int) -> None:
    """A chunk has at least one row and at most the axis, and exceeds the target only if one row does."""
    rows = choose_chunk_tokens(row_bytes, tokens)
    assert 1 <= rows <= max(1, min(tokens, MAX_CHUNK_TOKENS))
    assert rows == 1 or rows * row_bytes <= TARGET_CHUNK_BYTES
    if rows < tokens:
        assert rows.bit_count() == 1
        assert rows == MAX_CHUNK_TOKENS or 2 * rows * row_bytes > TARGET_CHUNK_BYTES


@pytest.mark.parametrize(("layers", "neurons"), [(30, 1536), (32, 11008), (80, 28672)])
def test_chunks_of_known_models(layers: int, neurons: int) -> None:
    """SmolLM2-135M, LLaMA-2-7B and LLaMA-2-70B get chunks of many rows, above half the target."""
    row_bytes = layers * neurons // 8
    rows = choose_chunk_tokens(row_bytes, 10**7)
    assert TARGET_CHUNK_BYTES / 2 < rows * row_bytes <= TARGET_CHUNK_BYTES
    assert rows >= 4
