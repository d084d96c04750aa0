"""The self-test keeps to its time, loses no result, and fails where something is wrong."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from sparcom_data.archive import open_archive
from sparcom_data.errors import InvalidInputError
from sparcom_data.testing import write_random_archive, write_random_moe_archive
from sparcom_verification.selftest.budget import Budget
from sparcom_verification.selftest.comparisons import same_counts, same_rows, same_values, sound
from sparcom_verification.selftest.models import make_byte_tokenizer, make_shape
from sparcom_verification.selftest.plan import CPU_SIZES, CUDA_SIZES, Stage, Step, make_plan
from sparcom_verification.selftest.process import Outcome, descendants, run_step
from sparcom_verification.selftest.report import render, verdict
from sparcom_verification.selftest.results import Check, Fact, Measure, StepResult, row_from_json, row_to_json
from sparcom_verification.selftest.run import SelftestSettings, choose_steps, run_selftest
from sparcom_verification.selftest.runner import Runner


class FakeClock:
    """Time passes when a step says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeLaunch:
    """Steps that take as long as `takes` says and end as `ends` says."""

    def __init__(self, clock: FakeClock, takes: dict[str, float], ends: dict[str, Any] | None = None) -> None:
        self.clock, self.takes, self.ends = clock, takes, ends or {}
        self.given: dict[str, float] = {}

    def __call__(self, step: Step, seconds: float, tell: Callable[[Any], None]) -> Outcome:
        self.given[step.name] = seconds
        took = self.takes.get(step.name, 1.0)
        self.clock.now += min(took, seconds)
        tell(Fact("said", step.name))
        end = self.ends.get(step.name, Outcome())
        if isinstance(end, Exception):
            raise end
        if isinstance(end, Check):
            tell(end)
            return Outcome()
        return Outcome(f"killed after {seconds:.0f} seconds", killed=True) if took > seconds else end


def step(name: str, seconds: float = 50, least: float = 10, **more: Any) -> Step:
    return Step(name, "nowhere:nothing", seconds=seconds, least=least, **more)


def run_plan(
    steps: list[Step], seconds: float, device: Any = "cuda", **launch: Any
) -> tuple[dict[str, StepResult], FakeLaunch, list[str]]:
    """Run steps one after the other; results by name, what was launched, and what was said."""
    clock = FakeClock()
    launcher = FakeLaunch(clock, launch.get("takes", {}), launch.get("ends"))
    said: list[str] = []
    plan = [Stage(((item,),)) for item in steps]
    runner = Runner(plan, device, Budget(seconds, clock), launcher, say=said.append)
    runner.run()
    return runner.results, launcher, said


def test_what_does_not_fit_is_listed() -> None:
    """A step with fewer seconds left than it needs is not begun, and the report says why."""
    results, launcher, said = run_plan(
        [step("first", least=40), step("second", least=5), step("third", least=30)],
        60,
        takes={"first": 40, "second": 5},
    )
    assert [result.status for result in results.values()] == ["done", "done", "not run"]
    assert results["third"].reason == "out of time: 15 s left, it needs 30 at least"
    assert "third" not in launcher.given
    assert any("third: not run (out of time" in line for line in said)


def test_a_step_leaves_time_for_those_after_it() -> None:
    """No step takes the seconds that later ones need at least; where not all fit, the first has what it asks for."""
    _, launcher, _ = run_plan([step("first", 50, 10), step("second", 50, 25)], 60)
    assert launcher.given["first"] == 35
    _, launcher, _ = run_plan([step("first", 50, 10), step("second", 50, 25)], 20)
    assert launcher.given["first"] == 20


def test_more_minutes_give_every_step_more() -> None:
    """The limits are those of eight minutes; in sixteen a slower machine has twice as long."""
    _, launcher, _ = run_plan([step("only", 50)], 60 * 16)
    assert launcher.given["only"] == 100
    _, launcher, _ = run_plan([step("only", 50)], 60 * 4)
    assert launcher.given["only"] == 50


def test_a_step_that_hangs_fails_and_one_without_time_is_cut_short() -> None:
    """Killed with all its seconds spent is a failure; killed with fewer is lack of time. What it said stays."""
    results, _, _ = run_plan([step("hangs", 50), step("late", 50)], 100, takes={"hangs": 99, "late": 99})
    assert results["hangs"].status == "failed"
    assert results["late"].status == "failed"
    results, _, _ = run_plan([step("hangs", 50), step("late", 50)], 80, takes={"hangs": 99, "late": 99})
    assert results["late"].status == "cut short"
    assert not results["late"].failed
    assert results["late"].reason == "out of time: killed after 30 seconds"
    assert results["late"].rows == [Fact("said", "late")]


