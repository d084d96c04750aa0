"""Rows per instruction, and the rows that count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparcom_analysis.archive.counted_rows import instruction_index, instruction_rows
from sparcom_analysis.archive.rows import RowSpans, TokenFacts, row_spans
from sparcom_analysis.options import Options
from sparcom_data.errors import InvalidInputError


@pytest.mark.parametrize("granularity", ["token", "count"])
def test_spans_are_the_rows_of_complete_instructions(make_case, granularity: str) -> None:  # type: ignore[no-untyped-def]
    """Prompt, response and all positions are consecutive rows; failed and unfinished instructions have none."""
    case = make_case(
        (5, 3, 4, 6), "aabb", positions="all", responses=(4, 0, 2, 1), failed=(2,), granularity=granularity
    )
    start = case.archive.instructions.token_start[[0, 1, 3]]
    whole = row_spans(case.archive, "all")
    assert whole.instruction.tolist() == [0, 1, 3]
    assert (whole.start == start).all()
    assert whole.tokens.tolist() == whole.lengths.tolist() == [9, 3, 7]
    if granularity == "count":
        return
    prompt, response = row_spans(case.archive), row_spans(case.archive, "response")
    assert (prompt.positions, prompt.tokens.tolist()) == ("prompt", [5, 3, 6])
    assert (response.instruction.tolist(), response.without_rows) == ([0, 3], 1)
    assert response.position.tolist() == [5, 6]
    assert (response.start == start[[0, 2]] + [5, 6]).all()


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=9), data=st.data())
def test_rows_that_do_not_count_are_left_out_once(lengths: list[int], data: st.DataObject) -> None:
    """T is the number of rows that both options keep; instructions without any are counted in `without_rows`."""
    total = sum(lengths)
    stop = np.cumsum(np.array(lengths, dtype=np.int64))
    start = stop - lengths
    spans = RowSpans("prompt", np.arange(len(lengths)), start, stop, np.zeros_like(start))
    owner = np.repeat(np.arange(len(lengths)), lengths)
    first = np.array(data.draw(st.lists(st.booleans(), min_size=total, max_size=total)))
    once = spans.counting(first, TokenFacts(special_rows=int((~first).sum())))
    left = np.bincount(owner[first], minlength=len(lengths))
    assert once.tokens.tolist() == left[left > 0].tolist()
    assert once.instruction.tolist() == np.flatnonzero(left).tolist()
    assert once.without_rows == (left == 0).sum()
    rows = int(once.lengths.sum())
    second = np.array(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)), dtype=np.bool_)
    both = once.counting(second, once.token_facts)
    assert both.tokens.sum() == (once.kept & second).sum()
    assert len(both) + both.without_rows == len(lengths)


def test_one_instruction_is_named_by_id_or_index(typical) -> None:  # type: ignore[no-untyped-def]
    """Ids and indices are looked up in the archive's table; negative indices and non-integers are refused."""
    assert instruction_index(typical.archive, "i5") == instruction_index(typical.archive, 5) == 5
    spans = instruction_rows(typical.archive, "i5", Options())
    assert (spans.instruction.tolist(), spans.tokens.tolist()) == ([5], [4])
    with pytest.raises(InvalidInputError, match="0 to 8; it is -1"):
        instruction_index(typical.archive, -1)
    with pytest.raises(TypeError):
        instruction_index(typical.archive, 1.5)  # type: ignore[arg-type]
