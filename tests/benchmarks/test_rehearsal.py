"""`benchmarks/gpu.py` as a program: rehearsed with tiny models on the CPU, and on a machine without a device."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from verdict.steps import RESULTS, read_record

ROOT = Path(__file__).parents[2]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program without PYTHONPATH, as in a plain checkout, and without CUDA."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--output", folder / "results", "--cache", folder]
    return subprocess.run(
        [*command, *arguments], env=environment | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True
    )


@pytest.mark.torch
def test_a_machine_without_a_device_gets_one_sentence(tmp_path: Path) -> None:
    """Without a device the exit status is 2, and the only error is one line that names the reason and the remedy."""
    done = run(tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert re.match(r"error: a CUDA device and vLLM for CUDA are needed; torch \S+ sees 0 devices", line)
    assert line.endswith("Run this on a GPU machine, or add --rehearse")


def test_results_of_another_run_are_kept(tmp_path: Path) -> None:
    """A folder with results is refused."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / RESULTS).write_text("")
    done = run(tmp_path, "--rehearse")
    assert done.returncode == 1
    assert "holds results of another run; choose another --output" in done.stderr


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_rehearsal_measures_and_checks(tmp_path: Path) -> None:
    """Both loads are measured in pairs with interval and verdict, and tests of `tests/gpu` run, all in one report."""
    steps = ("speed", "many", "preemption", "fp8")
    archives = tmp_path / "archives"
    archives.mkdir()
    done = run(tmp_path, "--rehearse", "--minutes", "14", "--archives", str(archives), "--only", *steps)
    assert list(archives.iterdir()) == []
    log = "".join(path.read_text() for path in (tmp_path / "results").glob("*.log"))
    assert done.returncode == 1, f"FP8 needs a device: {done.stdout}{done.stderr}{log}"
    records = [read_record(line) for line in (tmp_path / "results" / RESULTS).read_bytes().splitlines()]
    ends = {record["step"]: record["status"] for record in records if record["kind"] == "end"}
    assert ends == dict.fromkeys(["machine", *steps], "done"), log
    pairs = [(record["load"], record["way"], record["pair"]) for record in records if record["kind"] == "pair"]
    ways = sorted({way for _, way, _ in pairs} - {"written", "in memory"})
    assert (len(pairs), len(set(pairs)), ways) == (18, 18, ["counted", "unread"])
    report = (tmp_path / "results" / "report.md").read_text()
    assert done.stdout.count("| goal |") == 1
    assert report in done.stdout
    rows = [re.split(r" \| ", line.strip("| ")) for line in report.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 6 + 3
    assert all(re.fullmatch(r"\d+\.\d{3} \(3 pairs\)", row[1]) for row in rows[:6])
    assert all(re.fullmatch(r"\d+\.\d{3} to \d+\.\d{3}", row[2]) for row in rows[:6])
    assert [row[3] for row in rows[6:]] == ["not run", "holds", "holds"]
    assert "FP8: tokens as without capture, rows near the CPU reference: Skipped: needs a CUDA device" in report
