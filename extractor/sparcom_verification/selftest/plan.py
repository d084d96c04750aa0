"""Which steps a self-test has, in which order, and how long each may take.

    machine ─▶ models ─▶ kernels and lanes, side by side ─▶ kernel timings ─▶ speed: plain, capture, plain again;
    speed of experts: plain, capture

A lane is what is asked of one model and dtype, one engine after the other: tokens without capture, then with, then the
same rows computed eagerly, then by transformers. Lanes share the device; what is timed runs alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

_HERE = "sparcom_verification.selftest"

Device = Literal["cuda", "cpu"]
MODELS = "models"  # the step that makes them
FULL_MINUTES = 8.0  # the seconds below are those of a run of eight minutes
CORES_PER_LANE = 2  # an engine keeps two processes busy while it compiles


@dataclass(frozen=True, slots=True)
class Step:
    """One step: `work` is its function, `module:name`, called with a `process.Context` and `arguments`.

    seconds: the most it may take. least: with fewer left it is not begun. needs: steps that must have run before.
    environment: variables of its process; `{folder}` is the work folder. cuda: it says nothing on another device.
    """

    name: str
    work: str
    arguments: dict[str, Any] = field(default_factory=dict)
    seconds: float = 60.0
    least: float = 10.0
    needs: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    cuda: bool = False


@dataclass(frozen=True, slots=True)
class Stage:
    """Lanes that run side by side, so many at once; the steps of a lane run one after the other."""

    lanes: tuple[tuple[Step, ...], ...]
    at_once: int = 1

    @property
    def steps(self) -> Iterator[Step]:
        """All steps, lane by lane."""
        for lane in self.lanes:
            yield from lane


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large everything is: the tiny models and what runs through them, and what runs through those that are timed.

    step_tokens: max_num_batched_tokens of the lanes, small enough that long prompts are cut. prefill, decode: (prompts,
    tokens of each, generated tokens) of the timed loads. speed_step_tokens, speed_requests: the timed engine's
    max_num_batched_tokens and max_num_seqs. kernel_rows: rows of the timed kernels.
    """

    layers: int
    prompts: int
    longest: int
    generated: int
    step_tokens: int
    prefill: tuple[int, int, int]
    decode: tuple[int, int, int]
    speed_step_tokens: int
    speed_requests: int
    rounds: int
    kernel_rows: tuple[int, ...]


CUDA_SIZES = Sizes(
    layers=4,
    prompts=32,
    longest=700,
    generated=65,  # 64 of them are fed to the model again and have rows
    step_tokens=256,
    prefill=(512, 512, 1),
    decode=(512, 32, 192),  # twice as many as run at once: what is written after the last token is a smaller part
    speed_step_tokens=8192,
    speed_requests=256,
    rounds=4,
    kernel_rows=(1, 256, 8192),
)
CPU_SIZES = Sizes(
    layers=2,
    prompts=6,
    longest=90,
    generated=5,
    step_tokens=32,
    prefill=(8, 24, 1),
    decode=(4, 4, 8),
    speed_step_tokens=64,
    speed_requests=8,
    rounds=1,
    kernel_rows=(1, 16),
)
SIZES: dict[Device, Sizes] = {"cuda": CUDA_SIZES, "cpu": CPU_SIZES}

# Of dense and shared FFNs; the first fills neither a byte nor an aligned row.
NEURONS = {"llama": 1003, "gemma": 1000, "qwen2": 1016, "qwen2-moe": 1016, "mixtral": 176}
EXPERT_NEURONS = 176  # of one routed expert: no power of two, and what every kernel of vLLM's takes
# Whose speed is measured: on CUDA a shape with made-up weights (`models.SHAPES`), elsewhere a tiny model.
TIMED: dict[str, dict[Device, str]] = {
    "speed": {"cuda": "llama-2-7b-shape", "cpu": "llama"},
    "speed of experts": {"cuda": "qwen1.5-moe-a2.7b-shape", "cpu": "qwen2-moe"},
}
EXPERT_ROUNDS = 2
WAYS = ["op alone", "to host", "in memory", "written", "counted"]  # see `ways`
EXPERT_WAYS = ["op alone", "written"]

# In float32 Triton's matrix products round their inputs to TF32 unless told otherwise, vLLM's attention kernel among
# them: 3e-4 of a value, which would move a thousand times more bits than float32 does.
EXACT_FLOAT32 = {"TRITON_F32_DEFAULT": "ieee"}
# Lanes run side by side: two that compile the same graph must not write the same files. Nor may a kernel that was
# compiled without EXACT_FLOAT32 be taken for one with it.
OWN_CACHES = ("VLLM_CACHE_ROOT", "TRITON_CACHE_DIR")
# TorchInductor otherwise times variants of a reduction and keeps the fastest: two engines may then add up in two
# orders, and differ in the last bit of a log-probability whatever capture does.
SAME_CODE = {"TORCHINDUCTOR_DETERMINISTIC": "1"}
V1_RUNNER = {"VLLM_USE_V2_MODEL_RUNNER": "0"}


