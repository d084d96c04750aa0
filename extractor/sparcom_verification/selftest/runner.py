"""Run a plan within the time that there is. One step that breaks is one failed step: the rest runs.

    for every stage: its lanes side by side, each step in turn
        no CUDA where it is needed         not applicable
        a step that it needs did not run   not run either; one that failed may have left enough
        too little time left               not run
        otherwise                          run, killed at its limit; what it said until then counts. A step that had all
                                           its seconds and did not end failed: it hangs. One with fewer is cut short

After every change the report is written again, so that a run that is killed has left what it found.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

from sparcom_verification.selftest.budget import Budget
from sparcom_verification.selftest.plan import FULL_MINUTES, Device, Stage, Step
from sparcom_verification.selftest.process import Outcome
from sparcom_verification.selftest.results import Row, StepResult

NOT_RUN = ("waiting", "not run", "not applicable")


class Launch(Protocol):
    """Runs one step for at most so many seconds; tells every row as it is known."""

    def __call__(self, step: Step, seconds: float, tell: Callable[[Row], None]) -> Outcome: ...


class Runner:
    """One self-test. `results` has every step of the plan from the start, whatever becomes of it."""

    def __init__(
        self,
        plan: Sequence[Stage],
        device: Device,
        budget: Budget,
        launch: Launch,
        *,
        changed: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = lambda _: None,
        stop: threading.Event | None = None,
    ) -> None:
        self._plan = plan
        self._device = device
        self._budget = budget
        self._launch = launch
        self._changed = changed
        self._say = say
        self._stop = stop or threading.Event()
        self._lock = threading.Lock()
        self.results = {step.name: StepResult(step.name) for stage in plan for step in stage.steps}

    @property
    def failed(self) -> bool:
        """Whether any step broke or any check does not hold."""
        return any(result.failed for result in self.results.values())

    def run(self) -> None:
        """All stages."""
        for number, stage in enumerate(self._plan):
            with ThreadPoolExecutor(max_workers=stage.at_once) as pool:
                try:
                    list(pool.map(partial(self._run_lane, number), stage.lanes))
                except KeyboardInterrupt:
                    self._stop.set()  # or leaving the pool would wait for all that it has begun
                    raise

    def _run_lane(self, stage: int, lane: Sequence[Step]) -> None:
        for step in lane:
            self._run_step(step, self._reserve(stage, step))

    def _reserve(self, stage: int, but: Step) -> float:
        """Seconds that the steps need at least which have yet to run, those of later stages included."""
        return sum(
            sum(step.least for step in other.steps if step != but and self._waits(step)) / other.at_once
            for other in self._plan[stage:]
        )

    def _waits(self, step: Step) -> bool:
        return self.results[step.name].status == "waiting" and self._applies(step)

    def _applies(self, step: Step) -> bool:
        return self._device == "cuda" or not step.cuda

    def _run_step(self, step: Step, keep: float) -> None:
        result = self.results[step.name]
        most = step.seconds * max(1.0, self._budget.seconds / (60 * FULL_MINUTES))
        seconds = self._budget.allowance(most, step.least, keep)
        absent = [name for name in step.needs if self.results[name].status in NOT_RUN]
        if self._stop.is_set():
            self._set(result, "not run", "interrupted")
        elif not self._applies(step):
            self._set(result, "not applicable", f"needs CUDA; this is {self._device}")
        elif absent:
            self._set(result, "not run", f"needs the step {absent[0]!r}, which has not run")
        elif seconds is None:
            self._set(
                result, "not run", f"out of time: {self._budget.left:.0f} s left, it needs {step.least:.0f} at least"
            )
        else:
            self._launch_step(step, result, seconds)

    def _launch_step(self, step: Step, result: StepResult, seconds: float) -> None:
        self._set(result, "running")
        started = time.monotonic()

        def tell(row: Row) -> None:
            with self._lock:
                result.rows.append(row)
            self._changed()

        try:
            outcome = self._launch(step, seconds, tell)
        except Exception as error:  # noqa: BLE001  one broken step is one failed row; the others must run
            outcome = Outcome(f"it could not be run: {type(error).__name__}: {error}")
        result.seconds = time.monotonic() - started
        result.log = list(outcome.log)
        if outcome.killed and self._stop.is_set():
            self._set(result, "cut short", "interrupted")
        elif outcome.killed and seconds < step.seconds:
            self._set(result, "cut short", f"out of time: {outcome.reason}")
        else:
            self._set(result, "failed" if outcome.reason else "done", outcome.reason)

    def _set(self, result: StepResult, status: str, reason: str = "") -> None:
        with self._lock:
            result.status = status  # type: ignore[assignment]
            result.reason = reason
        word = "FAILED" if result.failed else status
        self._say(f"[{self._budget.spent:5.0f} s] {result.name}: {word}{f' ({reason})' if reason else ''}")
        self._changed()
