"""The plan of `benchmarks/gpu.py`, run with a clock of its own on 8, 16 and 32 cores: the headline gets its time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from verdict.judge import MIN_PAIRS
from verdict.steps import RESERVE_SECONDS, Record, Runner, Step

import gpu

SLOWER = {8: 1.3, 16: 1.0, 32: 0.9}  # start-ups by number of cores, relative to 16
LARGE_START, TINY_START = 60.0, 40.0  # seconds of a cold start, from public logs; not measured here
WARM_UP, ROUND = 12.0, 27.0  # seconds: two loads of 6.5 and 7 s; plain and capture
STARTS = {"tokens": 2, "moe-tokens": 2, "fp8": 2, "eager": 1.6, "moe-eager": 1.6, "ranks": 1.3, "kernels": 4}
WORK = {"dense": 45.0, "moe": 50.0, "kernels": 0.0}


def estimate(step: Step, slower: float) -> float:
    """Return the seconds of a step, of the speed step with all pairs. slower: factor of the start-ups."""
    if step.name == "machine":
        return 30.0 * slower
    if step.name.startswith("speed"):
        return 2 * LARGE_START * slower + WARM_UP + gpu.PAIRS * ROUND
    return STARTS.get(step.name, 1) * TINY_START * slower + WORK.get(step.name, 15.0)


@dataclass
class Simulation:
    """A clock that only `sleep` moves, and jobs that take their estimates."""

    cores: int
    slower: float = 1.0
    now: float = 0.0
    given: dict[str, float] = field(default_factory=dict)
    started: dict[str, float] = field(default_factory=dict)

    def launch(self, step: Step, seconds: float) -> Simulated:
        self.given[step.name], self.started[step.name] = seconds, self.now
        return Simulated(self, self.now + estimate(step, self.slower * SLOWER[self.cores]))

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def run(self, folder: Path, minutes: float = gpu.MINUTES, plan: Sequence[Step] = ()) -> dict[str, str]:
        """Run a plan, by default the whole one; return the status of each step."""
        records: list[Record] = []
        Runner(
            plan or gpu.make_plan(minutes),
            folder,
            60 * minutes,
            self.launch,
            gpu.steps_at_once(self.cores),
            records.extend,
            clock=lambda: self.now,
            sleep=self.sleep,
        ).run()
        return {record["step"]: record["status"] for record in records if record["kind"] == "end"}


@dataclass
class Simulated:
    """A job that ends at a time."""

    simulation: Simulation
    end: float

    def poll(self) -> int | None:
        return 0 if self.simulation.now >= self.end else None

    def kill(self) -> None:
        pass


@pytest.mark.parametrize("cores", SLOWER)
def test_the_headline_gets_its_seconds(cores: int, tmp_path: Path) -> None:
    """On every machine, the speed step may measure all pairs of both loads, and the run ends within its time."""
    simulation = Simulation(cores)
    statuses = simulation.run(tmp_path)
    assert statuses["speed"] == "done"
    assert simulation.given["speed"] >= estimate(gpu.make_plan(gpu.MINUTES)[1], SLOWER[cores])
    assert simulation.now <= 60 * gpu.MINUTES - RESERVE_SECONDS + 1
    assert {statuses[name] for name in ("dense", "moe")} == {"done"}


@pytest.mark.parametrize(("cores", "done"), [(16, 8), (32, 11)])
def test_correctness_is_decided_within_eight_minutes(cores: int, done: int, tmp_path: Path) -> None:
    """On 16 cores the eight most informative tests end in time: dense, MoE, one request at a time, preemption, more
    than 256 requests, FP8 and eager mode."""
    statuses = Simulation(cores).run(tmp_path)
    assert [name for name in gpu.TESTS if statuses[name] == "done"][:done] == list(gpu.TESTS)[:done]


def test_a_slow_machine_reports_the_headline(tmp_path: Path) -> None:
    """If start-ups take 1.6 times as long, the speed step is cut after an interval can be given; every step has a
    status."""
    simulation = Simulation(8, slower=1.6)
    statuses = simulation.run(tmp_path)
    assert simulation.given["speed"] > 1.6 * 2 * LARGE_START * SLOWER[8] + WARM_UP + MIN_PAIRS * ROUND
    assert set(statuses) == {step.name for step in gpu.make_plan(gpu.MINUTES)}
    assert simulation.now <= 60 * gpu.MINUTES


def test_a_long_run_measures_more(tmp_path: Path) -> None:
    """With 20 minutes, the MoE shape is measured too, and all tests run."""
    statuses = Simulation(16).run(tmp_path, minutes=20)
    assert {statuses["speed-moe"], statuses["all"], statuses["kernels"]} == {"done"}


def test_a_quick_run_is_short(tmp_path: Path) -> None:
    """A quick run takes the headline and three tests."""
    statuses = Simulation(16).run(tmp_path, plan=gpu.make_plan(gpu.MINUTES, quick=True))
    assert statuses == dict.fromkeys(["machine", "speed", *gpu.QUICK_TESTS], "done")


def test_nothing_runs_beside_a_step_that_is_alone(tmp_path: Path) -> None:
    """A step that is alone waits for those before it, and those after it wait for its end."""
    simulation = Simulation(16)
    plan = [Step(name, name, 400, 0, print, alone=name == "speed") for name in ("dense", "moe", "speed", "tokens")]
    simulation.run(tmp_path, plan=plan)
    ends = [simulation.started[step.name] + estimate(step, SLOWER[16]) for step in plan]
    assert simulation.started["speed"] >= max(ends[:2])
    assert simulation.started["tokens"] >= ends[2]