def make_plan(device: Device, *, quick: bool = False, cores: int | None = None) -> list[Stage]:
    """All stages of a self-test. quick: one model, no experts, and the timings with a round less."""
    sizes = SIZES[device]
    at_once = max(1, (cores or os.cpu_count() or 1) // CORES_PER_LANE)
    kernels = (
        Step("kernels", f"{_HERE}.kernels:check_kernels", seconds=240),
        Step("kernels of experts", f"{_HERE}.expert_kernels:check_expert_kernels", seconds=60),
    )
    rounds = sizes.rounds - 1 if quick and sizes.rounds > 1 else sizes.rounds
    return [
        _one_lane(Step("machine", f"{_HERE}.machine:describe_machine", seconds=40)),
        _one_lane(Step(MODELS, f"{_HERE}.models:make_models", {"architectures": sorted(NEURONS)}, 60, 30)),
        Stage((kernels, *_lanes(device, quick)), at_once),
        _one_lane(
            Step("kernel timings", f"{_HERE}.kernels:time_kernels", {"rows": sizes.kernel_rows}, seconds=40, cuda=True),
            *_speed(rounds, quick),
        ),
    ]


def _one_lane(*steps: Step) -> Stage:
    return Stage((steps,))


def _lanes(device: Device, quick: bool) -> tuple[tuple[Step, ...], ...]:
    """Every lane keeps to the same rules; only what takes longest is not asked of all."""
    lanes = [_lane("llama", "float32"), _lane("llama", "bfloat16")]
    if not quick:
        lanes += [
            _lane("qwen2-moe", "float32"),
            _lane("mixtral", "float32", eager=False),
            _lane("gemma", "float32"),
            _lane("qwen2", "float32", eager=False),
            _lane("gemma", "bfloat16", eager=False),
            _lane("qwen2", "bfloat16", eager=False),
        ]
        if device == "cuda":  # there LLaMA runs on version 2 of the model runner by default
            lanes.append(_lane("llama", "float32", runner_v1=True, eager=False))
            lanes.append(_lane("qwen2-moe", "bfloat16", eager=False))  # vLLM's experts on a CPU: float32 alone
    return tuple(lanes)


def _lane(architecture: str, dtype: str, *, runner_v1: bool = False, eager: bool = True) -> tuple[Step, ...]:
    label = f"{architecture} {dtype}{' runner V1' if runner_v1 else ''}"
    arguments = {"architecture": architecture, "dtype": dtype, "label": label}
    environment = {name: f"{{folder}}/cache/{label.replace(' ', '-')}/{name}" for name in OWN_CACHES}
    environment |= SAME_CODE | (EXACT_FLOAT32 if dtype == "float32" else {}) | (V1_RUNNER if runner_v1 else {})

    def step(name: str, work: str, seconds: float, least: float, needs: str = MODELS, **more: Any) -> Step:
        function = f"{_HERE}.lanes:{work}"
        return Step(f"{label}: {name}", function, arguments, seconds, least, (needs,), environment, **more)

    capture = step("capture", "capture", 130, 30)
    steps = [step("tokens without capture", "plain_tokens", 100, 20), capture]
    if eager:
        steps.append(step("eager mode", "eager", 80, 20, capture.name, cuda=True))
    steps.append(step("transformers", "transformers", 60, 10, capture.name))
    return tuple(steps)


def _speed(rounds: int, quick: bool) -> list[Step]:
    """Experts come before the engine alone again, which is what a short run may do without."""
    few = {"rounds": min(rounds, EXPERT_ROUNDS), "timed": "speed of experts"}
    full = {"rounds": rounds, "timed": "speed"}
    steps = [
        _speed_step("plain vLLM", "speed_plain", 120, 60, {**full, "label": "first"}),
        _speed_step("capture", "speed_capture", 200, 60, {**full, "ways": WAYS}),
    ]
    if not quick:
        steps += [
            _speed_step("plain vLLM", "speed_plain", 90, 40, {**few, "label": "first"}),
            _speed_step("capture", "speed_capture", 120, 50, {**few, "ways": EXPERT_WAYS}),
            _speed_step("plain vLLM again", "speed_plain", 90, 40, {**full, "label": "again"}),
        ]
    return steps


def _speed_step(name: str, work: str, seconds: float, least: float, arguments: dict[str, Any]) -> Step:
    return Step(f"{arguments['timed']}: {name}", f"{_HERE}.speed:{work}", arguments, seconds, least, (MODELS,))
