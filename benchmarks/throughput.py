"""Tokens a second of four ways to learn which neurons fired, and of the engine that looks at nothing.

Rounds of vLLM with and without capture alternate, and the ratio is the median over rounds: this machine's speed
changes with its neighbours. The processes of the engine that is not measured are stopped meanwhile.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from workload import natural

from sparcom_data.schema.options import ExtractionOptions
from sparcom_extractor.engine import CaptureEngine
from sparcom_extractor.prompts import load_tokenizer, make_prompts
from sparcom_extractor.settings import EngineSettings

ROUNDS = 5
PER_CATEGORY = 25
BATCH = 8


async def measure_throughput(model: Path, output: Path) -> dict[str, Any]:
    instructions = natural(PER_CATEGORY)
    prompts = make_prompts(load_tokenizer(str(model)), instructions, ExtractionOptions(), 8191)
    ids = [prompt.ids.tolist() for prompt in prompts]
    tokens = sum(map(len, ids))
    seconds = await in_turn(EngineSettings(str(model)), instructions, ids, output / "round.zarr")
    one, batched = _transformers(model, ids)
    capture_rate = tokens / statistics.median(seconds["capture"])
    return {
        "instructions": len(ids),
        "tokens": tokens,
        "tokens/s, capture and writing": capture_rate,
        "tokens/s, vLLM alone": tokens / statistics.median(seconds["plain"]),
        "tokens/s, transformers with hooks, one prompt at a time": tokens / one,
        "tokens/s, transformers with hooks, sorted batches of 8": tokens / batched,
        **ratios(seconds, "goal 0.97"),
        "capture / transformers one at a time (goal 1.8)": capture_rate * one / tokens,
        "capture / transformers sorted batches (goal 1.2)": capture_rate * batched / tokens,
    }


async def in_turn(
    settings: EngineSettings, instructions: Sequence[Any], ids: Sequence[list[int]], path: Path, rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Seconds of each round with capture (`capture`) and without (`plain`), the first round left out."""
    plain, plain_processes = await _start(replace(settings, capture=False))
    capture, capture_processes = await _start(settings)
    others = {"plain": capture_processes, "capture": plain_processes}
    seconds: dict[str, list[float]] = {"capture": [], "plain": []}
    for number in range(rounds + 1):
        for name in ("plain", "capture") if number % 2 else ("capture", "plain"):
            with _stopped(others[name]):
                took = (
                    await _run_plain(plain, ids) if name == "plain" else await _run_capture(capture, instructions, path)
                )
            if number:  # the first round warms up
                seconds[name].append(took)
    await plain.close()
    await capture.close()
    return seconds


def ratios(seconds: dict[str, list[float]], goal: str) -> dict[str, float]:
    """Speed with capture over speed without, over the rounds."""
    found = [a / b for a, b in zip(seconds["plain"], seconds["capture"], strict=True)]
    return {
        f"capture / vLLM alone ({goal}), median": statistics.median(found),
        "capture / vLLM alone, best round of each": min(seconds["plain"]) / min(seconds["capture"]),
        "capture / vLLM alone, lowest round": min(found),
        "capture / vLLM alone, highest round": max(found),
    }


async def _start(settings: EngineSettings) -> tuple[CaptureEngine, list[psutil.Process]]:
    """An engine and its processes."""
    before = set(psutil.Process().children(recursive=True))
    engine = await CaptureEngine.start(settings)
    return engine, [process for process in psutil.Process().children(recursive=True) if process not in before]


@contextmanager
def _stopped(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """Keep processes from taking any of the machine's time."""
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in reversed(processes):
            process.resume()


async def _run_capture(engine: CaptureEngine, instructions: Sequence[Any], path: Path) -> float:
    shutil.rmtree(path, ignore_errors=True)
    extraction = engine.prepare(instructions, ExtractionOptions(), path)
    started = time.perf_counter()
    progress = await extraction.run()
    took = time.perf_counter() - started
    assert progress.complete == len(instructions), progress
    return took


async def _run_plain(engine: CaptureEngine, prompts: Sequence[list[int]]) -> float:
    """The same prompts through the same engine without capture: nothing is written."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    slots = asyncio.Semaphore(engine.max_in_flight)

    async def one(number: int, ids: list[int]) -> None:
        async with slots:
            parameters = SamplingParams(
                max_tokens=1, temperature=0.0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
            )
            prompt = {"type": "token", "prompt_token_ids": ids}
            async for _ in engine.llm.generate(prompt, parameters, request_id=f"{time.monotonic_ns()}-{number}"):
                pass

    started = time.perf_counter()
    await asyncio.gather(*(one(number, ids) for number, ids in enumerate(prompts)))
    return time.perf_counter() - started


def _transformers(model: Path, prompts: Sequence[list[int]]) -> tuple[float, float]:
    """Seconds for one prompt at a time and for length-sorted padded batches; masks are packed and kept in memory."""
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    torch.set_num_threads(2)
    kept: list[Any] = []

    def hook(_module: Any, _inputs: Any, gate: torch.Tensor) -> None:
        kept.append(np.packbits(gate.numpy() > 0, axis=-1, bitorder="little"))

    for name, module in loaded.named_modules():
        if name.endswith("gate_proj"):
            module.register_forward_hook(hook)
    ordered = sorted(prompts, key=len)
    batches = [ordered[first : first + BATCH] for first in range(0, len(ordered), BATCH)]
    one = min(_timed(lambda: _forward(loaded, [[prompt] for prompt in prompts], kept)) for _ in range(2))
    return one, min(_timed(lambda: _forward(loaded, batches, kept)) for _ in range(2))


@torch.inference_mode()
def _forward(model: Any, batches: Sequence[Sequence[list[int]]], kept: list[Any]) -> None:
    kept.clear()
    for batch in batches:
        width = max(map(len, batch))
        ids = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in batch])
        mask = torch.tensor([[1] * len(prompt) + [0] * (width - len(prompt)) for prompt in batch])
        model.model(input_ids=ids, attention_mask=mask, use_cache=False)


def _timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
