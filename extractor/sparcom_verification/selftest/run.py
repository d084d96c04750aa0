"""One whole self-test: the plan, the runner, the report, in a work folder that is removed at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sparcom_data.errors import InvalidInputError
from sparcom_verification.selftest.budget import Budget
from sparcom_verification.selftest.plan import SIZES, Device, Stage, Step, make_plan
from sparcom_verification.selftest.process import Outcome, Tell, run_step
from sparcom_verification.selftest.report import ReportFile, render
from sparcom_verification.selftest.results import StepResult
from sparcom_verification.selftest.runner import Launch, Runner
from sparcom_verification.selftest.ways import memory_folder


@dataclass(frozen=True, slots=True)
class SelftestSettings:
    """What is asked for. folder: where models and archives go, None for a temporary one. only: parts of the names of
    the steps to run; what those need is run too."""

    device: Device
    output: Path
    minutes: float
    quick: bool = False
    folder: Path | None = None
    only: tuple[str, ...] = ()


def run_selftest(
    settings: SelftestSettings, say: Callable[[str], None], launch: Launch | None = None
) -> Sequence[StepResult]:
    """Run a self-test; returns every step's result. The report is on disk, whole, after every change.

    Args:
        settings: what is asked for.
        say: told the progress, a line at a time, and the table at the end.
        launch: runs a step; a process each where it is not given.
    """
    plan = choose_steps(make_plan(settings.device, quick=settings.quick), settings.only)
    folder = _work_folder(settings.folder)
    budget = Budget(60 * settings.minutes)
    shown = {**asdict(settings), "output": str(settings.output), "folder": str(folder)}
    report = ReportFile(settings.output, {**shown, "sizes": asdict(SIZES[settings.device])}, budget)

    stop = threading.Event()

    def in_a_process(step: Step, seconds: float, tell: Tell) -> Outcome:
        return run_step(step, folder, settings.device, seconds, tell, stop)

    runner = Runner(
        plan,
        settings.device,
        budget,
        launch or in_a_process,
        changed=lambda: report.write(results),
        say=say,
        stop=stop,
    )
    results = list(runner.results.values())
    try:
        runner.run()
    finally:
        report.write(results, finished=True)
        shutil.rmtree(memory_folder(folder), ignore_errors=True)
        if settings.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    say(render(results))
    return results


def _work_folder(given: Path | None) -> Path:
    """The folder for models and archives; engines take paths, so it is absolute."""
    if given is None:
        return Path(tempfile.mkdtemp(prefix="sparcom-selftest-"))
    given.mkdir(parents=True, exist_ok=True)
    if any(given.iterdir()):
        raise InvalidInputError([f"folder must be new or empty; {given} is not. Choose another or remove it"])
    return Path(os.path.abspath(given))  # noqa: PTH100  resolve() would follow links that the user chose


def choose_steps(plan: Sequence[Stage], only: Sequence[str]) -> list[Stage]:
    """The plan with the named steps alone, and what they need; all of it where none is named.

    Raises:
        InvalidInputError: a name fits no step.
    """
    if not only:
        return list(plan)
    steps = {step.name: step for stage in plan for step in stage.steps}
    wanted: list[str] = []
    for part in only:
        found = [name for name in steps if part in name]
        if not found:
            raise InvalidInputError([f"only: a part of a step's name; {part!r} is in none of: {', '.join(steps)}"])
        wanted += found
    for name in wanted:  # grows: what is needed needs something in turn
        wanted += [need for need in steps[name].needs if need not in wanted]
    chosen = [
        Stage(tuple(tuple(step for step in lane if step.name in wanted) for lane in stage.lanes), stage.at_once)
        for stage in plan
    ]
    return [stage for stage in chosen if any(stage.lanes)]