def test_a_step_that_breaks_is_one_failed_step() -> None:
    """An exception where a step is launched fails that step; the rest runs, but for what needs a step that did not."""
    broken = [
        step("breaks"),
        step("other"),
        step("cuda", cuda=True),
        step("after", needs=("cuda",)),
        step("still", needs=("breaks",)),
    ]
    results, launcher, _ = run_plan(broken, 300, "cpu", ends={"breaks": RuntimeError("no more processes")})
    assert results["breaks"].failed
    assert results["breaks"].reason == "it could not be run: RuntimeError: no more processes"
    assert results["cuda"].status == "not applicable"
    assert results["after"].reason == "needs the step 'cuda', which has not run"
    assert list(launcher.given) == ["breaks", "other", "still"]


CHECK = Check("tokens", "with and without", 10, 0, "tokens")


@pytest.mark.parametrize(
    ("differing", "allowed", "total", "passed"),
    [(0, 0.0, 10, True), (1, 0.0, 10, False), (1, 1e-3, 10, True), (2, 1e-3, 10, False), (0, 0.0, 0, False)],
)
def test_a_check_holds_within_what_is_allowed(differing: int, allowed: float, total: int, passed: bool) -> None:
    """One thing or the allowed share may differ where any may; and comparing nothing shows nothing."""
    assert Check("a", "b", total, differing, allowed=allowed).passed is passed


def test_rows_come_back_from_json() -> None:
    """What a step's process writes the report reads."""
    for row in [Fact("a", "b"), CHECK, Measure("rate", 2.5, "GB/s", 2.0, 3.0, 5, 0.98, "noted")]:
        assert row_from_json(json.loads(json.dumps(row_to_json(row)))) == row
    assert row_to_json(CHECK)["passed"] is True


def test_the_table_says_all() -> None:
    """Every row, whatever did not run and why, and the verdict."""
    wrong = Check("masks", "eager", 1_000_000, 4, "bits", 3e-6)
    results = [
        StepResult("good", "done", seconds=2.0, rows=[Fact("device", "none"), CHECK]),
        StepResult("bad", "done", rows=[wrong]),
        StepResult("broken", "failed", "ValueError: no", log=["last words"]),
        StepResult("late", "not run", "out of time"),
        StepResult("fast", "done", rows=[Measure("ratio", 0.97, "", 0.95, 0.99, 3, 0.98)]),
    ]
    assert render(results).splitlines() == [
        "good (done, 2.0 s)",
        "         device: none",
        "  ok     tokens: with and without: 0 of 10 tokens differ",
        "bad (FAILED)",
        "  FAILED masks: eager: 4 of 1,000,000 bits differ, 3e-06 of them may",
        "broken (FAILED): ValueError: no",
        "  | last words",
        "late (not run): out of time",
        "fast (done)",
        "         ratio: 0.97 (0.95 to 0.99, 3 rounds), goal 0.98 missed",
        "",
        "FAILED: bad; broken; 1 steps not run or cut short",
    ]
    assert verdict(results[:1]) == "passed: 1 checks hold"


def test_the_report_is_there_while_it_runs(tmp_path: Path) -> None:
    """A run that is killed has left what it found until then, under a verdict that says it was not finished."""
    seen: list[dict[str, Any]] = []
    output = tmp_path / "report.json"

    def launch(step: Step, seconds: float, tell: Callable[[Any], None]) -> Outcome:
        tell(CHECK)
        seen.append(json.loads(output.read_text()))
        return Outcome()

    settings = SelftestSettings("cpu", output, 8, folder=tmp_path / "work", only=("machine", "kernels"))
    run_selftest(settings, lambda _: None, launch)
    assert [report["verdict"] for report in seen] == ["running"] * 3
    (first, later, _) = seen[0]["steps"]
    assert first["rows"][0]["name"] == "tokens"
    assert (first["status"], later["status"]) == ("running", "waiting")
    last = json.loads(output.read_text())
    assert last["verdict"] == "passed: 3 checks hold"
    assert last["settings"]["device"] == "cpu"
    assert last["settings"]["sizes"]["prompts"] == CPU_SIZES.prompts


