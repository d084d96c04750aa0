"""The analysis of a mixture of experts of Qwen1.5-MoE-A2.7B's shape: time and peak memory by number of instructions.

Writes a synthetic archive of short instructions, analyses it in a process of its own, and removes it. A quarter of the
neurons is active, at random; experts of lower id are preferred.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from sparcom_data.archive import open_archive
from sparcom_data.commit import ArchiveCommitter, CompletedInstruction
from sparcom_data.create import InstructionColumns, create_archive
from sparcom_data.schema.layout import plan_layout
from sparcom_data.schema.metadata import MoeInfo
from sparcom_data.storage import DurableStore
from sparcom_data.testing import random_attributes

COUNTS = (300, 1200)
TOKENS = 24  # on average: from 12 to 36
CATEGORIES = ("CLS", "CODE", "QA", "GEN", "MATH", "SUM")
SHAPE = MoeInfo(layer_ids=list(range(24)), experts=60, experts_per_token=4, neurons=1408, shared_neurons=5632)
BLOCK = 512  # rows written at once


async def measure_moe_analysis(_model: Path, output: Path) -> dict[str, Any]:
    """Seconds and peak MiB of the whole analysis, and of each of its steps, at each number of instructions."""
    results: dict[str, Any] = {}
    for count in COUNTS:
        path, report = output / "moe.zarr", output / "moe-report"
        _clear(path, report)
        write_archive(path, count)
        results[f"tokens, {count:,} instructions"] = open_archive(path).tokens
        results[f"archive MB, {count:,} instructions"] = _megabytes(path)
        results |= {f"{name}, {count:,} instructions": value for name, value in measured(path, report).items()}
        _clear(path, report)
    peaks = [results[f"peak MiB, {count:,} instructions"] for count in COUNTS]
    results[f"peak at {COUNTS[1]:,} / peak at {COUNTS[0]:,}"] = peaks[1] / peaks[0]
    return results


def measured(path: Path, report: Path) -> dict[str, float]:
    """What `analyse` found in a process of its own."""
    command = [sys.executable, __file__, str(path), str(report)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(answer.splitlines()[-1])
    return found


def write_archive(path: Path, count: int) -> None:
    """A complete archive of random masks and routes, block by block, so that writing takes little memory."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(TOKENS // 2, TOKENS + TOKENS // 2, size=count, endpoint=True).tolist()
    layout = plan_layout(lengths, "prompt", 0, [True] * count)
    columns = InstructionColumns(
        id=[f"i{k:04d}" for k in range(count)],
        category=[CATEGORIES[k % len(CATEGORIES)] for k in range(count)],
        source=["random"] * count,
        text=[""] * count,
        error=[""] * count,
    )
    create_archive(path, random_attributes(0, 0, moe=SHAPE), columns, layout)
    group = zarr.open_group(DurableStore(path), mode="r+", use_consolidated=False)
    for start in range(0, layout.tokens, BLOCK):
        rows = slice(start, min(start + BLOCK, layout.tokens))
        for name, values in random_rows(rng, rows.stop - rows.start).items():
            group[name][rows] = values
    committer = ArchiveCommitter(path)
    committer.complete(
        [
            CompletedInstruction(k, int(start), np.zeros(length, np.int32), np.arange(length, dtype=np.int32))
            for k, (start, length) in enumerate(zip(layout.token_start, lengths, strict=True))
        ]
    )
    committer.close()


def random_rows(rng: np.random.Generator, rows: int) -> dict[str, np.ndarray[Any, Any]]:
    """Rows of every array, so many tokens."""
    layers, choices = len(SHAPE.layer_ids), SHAPE.experts_per_token
    liking = rng.random((rows, layers, SHAPE.experts)) * np.linspace(1.5, 1, SHAPE.experts)
    return {
        "router/expert": (-liking).argsort(axis=-1)[..., :choices].astype(np.uint16),
        "router/weight": rng.random((rows, layers, choices), dtype=np.float32),
        "expert_neuron/active": _bits(rng, (rows, layers, choices, SHAPE.neurons // 8)),
        "shared_expert_neuron/active": _bits(rng, (rows, layers, SHAPE.shared_neurons // 8)),
    }


def _bits(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Random bytes, a quarter of their bits set."""
    return rng.integers(0, 256, size=shape, dtype=np.uint8) & rng.integers(0, 256, size=shape, dtype=np.uint8)


def analyse(path: Path, report: Path) -> dict[str, float]:
    """The whole analysis in this process; the loops are compiled before, as after the first run ever."""
    from sparcom_analysis import analyze, measure, pipeline
    from sparcom_data.testing import write_random_moe_archive

    write_random_moe_archive(report / "warm.zarr")
    analyze(report / "warm.zarr", report)
    spent: dict[str, float] = {}

    def timed(name: str, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            result = function(*arguments, **options)
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - begin
            return result

        return call

    measure.instruction_specific_neurons = timed("s selecting", measure.instruction_specific_neurons)
    measure.similarity_pairs = timed("s all pairs of sets", measure.similarity_pairs)
    measure.instruction_experts = timed("s expert frequencies", measure.instruction_experts)
    measure.correlation_pairs = timed("s correlations", measure.correlation_pairs)
    measure.permutation_tests = timed("s tests", measure.permutation_tests)
    measure.component_result = timed("s general and unique", measure.component_result)
    measure.length_control = timed("s with T matched", measure.length_control)
    pipeline.render = timed("s figures, tables, report", pipeline.render)
    begin = time.perf_counter()
    analyze(path, report)
    total = time.perf_counter() - begin
    return {"s in all": total, **spent, "peak MiB": _peak_mib()}


def _peak_mib() -> float:
    """Peak resident memory; getrusage would say that of the process that started this one where it was larger."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def _megabytes(path: Path) -> float:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6


def _clear(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("archive", type=Path)
    parser.add_argument("report", type=Path)
    arguments = parser.parse_args()
    print(json.dumps(analyse(arguments.archive, arguments.report)))
