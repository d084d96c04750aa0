"""docs/benchmarks.md has a row for every goal of `benchmarks/gpu.py`."""

from __future__ import annotations

from pathlib import Path

import gpu

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


def test_every_goal_has_its_row_in_order() -> None:
    """The table in the section GPU has the goals of the eight-minute plan, in its order."""
    table = PAGE.read_text(encoding="utf-8").partition("## GPU\n")[2].partition("| --- |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines()[1:]]
    goals = [step.goal for step in gpu.make_plan(gpu.MINUTES) if step.goal]
    assert goals[0] in rows[0]
    assert goals[0] in rows[1]
    assert rows[2:] == goals[1:]