def test_a_used_folder_is_refused(tmp_path: Path) -> None:
    """Archives of an earlier run would be taken for this one's."""
    (tmp_path / "something").touch()
    with pytest.raises(InvalidInputError, match="folder must be new or empty"):
        run_selftest(SelftestSettings("cpu", tmp_path / "r.json", 1, folder=tmp_path), lambda _: None)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_plan_is_sound(device: Any, quick: bool) -> None:
    """Names are unique, what a step needs comes before it, its function exists, and all of it fits eight minutes."""
    from importlib import import_module

    plan = make_plan(device, quick=quick, cores=16)
    names: list[str] = []
    for stage in plan:
        for item in stage.steps:
            assert item.name not in names
            assert set(item.needs) <= set(names)
            names.append(item.name)
            module, _, function = item.work.partition(":")
            assert callable(getattr(import_module(module), function))
            json.dumps(item.arguments)
    assert sum(sum(item.least for item in stage.steps) / stage.at_once for stage in plan) < 8 * 60
    assert any("eager mode" in name for name in names)
    assert ("qwen2-moe float32: transformers" in names) is not quick
    assert ("speed of experts: capture" in names) is not quick
    assert ("speed: plain vLLM again" in names) is not quick


def test_some_steps_bring_what_they_need() -> None:
    """`only` picks steps by a part of their names, and what those need, and refuses a name that fits none."""
    plan = choose_steps(make_plan("cuda"), ["llama bfloat16: eager"])
    names = [item.name for stage in plan for item in stage.steps]
    assert names == ["models", "llama bfloat16: capture", "llama bfloat16: eager mode"]
    with pytest.raises(InvalidInputError, match="'speling' is in none of: machine, models"):
        choose_steps(make_plan("cuda"), ["speling"])


WORK = """
import os, subprocess, sys, time
from sparcom_verification.selftest.results import Fact

def speaks(context, *, word):
    context.tell(Fact("word", word))
    assert context.left > 0

def breaks(context):
    context.tell(Fact("word", "before"))
    print("printed")
    raise ValueError("as meant")

def hangs(context):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    context.tell(Fact("child", str(child.pid)))
    time.sleep(600)
"""


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., tuple[Outcome, list[Any]]]:
    """Run a function of WORK as a step, in a process of its own."""
    (tmp_path / "made_up_work.py").write_text(WORK)

    def run(function: str, seconds: float = 60, **arguments: Any) -> tuple[Outcome, list[Any]]:
        environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
        rows: list[Any] = []
        made = Step(f"a step: {function}", f"made_up_work:{function}", arguments, environment=environment)
        return run_step(made, tmp_path, "cpu", seconds, rows.append), rows

    return run


def test_a_steps_rows_come_from_its_process(launch: Any) -> None:
    """Arguments go in, rows come out, and it ends well."""
    assert launch("speaks", word="heard") == (Outcome(), [Fact("word", "heard")])


def test_a_step_that_raises_says_why(launch: Any) -> None:
    """The reason is the exception's, the log is kept, and what was told before counts."""
    outcome, rows = launch("breaks")
    assert outcome.reason == "ValueError: as meant"
    assert not outcome.killed
    assert outcome.log[0] == "printed"
    assert rows == [Fact("word", "before")]


