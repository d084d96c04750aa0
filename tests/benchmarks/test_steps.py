"""The runner of steps, with real processes that crash, hang, or outlive their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from verdict.steps import RESULTS, ChildProcess, Record, Runner, Step, append_record, read_record

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "benchmarks")}
PROGRAM = """
import os, subprocess, sys, time
from functools import partial
from pathlib import Path
from verdict.steps import ChildProcess, Context, Runner, Step, run_child

def good(context):
    context.record("found", value=1)

def crash(context):
    context.record("found", value=2)
    os.abort()

def hang(context):
    context.record("found", value=3)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    context.record("pid", own=os.getpid(), child=child.pid)
    time.sleep(600)

def pause(context):
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    context.record("pid", own=os.getpid())
    while not Path(folder, "go").exists():
        time.sleep(0.05)
    context.record("found", value=4)

def refuse(context):
    sys.exit(2)

NAMES = ("good", "crash", "hang", "pause", "refuse")
STEPS = {name: Step(name, name, 500, 0, globals()[name], alone=True) for name in NAMES}
folder = Path(sys.argv[1])
if sys.argv[2] == "--child":
    run_child(STEPS[sys.argv[3]], Context(sys.argv[3], folder, 500, None))
else:
    def launch(step, seconds):
        command = [sys.executable, __file__, str(folder), "--child", step.name]
        return ChildProcess(command, folder / f"{step.name}.log", dict(os.environ))
    import signal
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    Runner([STEPS[name] for name in sys.argv[3:]], folder, float(sys.argv[2]), launch).run()
"""


def start(folder: Path, *names: str) -> subprocess.Popen[bytes]:
    """Start a run of the named steps in a process."""
    program = folder / "program.py"
    program.write_text(PROGRAM)
    return subprocess.Popen([sys.executable, str(program), str(folder), "500", *names], env=ENVIRONMENT)


def records(folder: Path, kind: str) -> list[Record]:
    path = folder / RESULTS
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [record for record in map(read_record, lines) if record["kind"] == kind]


def wait_for(condition: Any) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def running(pid: int) -> bool:
    """Return whether a process runs; one that only waits to be collected does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_crash_loses_one_step_only(tmp_path: Path) -> None:
    """A step that aborts keeps its records; the next one runs."""
    assert start(tmp_path, "crash", "good").wait(300) == 0
    assert [record["value"] for record in records(tmp_path, "found")] == [2, 1]
    crash, good = records(tmp_path, "end")
    assert (crash["status"], crash["reason"].partition(";")[0]) == ("crashed", "signal 6")
    assert good["status"] == "done"


def test_a_hang_ends_with_all_its_processes(tmp_path: Path) -> None:
    """A step that exceeds its time is killed, with its children in other process groups; later steps are listed."""
    (tmp_path / "program.py").write_text(PROGRAM)

    def launch(step: Step, seconds: float) -> ChildProcess:
        command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path), "--child", step.name]
        return ChildProcess(command, tmp_path / "log", ENVIRONMENT)

    plan = [Step(name, name, cap=60, least=1, run=print, alone=True) for name in ("hang", "good")]
    Runner(plan, tmp_path, 60, launch, clock=lambda: 100.0 if records(tmp_path, "pid") else 0.0).run()
    (pids,) = records(tmp_path, "pid")
    assert not running(pids["own"])
    assert not running(pids["child"])
    assert [record["status"] for record in records(tmp_path, "end")] == ["out of time", "not run"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_kill_of_the_run_keeps_the_records_and_ends_the_step(number: int, tmp_path: Path) -> None:
    """After SIGTERM and even SIGKILL, what a step recorded is on disk, and its process ends."""
    run = start(tmp_path, "good", "hang")
    wait_for(lambda: records(tmp_path, "pid"))
    run.send_signal(number)
    assert run.wait(300) == (143 if number == signal.SIGTERM else -9)
    (pids,) = records(tmp_path, "pid")
    wait_for(lambda: not running(pids["own"]))
    if number == signal.SIGTERM:
        assert not running(pids["child"])
    else:
        os.kill(pids["child"], signal.SIGKILL)  # vLLM's processes end by themselves; this one does not
    assert [record["value"] for record in records(tmp_path, "found")] == [1, 3]
    expected = ["done", "stopped"] if number == signal.SIGTERM else ["done"]
    assert [record["status"] for record in records(tmp_path, "end")] == expected


def test_a_paused_step_goes_on(tmp_path: Path) -> None:
    """A step that is stopped and continued is not mistaken for one without parent, even with another standard input."""
    run = start(tmp_path, "pause")
    wait_for(lambda: records(tmp_path, "pid"))
    (pids,) = records(tmp_path, "pid")
    process = psutil.Process(pids["own"])
    process.suspend()
    wait_for(lambda: process.status() == psutil.STATUS_STOPPED)
    process.resume()
    (tmp_path / "go").touch()
    assert run.wait(300) == 0
    assert [record["value"] for record in records(tmp_path, "found")] == [4]


def test_nothing_runs_without_a_device(tmp_path: Path) -> None:
    """A step that exits with status 2 ends the run."""
    assert start(tmp_path, "refuse", "good").wait(300) == 0
    assert [record["status"] for record in records(tmp_path, "end")] == ["no device"]


def test_a_damaged_line_is_reported(tmp_path: Path) -> None:
    """A line that a full disk cut short does not hide the others."""
    (tmp_path / RESULTS).write_bytes(b'{"step": "a", "ki\n')
    append_record(tmp_path, "b", "found", value=1)
    seen: list[Record] = []
    plan = [Step("c", "c", cap=0, least=100, run=print)]
    Runner(plan, tmp_path, seconds=10, launch=pytest.fail, on_records=seen.extend).run()
    assert [record["kind"] for record in seen] == ["damaged", "found", "end"]


def test_the_output_of_a_step_is_kept(tmp_path: Path) -> None:
    """Standard output and error of a step are in its log."""
    job = ChildProcess([sys.executable, "-c", "import nothing"], tmp_path / "a.log", dict(os.environ))
    wait_for(lambda: job.poll() is not None)
    assert job.poll() == 1
    assert "No module named 'nothing'" in (tmp_path / "a.log").read_text()
