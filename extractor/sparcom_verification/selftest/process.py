"""A step in a process of its own: what it said counts even where it is killed, and nothing of it stays on the device.

    parent   WORK/STEP.json  ─▶  python -m sparcom_verification.selftest.process WORK/STEP.json
    child    every row, as it is known, a line of WORK/STEP.rows; everything printed, vLLM's log too, to WORK/STEP.log;
             why it broke, where it did, to WORK/STEP.reason

An engine that hangs is killed with its processes at the step's limit. They have left the child's process group (see
`sparcom_extractor.launch.bootstrap`), so they are found by parent, before the child dies and they are
nobody's. A child whose parent is killed ends itself, and its engine with it.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparcom_verification.selftest.plan import SIZES, Device, Sizes, Step
from sparcom_verification.selftest.results import Row, row_from_json, row_to_json

# No network, and vLLM's own words in the log: what it compiled and captured is told nowhere else.
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "INFO"}
POLL_SECONDS = 0.2
LOG_LINES = 40
LOG_ERRORS = 10
TOLD = re.compile(
    r"(?i)cuda ?graph|graph captur|attention backend|moe backend|kv cache|compil|model runner|warning|sparcom"
    r"|capture takes"
)
TOLD_LENGTH = 300
Tell = Callable[[Row], None]


@dataclass(frozen=True, slots=True)
class Context:
    """What every step's function is given: where it works, on what, how to tell a row, and when it will be killed.

    deadline: on the monotonic clock, seconds.
    """

    folder: Path
    device: Device
    tell: Tell
    deadline: float

    @property
    def sizes(self) -> Sizes:
        """The sizes that belong to the device."""
        return SIZES[self.device]

    @property
    def left(self) -> float:
        """Seconds until the step is killed."""
        return self.deadline - time.monotonic()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step's process ended. reason: "" where it ended well. log: what it printed of errors, and last; where it
    ended well, of graphs and memory.

    killed: it had not ended when its time was over.
    """

    reason: str = ""
    killed: bool = False
    log: tuple[str, ...] = ()


def run_step(
    step: Step, folder: Path, device: Device, seconds: float, tell: Tell, stop: threading.Event | None = None
) -> Outcome:
    """Run a step in a process of its own, for at most so many seconds; its rows are told as they come.

    stop: when it is set, the process is killed as if its time were over.
    """
    stem = folder / re.sub(r"\W+", "-", step.name)
    rows, log, note = (stem.with_suffix(suffix) for suffix in (".rows", ".log", ".json"))
    deadline = time.monotonic() + seconds
    note.write_text(json.dumps({"step": asdict(step), "folder": str(folder), "device": device, "deadline": deadline}))
    rows.write_text("")
    own = {name: value.format(folder=folder) for name, value in step.environment.items()}
    with log.open("w") as output:
        child = subprocess.Popen(  # noqa: S603  this interpreter, on a file that was just written
            [sys.executable, "-m", "sparcom_verification.selftest.process", str(note)],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=ENVIRONMENT | os.environ | own,
        )
        try:
            killed = _follow(child, rows, deadline, tell, stop or threading.Event())
        finally:
            _kill(child)
    if killed:
        return Outcome(f"killed after {seconds:.0f} seconds", killed=True, log=_tail(log))
    if child.returncode:
        reason = stem.with_suffix(".reason")
        said = reason.read_text() if reason.exists() else f"its process ended with status {child.returncode}"
        return Outcome(said, log=_tail(log))
    return Outcome(log=_telling(log))


def _follow(child: subprocess.Popen[bytes], rows: Path, deadline: float, tell: Tell, stop: threading.Event) -> bool:
    """Tell rows until the child ends, or its time is over, or it is to stop; whether it had not ended."""
    with rows.open() as lines:
        while child.poll() is None and time.monotonic() < deadline and not stop.is_set():
            _tell_new(lines, tell)
            time.sleep(POLL_SECONDS)
        over = child.poll() is None
        _tell_new(lines, tell)
    return over


def _tell_new(lines: Any, tell: Tell) -> None:
    """Tell the rows that were completed since; half a line stays for the next time."""
    while True:
        before = lines.tell()
        line = lines.readline()
        if not line.endswith("\n"):
            lines.seek(before)
            return
        tell(row_from_json(json.loads(line)))


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End the child and all processes below it, and wait until they are gone: the next engine needs their memory."""
    _signal([child.pid], signal.SIGSTOP)  # it must not start another process that is not in the list
    _signal(descendants(child.pid), signal.SIGSTOP)
    family = descendants(child.pid)
    _signal([child.pid, *family], signal.SIGKILL)
    child.wait()
    while any(_alive(process) for process in family):
        time.sleep(POLL_SECONDS)


def _signal(processes: Sequence[int], number: signal.Signals) -> None:
    for process in processes:
        try:
            os.kill(process, number)
        except ProcessLookupError:
            continue  # it had ended by itself


def descendants(process: int) -> list[int]:
    """Ids of all processes below one, by Linux's own list."""
    children: list[int] = []
    for tasks in Path("/proc").glob(f"{process}/task/*/children"):
        try:
            children += [int(part) for part in tasks.read_text().split()]
        except FileNotFoundError:
            continue  # the thread ended meanwhile
    return [*children, *(below for child in children for below in descendants(child))]


def _alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def _tail(log: Path) -> tuple[str, ...]:
    """The first lines that speak of an error, an engine's own among them, and the last lines."""
    lines = log.read_text(errors="replace").splitlines()
    errors = [line for line in lines[:-LOG_LINES] if "Error" in line]
    return (*errors[:LOG_ERRORS], *lines[-LOG_LINES:])


def _telling(log: Path) -> tuple[str, ...]:
    """Lines that say how an engine ran: which attention, graphs and memory it has."""
    lines = log.read_text(errors="replace").splitlines()
    return tuple(line[:TOLD_LENGTH] for line in lines if TOLD.search(line))[:LOG_LINES]


def main(note: Path) -> None:
    """The child's side: run the step's function; where it breaks, leave the reason for the report."""
    threading.Thread(target=_end_with, args=(os.getppid(),), name="sparcom-parent", daemon=True).start()
    told = json.loads(note.read_text())
    step = told["step"]
    with note.with_suffix(".rows").open("a") as rows:

        def tell(row: Row) -> None:
            rows.write(json.dumps(row_to_json(row)) + "\n")
            rows.flush()

        try:
            module, _, function = step["work"].partition(":")
            work: Callable[..., None] = getattr(importlib.import_module(module), function)
            work(Context(Path(told["folder"]), told["device"], tell, told["deadline"]), **step["arguments"])
        except Exception as error:
            note.with_suffix(".reason").write_text(f"{type(error).__name__}: {error}")
            raise


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(1)  # nobody is left to report to, and an engine must not go on alone


if __name__ == "__main__":
    main(Path(sys.argv[1]))