def test_a_step_that_hangs_is_killed_with_its_children(launch: Any) -> None:
    """Nothing that it started outlives it, in whatever process group; its rows are kept."""
    outcome, rows = launch("hangs", seconds=5)
    assert outcome.killed
    (child,) = rows
    state = Path(f"/proc/{child.value}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_step_can_be_stopped(tmp_path: Path, launch: Any) -> None:
    """An interruption does not wait for the step's limit."""
    stop = threading.Event()
    threading.Timer(1, stop.set).start()
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    made = Step("a step", "made_up_work:hangs", environment=environment)
    assert run_step(made, tmp_path, "cpu", 300, lambda _: None, stop).killed


def test_what_is_interrupted_is_said() -> None:
    """The step that ran is cut short, and those after it have not run: neither is a failure."""
    stop = threading.Event()

    def interrupted(item: Step, seconds: float, tell: Callable[[Any], None]) -> Outcome:
        stop.set()
        return Outcome("killed", killed=True)

    plan = [Stage(((step("one"), step("two")),))]
    runner = Runner(plan, "cuda", Budget(100), interrupted, stop=stop)
    runner.run()
    assert [(item.status, item.reason) for item in runner.results.values()] == [
        ("cut short", "interrupted"),
        ("not run", "interrupted"),
    ]
    assert not runner.failed


def test_descendants_are_found_through_generations() -> None:
    """A child's child is one too."""
    import subprocess

    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(30)'])"
    with subprocess.Popen([sys.executable, "-c", code]) as child:
        until = time.monotonic() + 20
        while len(found := descendants(child.pid)) < 1 and time.monotonic() < until:
            time.sleep(0.05)
        assert child.pid in descendants(os.getpid())
        assert set(found) <= set(descendants(os.getpid()))
        for process in [*found, child.pid]:
            os.kill(process, 9)
    assert found


def test_the_tokenizer_has_a_token_for_every_byte_and_every_id(tmp_path: Path) -> None:
    """ASCII letters are a token each behind the first, any text comes back, and no generation ends by itself."""
    from transformers import AutoTokenizer

    make_byte_tokenizer(tmp_path, 300)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "ab é\n日"
    ids = tokenizer([text])["input_ids"][0]
    assert ids[0] == tokenizer.bos_token_id == 0
    assert len(ids) == 1 + len(text.encode())
    assert tokenizer.decode(ids[1:]) == text
    assert (len(tokenizer), tokenizer.eos_token_id) == (300, None)
    assert tokenizer.decode([299]) == "<|299|>"


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("llama-2-7b-shape", {"num_hidden_layers": 32, "intermediate_size": 11008, "hidden_size": 4096}),
        (
            "qwen1.5-moe-a2.7b-shape",
            {
                "num_hidden_layers": 24,
                "num_experts": 60,
                "num_experts_per_tok": 4,
                "moe_intermediate_size": 1408,
                "shared_expert_intermediate_size": 5632,
                "hidden_size": 2048,
                "decoder_sparse_step": 1,
                "mlp_only_layers": [],
            },
        ),
    ],
)
def test_the_timed_shapes_are_those_of_real_models(name: str, facts: dict[str, Any], tmp_path: Path) -> None:
    """transformers reads them as the sizes that the models have, with no end of sequence, and no weights are there."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(make_shape(tmp_path, name))
    assert {key: getattr(config, key) for key in facts} == facts
    assert config.eos_token_id is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_the_cuda_sizes_fit_together() -> None:
    """Long prompts are cut into several steps, all requests can begin together, and contexts hold what runs."""
    from sparcom_verification.selftest.lanes import make_texts
    from sparcom_verification.selftest.models import TINY_CONTEXT
    from sparcom_verification.selftest.speed import SPEED_CONTEXT

    for sizes in (CUDA_SIZES, CPU_SIZES):
        lengths = [len(text) + 1 for text in make_texts(sizes)]
        assert max(lengths) > 2 * sizes.step_tokens
        assert min(lengths) < 8
        assert len(set(make_texts(sizes))) == sizes.prompts
        assert max(lengths) + sizes.generated < TINY_CONTEXT
        assert max(sum(sizes.prefill[1:]), sum(sizes.decode[1:])) <= SPEED_CONTEXT
        assert max(sizes.prefill[0], sizes.decode[0]) <= 2 * sizes.speed_requests


@pytest.fixture
def archives(tmp_path: Path) -> tuple[Path, Path]:
    """An archive and its copy."""
    write_random_archive(tmp_path / "a.zarr")
    shutil.copytree(tmp_path / "a.zarr", tmp_path / "b.zarr")
    return tmp_path / "a.zarr", tmp_path / "b.zarr"


def test_equal_archives_pass(archives: tuple[Path, Path]) -> None:
    """All ids, all bits, and nothing for `verify` to find."""
    ids, bits = same_rows(*archives, "copy", "an archive and its copy", "float32")
    assert ids.passed
    assert bits.passed
    assert bits.total > ids.total > 0
    assert sound(archives[0], "copy").passed


def test_one_bit_or_one_id_that_differs_is_counted(archives: tuple[Path, Path]) -> None:
    """A flipped bit and another token id are each found once."""
    masks = zarr.open_array(archives[1] / "neuron" / "active", mode="r+")
    rows = np.asarray(masks[:8])
    rows[2, 0, 0] ^= 4
    masks[:8] = rows
    tokens = zarr.open_array(archives[1] / "token" / "id", mode="r+")
    tokens[1] = tokens[1] + 1
    ids, bits = same_rows(*archives, "copy", "an archive and its copy", "float32")
    assert (ids.differing, bits.differing) == (1, 1)


@pytest.fixture
def moe_archives(tmp_path: Path) -> tuple[Path, Path]:
    """An archive of a mixture of experts, and its copy."""
    write_random_moe_archive(tmp_path / "a.zarr")
    shutil.copytree(tmp_path / "a.zarr", tmp_path / "b.zarr")
    return tmp_path / "a.zarr", tmp_path / "b.zarr"


def change(archive: Path, name: str, change: Callable[[Any], None]) -> None:
    """Change the values of an array."""
    array = zarr.open_array(archive / name, mode="r+")
    values = np.asarray(array[:])
    change(values)
    array[:] = values


def moe_differences(one: Path, other: Path) -> dict[str, tuple[int, str]]:
    """What `same_rows` finds: how many differ, and the note, by what is compared."""
    checks = same_rows(one, other, "copy", "an archive and its copy", "float32")
    return {check.name.removeprefix("copy, "): (check.differing, check.note) for check in checks}


NOTHING = {"token ids": (0, ""), "routes": (0, ""), "combine weights": (0, ""), "masks": (0, "")}


def test_choices_in_another_order_are_the_same_choices(moe_archives: tuple[Path, Path]) -> None:
    """Two experts that weigh alike may change places, with their weights and their neurons; these alone may not."""

    def swap(values: Any) -> None:
        values[3, 0, [0, 1]] = values[3, 0, [1, 0]]

    assert moe_differences(*moe_archives) == NOTHING
    for name in ("router/expert", "router/weight"):
        change(moe_archives[1], name, swap)
    assert moe_differences(*moe_archives)["masks"][0] > 0
    change(moe_archives[1], "expert_neuron/active", swap)
    assert moe_differences(*moe_archives) == NOTHING


def test_what_differs_in_a_mixture_of_experts_is_counted(moe_archives: tuple[Path, Path]) -> None:
    """A weight, and a bit of a chosen and of a shared expert, are each found once."""

    def heavier(values: Any) -> None:
        values[0, 1, 0] += 1e-3

    def flip(values: Any) -> None:
        values.reshape(len(values), -1)[0, 0] ^= 1

    change(moe_archives[1], "router/weight", heavier)
    change(moe_archives[1], "expert_neuron/active", flip)
    change(moe_archives[1], "shared_expert_neuron/active", flip)
    assert moe_differences(*moe_archives) == NOTHING | {"combine weights": (1, ""), "masks": (2, "")}


def test_rows_after_another_choice_are_compared_by_their_choices_alone(moe_archives: tuple[Path, Path]) -> None:
    """What a model computes from another expert on is not rounding: bits from there on are left out, and said to be;
    choices are compared to the end."""
    archive = open_archive(moe_archives[0])
    start, length = int(archive.instructions.token_start[1]), int(archive.instructions.token_length[1])
    assert archive.moe is not None

    def other(values: Any) -> None:
        for row in (start + 1, start + length - 1):
            values[row, 0, 0] = next(e for e in range(archive.moe.experts) if e not in values[row, 0])  # type: ignore[union-attr]

    def flip(values: Any) -> None:
        values.reshape(len(values), -1)[[start, start + 1], 0] ^= 1

    change(moe_archives[1], "router/expert", other)
    change(moe_archives[1], "neuron/active", flip)
    left_out = f"{length - 1} rows after another choice of experts left out"
    assert moe_differences(*moe_archives) == NOTHING | {"routes": (2, ""), "masks": (1, left_out)}


def test_counts_of_experts_are_held_against_rows(tmp_path: Path) -> None:
    """Of every component: choices, neurons of chosen, shared and dense FFNs."""
    write_random_moe_archive(tmp_path / "masks.zarr", seed=1)
    write_random_moe_archive(tmp_path / "counts.zarr", seed=1, granularity="count")
    check = same_counts(tmp_path / "counts.zarr", tmp_path / "masks.zarr", "same")
    assert check.passed
    for name in ("router/count", "expert_neuron/count", "shared_expert_neuron/count", "neuron/count"):
        damaged = tmp_path / f"{name.replace('/', '-')}.zarr"
        shutil.copytree(tmp_path / "counts.zarr", damaged)
        change(damaged, name, lambda values: values.reshape(-1).__setitem__(0, 99))
        assert same_counts(damaged, tmp_path / "masks.zarr", "other").differing == 1


def test_counts_are_held_against_masks(tmp_path: Path) -> None:
    """Counts of the same rows are equal; those of others are not."""
    write_random_archive(tmp_path / "masks.zarr", seed=1)
    write_random_archive(tmp_path / "counts.zarr", seed=1, granularity="count")
    write_random_archive(tmp_path / "other.zarr", seed=2, granularity="count")
    assert same_counts(tmp_path / "counts.zarr", tmp_path / "masks.zarr", "same").passed
    wrong = same_counts(tmp_path / "other.zarr", tmp_path / "masks.zarr", "other")
    assert wrong.differing > wrong.total / 10


def test_a_token_too_few_differs() -> None:
    """Tokens are compared one by one, and a shorter list differs in what it lacks."""
    assert same_values([[1, 2, 3], [4]], [[1, 2, 3], [4]], "a", "b", "tokens").passed
    check = same_values([[1, 2, 3], [4]], [[1, 9], [4]], "a", "b", "tokens")
    assert (check.total, check.differing) == (4, 2)


def test_a_broken_part_does_not_hide_the_others() -> None:
    """All parts run, and the end names those that broke and why."""
    import asyncio

    from sparcom_verification.selftest.attempts import Attempts

    async def works() -> int:
        return 7

    async def breaks() -> int:
        raise ValueError("as meant")

    async def both() -> Attempts:
        attempts = Attempts()
        assert await attempts.run("one", breaks()) is None
        assert await attempts.run("two", works()) == 7
        assert (attempts.broken("one"), attempts.broken("two")) == (True, False)
        return attempts

    attempts = asyncio.run(both())
    with pytest.raises(RuntimeError, match=r"^one: ValueError: as meant$"):
        attempts.finish()


def test_timed_loads_are_what_the_sizes_say() -> None:
    """Random ids within the vocabulary, no two prompts alike, a place for every row that is computed, and no zeros."""
    from sparcom_verification.selftest.speed import make_loads

    prefill, decode = make_loads(CUDA_SIZES, 32000)
    assert (len(prefill.prompts), prefill.tokens) == (512, 512 * 512)
    assert (len(decode.prompts), decode.tokens) == (512, 512 * (32 + 191))
    ids = np.array(prefill.prompts)
    assert 0 < ids.min() <= ids.max() < 32000
    assert len({tuple(prompt) for prompt in decode.prompts}) == 512
    plans = list(decode.plans("s"))
    rows = [(plan["row"], plan["row"] + plan["end"] - plan["begin"]) for plan in plans]
    assert all(before[1] == after[0] for before, after in pairwise(rows))
    assert rows[-1][1] == decode.tokens
    assert decode.part(4).prompts == decode.prompts[:128]
    assert decode.options("count").granularity == "count"
    assert prefill.options("token").max_tokens == 0


def test_rounds_stop_where_the_time_does(tmp_path: Path) -> None:
    """Ways take turns; the seldom ones run in two rounds, and no round begins that would not end in time."""
    import asyncio

    from sparcom_verification.selftest.attempts import Attempts
    from sparcom_verification.selftest.process import Context
    from sparcom_verification.selftest.speed import _in_turn

    ran: list[str] = []

    def way(name: str) -> Any:
        async def run() -> float:
            ran.append(name)
            return 1.0

        return run

    async def broken() -> float:
        raise ValueError("as meant")

    works = {"prefill, op alone": way("a"), "prefill, to host": way("b"), "prefill, counted": broken}

    def rounds(seconds: float) -> tuple[dict[str, list[float]], list[Any]]:
        told: list[Any] = []
        ran.clear()
        context = Context(tmp_path, "cpu", told.append, time.monotonic() + seconds)
        return asyncio.run(_in_turn(context, works, 4, Attempts())), told

    seconds, told = rounds(1000)
    assert ran == ["a", "b", "a", "b", "a", "a"]
    assert seconds == {"prefill, op alone": [1.0] * 4, "prefill, to host": [1.0] * 2, "prefill, counted": []}
    assert told == []
    _, told = rounds(1)
    assert ran == ["a", "b"]
    assert told == [Fact("rounds", "1 of 4: out of time")]
