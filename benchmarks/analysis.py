"""The analysis of 1,200 instructions of LLaMA-2-7B's shape: all pairs, frequencies, and the whole.

    pairs        every pair of 1,200 sets, ours and those of numpy, scipy, Numba and Python, in turn
    frequencies  GB of packed masks a second: counted in memory, read from an archive, and read and counted, with its
                 files in the page cache and dropped from it before
    whole        `analyze` of 3 GB of masks in a process of its own: seconds, and peak resident memory
    goals        each with what was measured, the medians of rounds

The archive is written into a temporary folder under the output, and removed.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from llama_archive import LAYERS, NEURONS, write_llama_archive
from moe_analysis import measured
from pair_ways import WAYS, random_sets

from sparcom_analysis.kernels.bit_counts import add_bit_counts
from sparcom_analysis.measures.frequencies import iterate_counts
from sparcom_analysis.reading.blocks import read_blocks
from sparcom_analysis.reading.populations import choose_population
from sparcom_analysis.reading.rows import row_spans
from sparcom_data.archive import open_archive

ROUNDS = 3
KINDS = ("independent", "overlapping")
TOKENS = 57
COUNTED = 200  # instructions counted in a round from memory


async def measure_analysis(_model: Path, output: Path) -> dict[str, Any]:
    """Seconds, ratios, GB/s and MiB."""
    results: dict[str, Any] = {}
    for overlapping in (False, True):
        results |= _pairs(overlapping)
    with tempfile.TemporaryDirectory(prefix="analysis-", dir=output) as folder:
        path = Path(folder) / "llama.zarr"
        results["tokens"] = write_llama_archive(path)
        os.sync()
        rates = _frequencies(path)
        results |= {f"GB/s, {name}": _spread(values) for name, values in rates.items()}
        whole = measured(path, Path(folder) / "report")
        results |= {f"whole: {name}": value for name, value in whole.items()}
        shutil.rmtree(path)
    return results | _goals(results, rates, whole)


def _frequencies(path: Path) -> dict[str, list[float]]:
    """GB/s of each round, the ways in turn."""
    _count(path)  # compiled, and in the page cache
    ways: dict[str, Callable[[], float]] = {
        "counting in memory": _count_in_memory,
        "reading alone": lambda: _read(path),
        "reading and counting": lambda: _count(path),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            rates[name].append(way())
    return rates | {"reading and counting, from the disk": [_count(path, cold=True) for _ in range(ROUNDS)]}


def _goals(results: dict[str, Any], rates: dict[str, list[float]], whole: dict[str, float]) -> dict[str, str]:
    """Every goal, whether it is met, and the figure."""
    best = {kind: _best_ratio(results, kind) for kind in KINDS}
    python = {kind: 1 / float(results[f"{kind}: ours / python sets"]) for kind in KINDS}
    counted = statistics.median(rates["reading and counting"])
    checks = {
        "pairs within 1.5 times of the best of others": (max(best.values()) <= 1.5, max(best.values())),
        "pairs 300 times faster than Python sets": (min(python.values()) >= 300, min(python.values())),
        "frequencies from an archive at 1 GB/s": (counted >= 1, counted),
        "the whole within 60 s": (whole["s in all"] <= 60, whole["s in all"]),
        "the whole within 2,048 MiB": (whole["peak MiB"] <= 2048, whole["peak MiB"]),
    }
    return {f"goal: {goal}": f"{'met' if met else 'MISSED'}, {value:,.2f}" for goal, (met, value) in checks.items()}


def _best_ratio(results: dict[str, Any], kind: str) -> float:
    return max(float(results[f"{kind}: ours / {name}"]) for name in WAYS if f"{kind}: ours / {name}" in results)


def _pairs(overlapping: bool) -> dict[str, Any]:
    """Median seconds of each way, and our share of the best of others and of Python's sets."""
    words = random_sets(overlapping)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(ROUNDS):
        sums = set()
        for name, way in WAYS.items():
            took, total = way(words)
            seconds[name].append(took)
            sums.add(total)
        assert len(sums - {-1}) == 1, f"ways differ: {sums}"
    kind = "overlapping" if overlapping else "independent"
    results: dict[str, Any] = {f"s, pairs of {kind} sets, {name}": _spread(took) for name, took in seconds.items()}
    best = min((name for name in WAYS if name != "ours"), key=lambda name: statistics.median(seconds[name]))
    for name in (best, "python sets"):
        ratios = [mine / other for mine, other in zip(seconds["ours"], seconds[name], strict=True)]
        results[f"{kind}: ours / {name}"] = f"{statistics.median(ratios):.5f}"
    return results


def _count_in_memory() -> float:
    """GB/s of masks that lie in memory, instruction by instruction."""
    masks = np.random.default_rng(0).integers(0, 256, size=(16, TOKENS, LAYERS * NEURONS // 8), dtype=np.uint8)
    counts = np.zeros(LAYERS * NEURONS, dtype=np.uint32)
    add_bit_counts(masks[0], counts)
    begin = time.perf_counter()
    for k in range(COUNTED):
        add_bit_counts(masks[k % len(masks)], counts)
    return COUNTED * masks[0].nbytes / (time.perf_counter() - begin) / 1e9


def _count(path: Path, *, cold: bool = False) -> float:
    """GB/s of one pass over the archive; cold: its files are dropped from the page cache before."""
    if cold:
        _forget(path)
    begin = time.perf_counter()
    archive = open_archive(path)
    spans = row_spans(archive, "prompt")
    for _, counts in iterate_counts(archive, spans, choose_population(archive)):
        assert counts.size
    size = archive.tokens * LAYERS * NEURONS // 8
    return size / (time.perf_counter() - begin) / 1e9


def _read(path: Path) -> float:
    """GB/s of the blocks alone."""
    begin = time.perf_counter()
    archive = open_archive(path)
    size = sum(
        block.masks.nbytes
        for block in read_blocks(archive, row_spans(archive, "prompt"), choose_population(archive))
        if block.masks is not None
    )
    return size / (time.perf_counter() - begin) / 1e9


def _forget(path: Path) -> None:
    for file in path.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"
