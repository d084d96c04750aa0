"""Run steps, each in a process of its own, within one budget of time. A crash, hang or kill loses one step only.

A step writes records as JSON lines, each in one write, as soon as it has them. The parent prints them and keeps the
report up to date, so that a kill at any moment loses nothing that was measured.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Record = dict[str, Any]
RESULTS = "results.jsonl"
NO_DEVICE = 2  # exit status of a step, and of the run, on a machine without a device
RESERVE_SECONDS = 5.0  # to end processes and to write the report
POLL_SECONDS = 0.1
END_SECONDS = 15.0


def append_record(folder: Path, step: str, kind: str, /, **facts: Any) -> None:
    """Append one line to the results. It survives a kill of this process directly afterwards."""
    line = json.dumps({"step": step, "kind": kind, "time": round(time.time(), 2)} | facts)
    with (folder / RESULTS).open("ab", buffering=0) as file:
        file.write(line.encode() + b"\n")


def read_record(line: bytes) -> Record:
    """Return the record of one line. A damaged line, as a full disk leaves it, is a record of kind `damaged`."""
    try:
        return dict(json.loads(line))
    except ValueError:
        return {"step": "", "kind": "damaged", "line": line.decode(errors="replace")}


class Context:
    """The folder, the time, and the records of a running step. deadline: on the clock of `time.monotonic`."""

    def __init__(self, step: str, folder: Path, seconds: float, options: Any) -> None:
        self.step, self.folder, self.options = step, folder, options
        self.deadline = time.monotonic() + seconds

    @property
    def seconds_left(self) -> float:
        """Seconds until the runner ends this step."""
        return self.deadline - time.monotonic()

    def record(self, kind: str, /, **facts: Any) -> None:
        """Append one record."""
        append_record(self.folder, self.step, kind, **facts)


@dataclass(frozen=True)
class Step:
    """A step of the plan.

    goal: row of the report. cap: seconds at most. least: not started with fewer seconds. run: what the process does.
    alone: no other step runs meanwhile.
    """

    name: str
    goal: str
    cap: float
    least: float
    run: Callable[[Context], None]
    alone: bool = False


class Job(Protocol):
    """A running step."""

    def poll(self) -> int | None: ...
    def kill(self) -> None: ...


class ChildProcess:
    """A step in a process of its own, with its output in `FOLDER/NAME.log`. It ends if this process ends."""

    def __init__(self, command: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        status = self._process.poll()
        if status is not None and self._process.stdin is not None:
            self._process.stdin.close()
        return status

    def kill(self) -> None:
        """Kill the process and all that it started, and wait for their end: they hold the device's memory."""
        import psutil  # a requirement of vLLM

        tree: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            top = psutil.Process(self._process.pid)
            tree = [top, *top.children(recursive=True)]
        for process in tree:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(tree, END_SECONDS)
        self.poll()


def run_child(step: Step, context: Context) -> None:
    """Run a step in this process, which `ChildProcess` started. Kills its process group when its parent ends."""

    # A copy: pytest puts another file in place of standard input, and a read starts again after SIGSTOP and SIGCONT.
    # Not sys.stdin, whose lock would be held at interpreter exit.
    lifeline = os.dup(0)

    def end_with_parent() -> None:
        os.read(lifeline, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=end_with_parent, daemon=True).start()
    step.run(context)


@dataclass
class Runner:
    """Runs a plan in order, up to `at_once` steps at a time. seconds: time for everything."""

    plan: Sequence[Step]
    folder: Path
    seconds: float
    launch: Callable[[Step, float], Job]
    at_once: int = 1
    on_records: Callable[[list[Record]], None] = lambda _: None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    records: list[Record] = field(default_factory=list)
    no_device: bool = False

    def run(self) -> None:
        """Run until every step ended or the time is over. Any exception kills what runs; its records are kept."""
        self._end = self.clock() + self.seconds - RESERVE_SECONDS
        self._waiting, self._read = list(self.plan), 0
        self._running: dict[str, tuple[Step, Job, float]] = {}
        try:
            while self._waiting or self._running:
                for name in list(self._running):
                    self._check(name)
                self._start()
                self._collect()
                self.sleep(POLL_SECONDS)
        finally:
            for name, (_, job, started) in self._running.items():
                job.kill()
                self._ended(name, "stopped", self.clock() - started)
            for step in self._waiting:
                self._ended(step.name, "not run", 0.0, "the run was stopped")
            self._collect()

    def _check(self, name: str) -> None:
        """Note the end of a running step, or end it after its time."""
        step, job, started = self._running[name]
        status, seconds = job.poll(), self.clock() - started
        if status is None and seconds < step.cap and self.clock() < self._end:
            return
        if status is None:
            job.kill()
            self._ended(name, "out of time", seconds)
        elif status == NO_DEVICE:
            self.no_device = True
            self._waiting.clear()
            self._ended(name, "no device", seconds)
        else:
            cause = f"signal {-status}" if status < 0 else f"exit status {status}"
            log = f"{cause}; see {self.folder / name}.log"
            self._ended(name, "crashed" if status else "done", seconds, log if status else "")
        del self._running[name]

    def _start(self) -> None:
        """Start the next steps, as far as they may run together."""
        while self._waiting:
            step, left = self._waiting[0], self._end - self.clock()
            alone = step.alone or any(other.alone for other, _, _ in self._running.values())
            if len(self._running) >= (1 if alone else self.at_once):
                return
            self._waiting.pop(0)
            if left < step.least:
                reason = f"it needs {step.least:.0f} s; {max(left, 0):.0f} s were left"
                self._ended(step.name, "not run", 0.0, reason)
            else:
                seconds = min(step.cap, left)
                self._running[step.name] = (step, self.launch(step, seconds), self.clock())

    def _ended(self, name: str, status: str, seconds: float, reason: str = "") -> None:
        facts = {"status": status, "seconds": round(seconds, 1)} | ({"reason": reason} if reason else {})
        append_record(self.folder, name, "end", **facts)

    def _collect(self) -> None:
        """Read new whole lines."""
        path = self.folder / RESULTS
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._read)
            lines, _, _ = file.read().rpartition(b"\n")
        if lines:
            self._read += len(lines) + 1
            new = [read_record(line) for line in lines.split(b"\n")]
            self.records += new
            self.on_records(new)
