"""Counting, `analyze` and `write_report` at LLaMA-2-7B's shape: GB/s, seconds and peak memory.

Times counting in memory, reading from an archive in the page cache, and both together. The analysis runs in its own
process on 300 and on 1,200 instructions of six categories, with 57 tokens on average (3 GB of masks).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from workload import Workload, describe, median_ratio, peak_mib
from zarr.storage import LocalStore

from sparcom_analysis.archive.blocks import read_blocks
from sparcom_analysis.archive.populations import choose_population
from sparcom_analysis.archive.rows import row_spans
from sparcom_analysis.frequencies import iterate_counts
from sparcom_analysis.kernels.bit_counts import add_bit_counts
from sparcom_data.archive import open_archive
from sparcom_data.commit import ArchiveCommitter, CompletedInstruction
from sparcom_data.create import InstructionColumns, create_archive
from sparcom_data.schema.layout import plan_layout
from sparcom_data.testing import random_attributes
from sparcom_hexainst.categories import CATEGORIES

LAYERS, NEURONS = 32, 11_008
LABELS = tuple(CATEGORIES)
COUNTS = (300, 1200)
TOKENS = (40, 74)
DRAWN_ROWS = 128  # per category
COUNTED = 200  # instructions per round of counting in memory


async def measure_analysis(workload: Workload) -> dict[str, Any]:
    """Measure the whole analysis on both archives, and rates on the larger one."""
    with tempfile.TemporaryDirectory(prefix="analysis-", dir=workload.output) as folder:
        paths = [Path(folder) / f"{count}.zarr" for count in COUNTS]
        found = [_analyze(path, count) for path, count in zip(paths, COUNTS, strict=True)]
        rates = _rates(paths[-1], workload.rounds)
    results: dict[str, Any] = {
        f"{name}, {count:,} instructions": value
        for count, values in zip(COUNTS, found, strict=True)
        for name, value in values.items()
    }
    results["peak at 1,200 / peak at 300"] = found[1]["analyze: peak MiB"] / found[0]["analyze: peak MiB"]
    results |= {f"GB/s, {name}": describe(values) for name, values in rates.items()}
    *parts, whole = rates
    return results | {f"{whole} / {part}": median_ratio(rates[whole], rates[part]) for part in parts}


def _analyze(path: Path, count: int) -> dict[str, Any]:
    """Write an archive of `count` instructions and analyze it in its own process."""
    tokens = _write_archive(path, count)
    os.sync()
    command = [sys.executable, __file__, str(path), str(path.with_suffix(".report"))]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {"tokens": tokens, **json.loads(printed.splitlines()[-1])}


def _analyze_here(path: Path, report: Path) -> dict[str, float]:
    """Run the whole analysis in this process, after a small analysis that compiles everything."""
    from sparcom_analysis import analyze
    from sparcom_analysis.report.write import write_report
    from sparcom_data.testing import write_random_archive

    write_random_archive(report / "warm.zarr")
    write_report(analyze(report / "warm.zarr"), report / "warm")
    started = time.perf_counter()
    run = analyze(path)
    analyzed = time.perf_counter()
    write_report(run, report / "report")
    return {
        "analyze: seconds": analyzed - started,
        "write_report: seconds": time.perf_counter() - analyzed,
        "analyze: peak MiB": peak_mib(),
    }


def _rates(path: Path, rounds: int) -> dict[str, list[float]]:
    """Return the GB/s of masks per method and round. Methods alternate; each returns the bytes it handled."""
    masks = np.random.default_rng(0).integers(0, 256, size=(16, 57, LAYERS * NEURONS // 8), dtype=np.uint8)
    archive = open_archive(path)
    spans, population = row_spans(archive, "prompt"), choose_population(archive)

    def count_in_memory() -> int:
        counts = np.zeros(LAYERS * NEURONS, dtype=np.uint32)
        for k in range(COUNTED):
            add_bit_counts(masks[k % len(masks)], counts)
        return COUNTED * masks[0].nbytes

    def read() -> int:
        return sum(block.masks.nbytes for block in read_blocks(archive, spans, population) if block.masks is not None)

    def read_and_count() -> int:
        assert all(counts.size for _, counts in iterate_counts(archive, spans, population))
        return archive.tokens * LAYERS * NEURONS // 8

    methods = {"counting alone": count_in_memory, "reading alone": read, "reading and counting": read_and_count}
    rates: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(rounds + 1):
        for name, method in methods.items():
            started = time.perf_counter()
            size = method()
            if number:  # the first round compiles and fills the page cache
                rates[name].append(size / (time.perf_counter() - started) / 1e9)
    return rates


def _write_archive(path: Path, count: int) -> int:
    """Write a complete archive with realistically overlapping ISN sets; return its number of tokens."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(*TOKENS, size=count, endpoint=True).tolist()
    layout = plan_layout(lengths, "prompt", 0, [True] * count)
    names = ([f"i{k:04d}" for k in range(count)], [LABELS[k % len(LABELS)] for k in range(count)])
    columns = InstructionColumns(*names, *([""] * count for _ in range(3)))
    create_archive(path, random_attributes(LAYERS, NEURONS), columns, layout)
    _write_masks(path, np.repeat(np.arange(count), lengths), rng)
    committer = ArchiveCommitter(path)
    committer.complete(
        [
            CompletedInstruction(k, int(start), np.zeros(length, np.int32), np.arange(length, dtype=np.int32))
            for k, (start, length) in enumerate(zip(layout.token_start, lengths, strict=True))
        ]
    )
    committer.close()
    return layout.tokens


def _write_masks(path: Path, owners: NDArray[np.int64], rng: np.random.Generator) -> None:
    """Write rows drawn per category, thinned at random, with extra neurons that each instruction favors.

    owners: int64 (token,), instruction of each row.
    """
    array: Any = zarr.open_group(LocalStore(path), mode="r+", use_consolidated=False)["neuron/active"]
    common = rng.beta(0.6, 1.8, size=LAYERS * NEURONS).astype(np.float32)  # mean 0.25
    rows = np.empty((len(LABELS), DRAWN_ROWS, common.size // 64), dtype=np.uint64)
    for category_rows in rows:
        frequency = common * rng.lognormal(0, 0.2, common.size).astype(np.float32)
        for row in category_rows:
            bits = rng.random(common.size, dtype=np.float32) < frequency
            row[:] = np.packbits(bits, bitorder="little").view(np.uint64)
    random_words = rng.integers(0, 2**64, size=(5, DRAWN_ROWS, common.size // 64), dtype=np.uint64)
    favored = np.bitwise_and.reduce(random_words)  # 3 % of the neurons
    step = 8 * array.chunks[0]  # whole chunks
    for start in range(0, len(owners), step):
        who = owners[start : start + step]
        words = rows[who % len(LABELS), rng.integers(0, DRAWN_ROWS, len(who))]
        noise = rng.integers(0, 2**64, size=words.shape, dtype=np.uint64)
        words &= noise | np.roll(noise, 1, axis=1)  # lowers every frequency by a quarter
        words |= favored[who % DRAWN_ROWS] & noise
        array[start : start + len(who)] = words.view(np.uint8).reshape(len(who), *array.shape[1:])


if __name__ == "__main__":
    print(json.dumps(_analyze_here(Path(sys.argv[1]), Path(sys.argv[2]))))
