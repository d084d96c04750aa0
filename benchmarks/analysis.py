"""The analysis of 1,200 instructions of LLaMA-2-7B's shape: all pairs, frequencies, and the whole.

    pairs        every pair of 1,200 sets, ours and those of numpy, scipy, Numba and Python, in turn
    frequencies  GB of packed masks a second, from memory, from files in the page cache, and from the disk
    whole        `analyze` of 3 GB of masks in a process of its own: seconds, and peak resident memory

The archive is written into a temporary folder under the output, and removed.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from llama_archive import LAYERS, NEURONS, write_llama_archive
from moe_analysis import measured
from pair_ways import WAYS, random_sets

from sparcom_analysis.bit_counts import add_bit_counts
from sparcom_analysis.frequencies import iterate_counts
from sparcom_analysis.populations import choose_population
from sparcom_analysis.rows import row_spans
from sparcom_data.archive import open_archive

ROUNDS = 3
TOKENS = 57
COUNTED = 200  # instructions counted in a round from memory


async def measure_analysis(_model: Path, output: Path) -> dict[str, Any]:
    """Seconds, ratios, GB/s and MiB."""
    results: dict[str, Any] = {}
    for overlapping in (False, True):
        results |= _pairs(overlapping)
    results["GB/s, counting in memory"] = _spread([_count_in_memory() for _ in range(ROUNDS)])
    with tempfile.TemporaryDirectory(prefix="analysis-", dir=output) as folder:
        path = Path(folder) / "llama.zarr"
        results["tokens"] = write_llama_archive(path)
        os.sync()
        _count(path)
        for where in ("disk", "page cache"):
            results[f"GB/s, counting from the {where}"] = _spread(
                [_count(path, cold=where == "disk") for _ in range(ROUNDS)]
            )
        results |= {f"whole: {name}": value for name, value in measured(path, Path(folder) / "report").items()}
        shutil.rmtree(path)
    return results


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


def _forget(path: Path) -> None:
    for file in path.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"
