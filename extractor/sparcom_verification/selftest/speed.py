"""The steps that time: tokens a second of the engine alone and with capture, same settings, same prompts.

One engine at a time: a shape with made-up weights (LLaMA-2-7B's; Qwen1.5-MoE-A2.7B's) fits a device once. Two loads,

    prefill   many prompts of some hundred tokens, one token generated
    decode    many short prompts, some hundred tokens generated

and the engine with capture runs each in several ways, in turn in every round; see `ways`.

A ratio is the engine alone over the engine with capture, medians of their rounds; its spread is that of the extremes.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from sparcom_data.instructions import Instruction
from sparcom_data.schema.options import ExtractionOptions
from sparcom_extractor.engine import CaptureEngine
from sparcom_extractor.settings import EngineSettings
from sparcom_verification.selftest.attempts import Attempts
from sparcom_verification.selftest.engines import generate, running
from sparcom_verification.selftest.models import tiny_model_folder
from sparcom_verification.selftest.plan import TIMED
from sparcom_verification.selftest.results import Fact, Measure
from sparcom_verification.selftest.ways import OFTEN, OP_ALONE, WRITTEN, Run, Ways

if TYPE_CHECKING:
    from sparcom_data.schema.metadata import Granularity
    from sparcom_verification.selftest.plan import Sizes
    from sparcom_verification.selftest.process import Context

GOAL = 0.98
GOAL_OF = ("speed", "cuda")
LOADS = ("prefill", "decode")
SPEED_MEMORY_SHARE = 0.9
SPEED_CONTEXT = 1024
WARM_UP_PART = 4  # a quarter of a load
SELDOM_ROUNDS = 2
FIXED_COST_ROUNDS = 5
ALWAYS = (*OFTEN, *LOADS)  # ways, and the engine alone
CLOSING_SECONDS = 8.0  # an engine takes some to end


@dataclass(frozen=True, slots=True)
class Load:
    """One kind of work: token ids of every prompt, and how many tokens each generates."""

    name: str
    prompts: list[list[int]]
    generated: int

    def part(self, share: int) -> Load:
        """One of so many parts of it."""
        return Load(self.name, self.prompts[: -(-len(self.prompts) // share)], self.generated)

    @property
    def tokens(self) -> int:
        """Tokens that the model computes: all but the last generated one of each prompt, which is never fed to it."""
        return sum(map(len, self.prompts)) + len(self.prompts) * (self.generated - 1)

    @property
    def instructions(self) -> list[Instruction]:
        """The prompts as instructions."""
        return [Instruction(id=str(number), token_ids=tuple(ids)) for number, ids in enumerate(self.prompts)]

    def plans(self, session: str) -> Iterator[dict[str, Any]]:
        """Where an extraction of this load into `session` would have the rows of each prompt go."""
        row = 0
        for index, ids in enumerate(self.prompts):
            rows = len(ids) + self.generated - 1
            yield {"session": session, "index": index, "row": row, "begin": 0, "end": rows, "open": self.generated > 1}
            row += rows

    def options(self, granularity: Granularity) -> ExtractionOptions:
        """Options that capture every token that is computed."""
        if self.generated == 1:
            return ExtractionOptions(granularity=granularity)
        return ExtractionOptions(granularity=granularity, positions="all", max_tokens=self.generated)


def make_loads(sizes: Sizes, vocabulary: int) -> list[Load]:
    """Both loads, of random token ids: equal ones would make equal rows, which memory and disk may favour."""
    draw = np.random.default_rng(5)
    loads = []
    for name, (prompts, length, generated) in zip(LOADS, (sizes.prefill, sizes.decode), strict=True):
        ids = draw.integers(1, vocabulary, size=(prompts, length)).tolist()
        loads.append(Load(name, ids, generated))
    return loads


def speed_settings(context: Context, timed: str, *, capture: bool) -> EngineSettings:
    """Those of all timed engines of a model: on CUDA a real shape; elsewhere a tiny one, which shows that it runs."""
    sizes, cuda, name = context.sizes, context.device == "cuda", TIMED[timed][context.device]
    return EngineSettings(
        model=str(context.folder / name if cuda else tiny_model_folder(context.folder, name)),
        dtype="bfloat16" if cuda else "float32",
        max_model_len=SPEED_CONTEXT,
        max_num_batched_tokens=sizes.speed_step_tokens,
        max_num_seqs=sizes.speed_requests,
        gpu_memory_utilization=SPEED_MEMORY_SHARE if cuda else None,
        kv_cache_gib=None if cuda else 0.25,
        capture=capture,
        load_format="dummy" if cuda else "auto",
    )


def speed_plain(context: Context, *, timed: str, rounds: int, label: str) -> None:
    """Step: the engine alone."""
    asyncio.run(_speed_plain(context, timed, rounds, label))


async def _speed_plain(context: Context, timed: str, rounds: int, label: str) -> None:
    attempts = Attempts()
    async with running(context, speed_settings(context, timed, capture=False)) as engine:
        loads = make_loads(context.sizes, len(engine.tokenizer))
        for load in loads:
            await _timed_plain(engine, load.part(WARM_UP_PART))()
        seconds = await _in_turn(context, {load.name: _timed_plain(engine, load) for load in loads}, rounds, attempts)
    attempts.finish()
    _plain_file(context, timed, label).write_text(json.dumps(seconds))
    first = _plain_seconds(context, timed) or seconds
    for load in loads:
        context.tell(_rate(f"{load.name}, plain", load, seconds[load.name]))
        if label != "first":
            drift = _ratio(f"{load.name}, plain first / again", first[load.name], seconds[load.name], "drift")
            context.tell(drift)


def speed_capture(context: Context, *, timed: str, rounds: int, ways: list[str]) -> None:
    """Step: the engine with capture, in these ways."""
    asyncio.run(_speed_capture(context, timed, rounds, ways))


async def _speed_capture(context: Context, timed: str, rounds: int, wanted: Sequence[str]) -> None:
    attempts = Attempts()
    async with running(context, speed_settings(context, timed, capture=True)) as engine:
        loads = make_loads(context.sizes, len(engine.tokenizer))
        await _warm_up(Ways(engine, context.folder, wanted), loads, attempts)
        ways = Ways(engine, context.folder, wanted)
        works = {f"{load.name}, {name}": work for load in loads for name, work in ways.of(load).items()}
        for fact in (fact for load in loads for fact in ways.left_out(load)):
            context.tell(fact)
        seconds = await _in_turn(context, works, rounds, attempts)
        await attempts.run("fixed cost", _tell_fixed_cost(context, engine, loads[0]))
    plain = _plain_seconds(context, timed)
    for load in loads:
        for name in (name for name in works if name.startswith(f"{load.name}, ") and seconds[name]):
            context.tell(_rate(name, load, seconds[name]))
            if plain:
                goal = GOAL if name.endswith(WRITTEN) and (timed, context.device) == GOAL_OF else None
                context.tell(_ratio(f"{name} / plain", plain[load.name], seconds[name], goal=goal))
    for row in ways.rows():
        context.tell(row)
    attempts.finish()


async def _tell_fixed_cost(context: Context, engine: CaptureEngine, load: Load) -> None:
    """What an extraction takes beside its tokens: opening, polling, committing. A part of every round, however long."""
    one = load.part(len(load.prompts))
    ways = Ways(engine, context.folder).of(one)
    pairs = [(await ways[WRITTEN](), await ways[OP_ALONE]()) for _ in range(FIXED_COST_ROUNDS)]
    costs = sorted(written - alone for written, alone in pairs)
    note = "in every round that is written or counted"
    context.tell(Measure("extraction, fixed cost", median(costs), "s", costs[0], costs[-1], len(costs), note=note))


async def _warm_up(ways: Ways, loads: Sequence[Load], attempts: Attempts) -> None:
    """Every way once, with a part of each load, and by `Ways` of its own: what they say of themselves is not kept."""
    for load in (load.part(WARM_UP_PART) for load in loads):
        for name, work in ways.of(load).items():
            await attempts.run(f"{load.name}, {name}", work())


def _timed_plain(engine: CaptureEngine, load: Load) -> Run:
    async def run() -> float:
        return (await generate(engine, load.prompts, load.generated)).seconds

    return run


async def _in_turn(context: Context, works: dict[str, Run], rounds: int, attempts: Attempts) -> dict[str, list[float]]:
    """Seconds of every way, round by round; fewer rounds where the time does not suffice.

    A way that breaks is left out from then on; the others go on.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        started = time.monotonic()
        for name, work in works.items():
            if attempts.broken(name) or (number >= SELDOM_ROUNDS and not name.endswith(ALWAYS)):
                continue
            if (took := await attempts.run(name, work())) is not None:
                seconds[name].append(took)
        longest = 1.2 * (time.monotonic() - started)
        if number + 1 < rounds and context.left < longest + CLOSING_SECONDS:
            context.tell(Fact("rounds", f"{number + 1} of {rounds}: out of time"))
            break
    return seconds


def _rate(name: str, load: Load, seconds: Sequence[float]) -> Measure:
    rates = sorted(load.tokens / value for value in seconds)
    return Measure(name, load.tokens / median(seconds), "tokens/s", rates[0], rates[-1], len(rates))


def _ratio(
    name: str, plain: Sequence[float], other: Sequence[float], note: str = "", goal: float | None = None
) -> Measure:
    low, high = min(plain) / max(other), max(plain) / min(other)
    return Measure(name, median(plain) / median(other), "", low, high, len(other), goal, note)


def _plain_file(context: Context, timed: str, label: str) -> Path:
    return context.folder / f"plain-{TIMED[timed][context.device]}-{label}.json"


def _plain_seconds(context: Context, timed: str) -> dict[str, Any] | None:
    """What the first plain engine took, or None where it has not run."""
    file = _plain_file(context, timed, "first")
    return json.loads(file.read_text()) if file.exists() else None
