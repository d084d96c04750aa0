"""How a self-test looks: a table on the terminal, and JSON that is rewritten after every change.

The same rows in both. It judges nothing: whether a check holds the check says itself.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sparcom_verification.selftest.budget import Budget
from sparcom_verification.selftest.results import Check, Fact, Measure, Row, StepResult

FORMAT = 1
SHOWN_LOG_LINES = 12  # of a step that did not end well, on the terminal; the JSON has more


class ReportFile:
    """The JSON file of one self-test. `write` replaces it whole, so that a reader never sees half of it."""

    def __init__(self, path: Path, settings: dict[str, Any], budget: Budget) -> None:
        self._path = path
        self._settings = settings
        self._budget = budget
        self._created = datetime.now(UTC).isoformat(timespec="seconds")
        self._lock = threading.Lock()

    def write(self, results: Sequence[StepResult], *, finished: bool = False) -> None:
        """Write what is known now. `verdict` is "running" until the last step has ended."""
        report = {
            "sparcom_selftest": FORMAT,
            "created": self._created,
            "seconds": round(self._budget.spent, 1),
            "settings": self._settings,
            "verdict": verdict(results) if finished else "running",
            "facts": _facts(results),
            "steps": [result.to_json() for result in results],
        }
        with self._lock:
            partial = self._path.with_name(f"{self._path.name}.partial")
            partial.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
            partial.replace(self._path)


def verdict(results: Sequence[StepResult]) -> str:
    """One sentence: did a check fail, and what was left out."""
    failed = [result.name for result in results if result.failed]
    checks = [row for result in results for row in result.rows if isinstance(row, Check)]
    left = [result for result in results if result.status in ("not run", "cut short")]
    said = f"FAILED: {'; '.join(failed)}" if failed else f"passed: {len(checks)} checks hold"
    return said + (f"; {len(left)} steps not run or cut short" if left else "")


def _facts(results: Sequence[StepResult]) -> dict[str, str]:
    """What the step `machine` found out, where it has run."""
    rows = [row for result in results if result.name == "machine" for row in result.rows]
    return {row.name: row.value for row in rows if isinstance(row, Fact)}


def render(results: Sequence[StepResult]) -> str:
    """The table: a line a row, grouped by step, and the verdict last."""
    return "\n".join([*(line for result in results for line in _step_lines(result)), "", verdict(results)])


def _step_lines(result: StepResult) -> Iterator[str]:
    state = "FAILED" if result.failed else result.status
    took = f", {result.seconds:.1f} s" if result.seconds else ""
    yield f"{result.name} ({state}{took}){f': {result.reason}' if result.reason else ''}"
    yield from (f"  {_row_line(row)}" for row in result.rows)
    if result.status in ("failed", "cut short"):
        yield from (f"  | {line}" for line in result.log[-SHOWN_LOG_LINES:])


def _row_line(row: Row) -> str:
    if isinstance(row, Fact):
        return f"       {row.name}: {row.value}"
    note = f"  [{row.note}]" if row.note else ""
    if isinstance(row, Check):
        allowed = f", {row.allowed:.0e} of them may" if row.allowed else ""
        return (
            f"{'ok    ' if row.passed else 'FAILED'} {row.name}: {row.compared}: {row.differing:,} of {row.total:,} "
            f"{row.unit} {row.verb}{allowed}{note}"
        )
    return f"       {row.name}: {_measured(row)}{note}"


def _measured(row: Measure) -> str:
    spread = f" ({_number(row.low)} to {_number(row.high)}, {row.rounds} rounds)" if row.low is not None else ""
    goal = "" if row.goal is None else f", goal {row.goal:g} {'reached' if row.value >= row.goal else 'missed'}"
    return f"{_number(row.value)}{f' {row.unit}' if row.unit else ''}{spread}{goal}"


def _number(value: float | None) -> str:
    """Four significant digits, whole where there are more."""
    if value is None:
        return "?"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
