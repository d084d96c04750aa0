"""Decide on this machine's GPU: does capture cost at most 2 %, and is every bit right? Speed comes first.

Needs only torch and vLLM, and pytest for the second part; neither a network nor an installed SPARCOM. Every step runs
in a process of its own and has a limit of time. Results are written as they come: `results.jsonl`, and `report.md`
with one row per goal. Exit status: 0 if every goal holds, 1 if not, 2 without a CUDA device.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from verdict.report import HOLDS, describe, make_rows, make_table
from verdict.steps import RESULTS, ChildProcess, Context, Record, Runner, Step, read_record, run_child

ROOT = Path(__file__).resolve().parents[1]
MEMORY = Path("/dev/shm")  # noqa: S108  (a file system in memory on every Linux)
MINUTES, FULL_MINUTES = 8.0, 16.0
PAIRS, QUICK_PAIRS = 5, 3
MACHINE_SECONDS = 100
SPEED_SECONDS, LEAST_SPEED_SECONDS, TEST_SECONDS, LEAST_TEST_SECONDS = 360, 120, 180, 45
CORES_PER_STEP = 4
ENGINES, LOADS = "tests/gpu/test_engines.py::", "tests/gpu/test_load.py::"
REFERENCE, ALONE = "test_rows_agree_with_transformers", "test_concurrent_rows_equal_those_of_each_request_alone"
VALID, EQUAL = "test_archives_are_valid", "test_tokens_and_logprobs_equal_those_without_capture"
EAGER = "test_rows_of_compiled_graphs_equal_those_of_eager_mode"
TESTS: dict[str, tuple[str, tuple[str, ...]]] = {  # most informative first
    "dense": (
        "dense: rows equal the CPU reference, and those of single requests",
        tuple(f"{ENGINES}{name}[llama float32]" for name in (REFERENCE, VALID, ALONE)),
    ),
    "moe": (
        "MoE: rows equal the CPU reference, and those of single requests",
        tuple(f"{ENGINES}{name}[qwen2-moe float32]" for name in (REFERENCE, VALID, ALONE)),
    ),
    "tokens": ("dense: tokens and log-probabilities as without capture", (f"{ENGINES}{EQUAL}[llama float32]",)),
    "bfloat16": ("dense, bfloat16: rows equal the CPU reference", (f"{ENGINES}{REFERENCE}[llama bfloat16]",)),
    "fp8": ("FP8: tokens as without capture, rows near the CPU reference", (f"{LOADS}test_rows_and_tokens_in_fp8",)),
    "eager": ("dense: rows of graphs equal those of eager mode", (f"{ENGINES}{EAGER}[llama float32]",)),
    "preemption": ("rows of preempted requests", (f"{LOADS}test_rows_survive_preemption",)),
    "many": ("more than 256 requests at once", (f"{LOADS}test_rows_of_more_than_256_requests_at_once",)),
    "ranks": ("two devices: rows equal the CPU reference", (f"{ENGINES}{REFERENCE}[llama float32 2 ranks]",)),
    "moe-tokens": ("MoE: tokens and log-probabilities as without capture", (f"{ENGINES}{EQUAL}[qwen2-moe float32]",)),
    "moe-eager": ("MoE: rows of graphs equal those of eager mode", (f"{ENGINES}{EAGER}[qwen2-moe float32]",)),
    "kernels": ("kernels equal their CPU references", ("tests/gpu/test_kernels.py",)),
}
QUICK_TESTS = ("dense", "moe", "bfloat16")


def make_plan(minutes: float, *, quick: bool = False) -> list[Step]:
    """Return all steps. More minutes give each step more time; from FULL_MINUTES on, MoE speed and every test run."""
    from verdict import checks
    from verdict.judge import GOAL

    def speed(name: str, goal: str, seconds: float) -> Step:
        goal = f"capture / plain vLLM at least {GOAL}, {goal}"
        return Step(name, goal, seconds, LEAST_SPEED_SECONDS, measure_speed, alone=True)

    def tests(name: str, goal: str, selection: tuple[str, ...], seconds: float) -> Step:
        return Step(name, goal, seconds, LEAST_TEST_SECONDS, partial(checks.run_tests, selection=selection))

    more = max(1.0, minutes / MINUTES)
    plan = [Step("machine", "", MACHINE_SECONDS, 0, checks.find_machine, alone=True)]
    plan.append(speed("speed", "LLaMA-2-7B's shape", SPEED_SECONDS * more))
    if minutes >= FULL_MINUTES:
        plan.append(speed("speed-moe", "Qwen1.5-MoE's shape", SPEED_SECONDS))
    names = QUICK_TESTS if quick else TESTS
    plan += [tests(name, *TESTS[name], TEST_SECONDS * more) for name in names]
    if minutes >= FULL_MINUTES:
        plan.append(tests("all", "all tests of tests/gpu", ("tests/gpu",), 60 * minutes))
    return plan


def measure_speed(context: Context) -> None:
    """Measure the shape of the step; in a rehearsal a tiny shape on the CPU."""
    from verdict.judge import Place
    from verdict.speed import measure

    options = context.options
    records = [read_record(line) for line in (context.folder / RESULTS).read_bytes().splitlines()]
    disks = [record for record in records if record["kind"] == "disk"]
    places = [Place(*(disk[name] for name in ("way", "folder", "rate", "free"))) for disk in disks]
    machine = next((record for record in records if record["kind"] == "machine"), {})
    if not options.rehearse and "memory_gib" not in machine:
        context.record("problem", reason="the step `machine` recorded no device")
        return
    full = options.minutes >= FULL_MINUTES
    shape = "tiny" if options.rehearse else "qwen1.5-moe" if context.step == "speed-moe" else "llama-2-7b"
    quick = options.rehearse or options.quick
    pairs = QUICK_PAIRS if quick else int(PAIRS * max(1.0, options.minutes / MINUTES))
    further = ("counted", "unread") if full or options.rehearse else ()
    asyncio.run(measure(context, shape, places, machine.get("memory_gib"), pairs, further))


def environment(options: argparse.Namespace, step: Step, at_once: int) -> dict[str, str]:
    """Return the environment of a step: this checkout's packages, and caches that a second run reuses."""
    packages = [str(ROOT / name) for name in ("data", "extractor", "server", "analysis", "cli")]
    cache = options.cache / step.name
    found = os.environ | {
        "PYTHONPATH": os.pathsep.join([*packages, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "SPARCOM_TEST_CACHE": str(cache),
        "VLLM_CACHE_ROOT": str(cache / "vllm"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if not step.alone and not options.rehearse:
        found["OMP_NUM_THREADS"] = str(max(1, cores() // at_once))
    return found


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def steps_at_once(cores: int) -> int:
    """Return the number of steps that may run together."""
    return max(1, cores // CORES_PER_STEP)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"end after this time (default: {MINUTES:.0f})")
    parser.add_argument("--quick", action="store_true", help=f"measure {QUICK_PAIRS} pairs and run fewer tests")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="run only these steps, after the step `machine`")
    parser.add_argument("--rehearse", action="store_true", help="run tiny models on the CPU, to test this program")
    parser.add_argument("--archives", type=Path, help="measure archives in this folder (default: temporary files)")
    parser.add_argument("--output", type=Path, help="write results to this new folder (default: in bench-output/gpu)")
    parser.add_argument(
        "--cache", type=Path, default=ROOT / "bench-output" / "gpu-cache", help="keep compiled code in this folder"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--places", type=Path, nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.archives = (options.archives or Path(tempfile.gettempdir())).resolve()
    if not options.archives.is_dir():
        parser.error(f"--archives must be an existing folder; it is {options.archives}")
    options.output = (options.output or ROOT / "bench-output" / "gpu" / f"{datetime.now(UTC):%Y%m%d-%H%M%S}").resolve()
    options.cache = options.cache.resolve()
    names = [step.name for step in make_plan(options.minutes, quick=options.quick)]
    if unknown := set(options.only or ()) - set(names):
        parser.error(f"--only takes steps of this plan, {', '.join(names)}; {', '.join(sorted(unknown))} is none")
    return options


def stop(number: int, _frame: Any) -> NoReturn:
    """End the run by a signal: the runner kills its steps, and the report is printed."""
    sys.exit(128 + number)


def main() -> None:
    options = parse()
    plan = make_plan(options.minutes, quick=options.quick)
    if options.child:
        step = next(step for step in plan if step.name == options.child)
        run_child(step, Context(step.name, options.output, options.seconds, options))
        return
    if options.only:
        plan = [step for step in plan if step.name in {"machine", *options.only}]
    options.output.mkdir(parents=True, exist_ok=True)
    if (options.output / RESULTS).exists():
        sys.exit(f"error: {options.output} holds results of another run; choose another --output")
    at_once = steps_at_once(cores())
    records: list[Record] = []
    places: list[str] = []

    def launch(step: Step, seconds: float) -> ChildProcess:
        command = [sys.executable, __file__, *sys.argv[1:], "--child", step.name, "--seconds", str(seconds)]
        command += ["--output", str(options.output), "--places", *places]
        return ChildProcess(command, options.output / f"{step.name}.log", environment(options, step, at_once))

    def report() -> str:
        warning = "**A rehearsal with tiny models on a CPU: the figures mean nothing.**\n\n" if options.rehearse else ""
        return warning + make_table(make_rows(plan, records))

    def show(new: list[Record]) -> None:
        records.extend(new)
        (options.output / "report.md").write_text(report())
        for line in filter(None, map(describe, new)):
            print(line, flush=True)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    runner = Runner(plan, options.output, 60 * options.minutes, launch, at_once, show)
    try:
        with ExitStack() as stack:  # a step that is killed leaves its archive behind
            folders = [options.archives, *filter(Path.is_dir, [MEMORY])]
            made = [
                tempfile.TemporaryDirectory("-sparcom", dir=folder, ignore_cleanup_errors=True) for folder in folders
            ]
            places.extend(map(stack.enter_context, made))
            runner.run()
    finally:
        if not runner.no_device:
            print(f"\n{report()}\n{options.output}/report.md", flush=True)
    if runner.no_device:
        reason = next(record["reason"] for record in records if record["kind"] == "problem")
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(2)
    sys.exit(any(row.verdict != HOLDS for row in make_rows(plan, records)))


if __name__ == "__main__":  # vLLM starts its processes by importing this file again
    main()
