"""The report: one row per goal, from whatever was recorded."""

from __future__ import annotations

from typing import Any

from verdict.report import Row, describe, make_rows, make_table
from verdict.steps import Record, Step

SPEED = Step("speed", "capture / plain vLLM", 100, 0, print)
TESTS = Step("dense", "rows equal the CPU reference", 100, 0, print)
END = {"step": "speed", "kind": "end", "status": "done", "seconds": 200.0}


def pair(number: int, verdict: str, low: float | None, way: str = "written") -> Record:
    facts = {"load": "prefill", "way": way, "pair": number, "ratio": 0.991, "low": low, "high": low and low + 0.01}
    return {"step": "speed", "kind": "pair", "verdict": verdict, **facts}


def outcome(outcome: str, reason: str = "") -> Record:
    return {"step": "dense", "kind": "test", "name": "a", "outcome": outcome, "seconds": 3.0, "reason": reason}


def dense(*records: Record, planned: int = 2, status: str = "done") -> Row:
    """Return the row of a step of tests."""
    ends = [{"step": "dense", "kind": "end", "status": status, "seconds": 9.0}]
    (row,) = make_rows([TESTS], [{"step": "dense", "kind": "tests", "count": planned}, *records, *ends])
    return row


def test_the_last_pair_has_the_verdict() -> None:
    """A row shows ratio, pairs and interval of the last pair; other steps do not change it."""
    rows = make_rows([SPEED], [pair(1, "undecided", None), pair(2, "holds", 0.986), END, outcome("failed")])
    assert rows == [Row("capture / plain vLLM, prefill, written", "0.991 (2 pairs)", "0.986 to 0.996", "holds")]


def test_a_cut_measurement_keeps_its_row() -> None:
    """If the step was killed after some pairs, the row is the same, with a note."""
    (row,) = make_rows([SPEED], [pair(2, "holds", 0.986), END | {"status": "out of time"}])
    assert (row.verdict, row.note) == ("holds", "out of time")


def test_memory_is_named_with_the_reason() -> None:
    """Figures of archives in memory are labelled, and the reason is that of the disk."""
    place = {"step": "speed", "kind": "place", "load": "prefill", "refusals": ["/disk is slow"], "place": {"way": "x"}}
    (row,) = make_rows([SPEED], [place, pair(4, "holds", 0.986, way="in memory"), END])
    assert row.goal.endswith("prefill, in memory")
    assert row.note == "/disk is slow"


def test_a_load_without_a_place_is_undecided() -> None:
    """A load whose archives fit nowhere is not measured, and the reasons are given."""
    place = {"step": "speed", "kind": "place", "load": "prefill", "refusals": ["slow", "full"], "place": None}
    (row,) = make_rows([SPEED], [place, END])
    assert (row.measured, row.verdict, row.note) == ("not measured", "undecided", "slow; full")


def test_a_step_that_measured_nothing_has_a_row() -> None:
    """A step that crashed, was not started, or still runs is not a success."""
    for end in ([END | {"status": "crashed", "reason": "signal 9"}], [END | {"status": "not run"}], []):
        (row,) = make_rows([SPEED], end)
        assert row.verdict == "not run"
        assert row.note


def test_tests_hold_only_if_all_passed() -> None:
    """One failure decides; a skip, a missing test or a cut leaves the goal undecided or not run."""
    assert dense(outcome("passed"), outcome("passed")).verdict == "holds"
    failed = dense(outcome("passed"), outcome("failed", "E  line\nwrong bits"), status="out of time")
    assert (failed.verdict, failed.measured) == ("fails", "1 of 2 tests passed")
    assert failed.note.startswith("a: wrong bits")
    assert dense(outcome("passed"), status="out of time").verdict == "undecided"
    skipped = dense(outcome("skipped", "needs a CUDA device"), planned=1)
    assert (skipped.verdict, skipped.note) == ("not run", "needs a CUDA device")


def test_the_table_has_every_row_and_its_notes() -> None:
    """The table is Markdown; notes follow it."""
    rows = [Row("a", "0.99 (8 pairs)", "0.98 to 1.00", "holds"), Row("b", "", "", "not run", "no time")]
    lines = make_table(rows).splitlines()
    assert lines[2:] == ["| a | 0.99 (8 pairs) | 0.98 to 1.00 | holds |", "| b | - | - | not run |", "", "- b: no time"]


def test_each_pair_is_told_as_it_comes() -> None:
    """The line of a pair has both speeds, its ratio, and the interval so far."""
    facts: dict[str, Any] = {"tokens": 1000, "plain_seconds": 1.0, "seconds": 1.25, "pair_ratio": 0.8}
    line = describe(pair(3, "undecided", 0.97) | facts)
    assert line is not None
    for part in ("pair  3", "1,000 tokens/s", "800", "0.800", "0.991 (0.970 to 0.980) undecided"):
        assert part in line
