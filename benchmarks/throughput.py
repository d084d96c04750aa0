"""Tokens per second with and without capture; memory of the engine's worker.

The speed of a shared machine varies. Rounds of vLLM with and without capture therefore alternate, and the ratio is the
median over rounds. The processes of the other engine are suspended during a measurement.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from workload import Workload, describe, many_instructions, peak_mib

from sparcom_data.archive import open_archive
from sparcom_data.instructions import Instruction
from sparcom_data.schema.options import ExtractionOptions
from sparcom_extractor.engine import CaptureEngine
from sparcom_extractor.settings import EngineSettings
from sparcom_verification.selftest import generate

PER_CATEGORY = 25
RESPONSE = 64  # tokens of the decode-heavy load
PROMPTS_ONLY = ExtractionOptions()
MEMORY_COUNTS = (100, 1000)


async def measure_throughput(workload: Workload) -> dict[str, Any]:
    """Measure capture against vLLM alone."""
    instructions = workload.instructions(PER_CATEGORY)
    ids = workload.token_ids(instructions)
    settings = EngineSettings(str(workload.model))
    results = await compare_capture(settings, instructions, ids, workload, goal=0.96)
    decode = ExtractionOptions(positions="all", max_tokens=RESPONSE)
    few = list(range(0, len(ids), 2))  # decoding takes longer
    found = await compare_capture(
        settings, [instructions[n] for n in few], [ids[n] for n in few], workload, goal=0.95, options=decode
    )
    return results | {f"decode-heavy: {key}": value for key, value in found.items()}


async def compare_capture(
    settings: EngineSettings,
    instructions: Sequence[Instruction],
    ids: Sequence[list[int]],
    workload: Workload,
    goal: float,
    options: ExtractionOptions = PROMPTS_ONLY,
) -> dict[str, Any]:
    """Return tokens/s with and without capture, and their ratios. The first round is a warm-up and not counted.
    Tokens are those fed to the model: the last of a response is not."""
    engines = {}
    processes = {}
    for name in ("plain", "capture"):
        before = set(psutil.Process().children(recursive=True))
        engines[name] = await CaptureEngine.start(replace(settings, capture=name == "capture"))
        processes[name] = set(psutil.Process().children(recursive=True)) - before
    seconds: dict[str, list[float]] = {"capture": [], "plain": []}
    fed: dict[str, int] = {}
    for number in range(workload.rounds + 1):
        for name in ("plain", "capture") if number % 2 else ("capture", "plain"):
            with stopped(processes["plain" if name == "capture" else "capture"]):
                if name == "capture":
                    took, fed[name] = await extract(
                        engines[name], instructions, workload.output / "round.zarr", options
                    )
                else:
                    took, fed[name] = await _generate(engines[name], ids, options)
            if number:
                seconds[name].append(took)
    for engine in engines.values():
        await engine.close()
    ratios = [plain / capture for plain, capture in zip(seconds["plain"], seconds["capture"], strict=True)]
    tokens = fed["capture"]
    assert fed["plain"] == tokens, f"both engines must run the same tokens; they ran {fed}"
    return {
        "instructions": len(ids),
        "tokens": tokens,
        "tokens/s, capture and writing": tokens / statistics.median(seconds["capture"]),
        "tokens/s, vLLM alone": tokens / statistics.median(seconds["plain"]),
        f"capture / vLLM alone (goal {goal}), median": statistics.median(ratios),
        "capture / vLLM alone, all rounds": describe(ratios),
    }


@contextmanager
def stopped(processes: set[psutil.Process]) -> Iterator[None]:
    """Suspend processes while the block runs."""
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


async def extract(
    engine: CaptureEngine, instructions: Sequence[Instruction], path: Path, options: ExtractionOptions = PROMPTS_ONLY
) -> tuple[float, int]:
    """Return the seconds of one extraction, without its preparation, and the number of its tokens."""
    shutil.rmtree(path, ignore_errors=True)
    extraction = engine.prepare(instructions, options, path)
    started = time.perf_counter()
    progress = await extraction.run()
    took = time.perf_counter() - started
    assert progress.complete == len(instructions), progress
    return took, int(open_archive(path).instructions.token_length.sum())


async def _generate(engine: CaptureEngine, ids: Sequence[list[int]], options: ExtractionOptions) -> tuple[float, int]:
    """Return the seconds for greedy responses, one token without `max_tokens`, and the number of tokens fed."""
    started = time.perf_counter()
    found = await generate(engine, ids, max(1, options.max_tokens), in_flight=engine.max_in_flight, logprobs=False)
    took = time.perf_counter() - started
    return took, sum(map(len, ids)) + sum(len(tokens) - 1 for tokens in found.tokens)


async def measure_memory(workload: Workload) -> dict[str, Any]:
    """Measure the peak memory of vLLM's worker at 100 and at 1,000 instructions, each in a fresh engine."""
    results: dict[str, Any] = {}
    peaks = []
    for count in MEMORY_COUNTS:
        engine = await CaptureEngine.start(EngineSettings(str(workload.model)))
        await extract(engine, many_instructions(count), workload.output / "memory.zarr")
        peaks.append(max(peak_mib(child.pid) for child in psutil.Process().children(recursive=True)))
        results[f"peak MiB of the largest engine process, {count:,} instructions"] = peaks[-1]
        await engine.close()
        shutil.rmtree(workload.output / "memory.zarr")
    return results | {"peak at 1,000 / peak at 100": peaks[1] / peaks[0]}
