"""docs/benchmarks.md has a row for every goal of `benchmarks/gpu.py`, and the benchmarks of `make bench` load."""

from __future__ import annotations

import subprocess
import sys
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


def test_every_part_of_make_bench_loads() -> None:
    """The help of `benchmarks/run.py` imports all parts."""
    command = [sys.executable, str(PAGE.parents[1] / "benchmarks" / "run.py"), "--help"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "throughput" in found.stdout
