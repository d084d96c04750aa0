"""Masks into an archive against the same bytes into raw files; peak memory of both at ten times the data."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import writing_ways as ways

TOTAL_BYTES = 1 << 30
ZARR_BYTES = 128 << 20  # zarr-python takes five times as long
ROUNDS = 7
RAW = ("raw, one thread", "raw, threads")  # through the page cache, as programs write files
DIRECT = "raw, threads, direct"  # no copy, no checksum: what the disk takes when the processor does nothing
MEMORY_BYTES = (512 << 20, 5120 << 20)


async def measure_writing(_model: Path, output: Path) -> dict[str, Any]:
    """MB/s of every way and the archive's ratios, then what the writers need in memory."""
    results: dict[str, Any] = {"writer threads": ways.THREADS}
    for shape in ways.SHAPES:
        rates = _rates(shape, output / "writing")
        results |= {f"{shape}: MB/s, {way}": statistics.median(values) for way, values in rates.items()}
        for way in (*RAW, DIRECT, "zarr"):
            ratios = [archive / other for archive, other in zip(rates["archive"], rates[way], strict=True)]
            results[f"{shape}: archive / {way}"] = statistics.median(ratios)
        results[f"{shape}: archive / raw, the stricter of the first two"] = min(
            results[f"{shape}: archive / {way}"] for way in RAW
        )
    return results | _peaks(output / "writing")


def _rates(shape: str, folder: Path) -> dict[str, list[float]]:
    """MB/s of each way in each round; the ways take turns, after one round that is not counted."""
    step = ways.random_step(shape)
    rates: dict[str, list[float]] = {way: [] for way in ("archive", *RAW, DIRECT, "zarr")}
    for number in range(ROUNDS + 1):
        ways.clear(folder)
        for way, values in rates.items():
            seconds, size = ways.do(way, folder / way, shape, step, ZARR_BYTES if way == "zarr" else TOTAL_BYTES)
            if number:
                values.append(size / 1e6 / seconds)
    ways.clear(folder)
    return rates


def _peaks(folder: Path) -> dict[str, Any]:
    """Peak resident memory of each writer in a process of its own."""
    results: dict[str, Any] = {}
    for shape in ways.SHAPES:
        for way in ("archive", "raw, threads"):
            peaks = [_peak_mib(way, folder, shape, size) for size in MEMORY_BYTES]
            for size, peak in zip(MEMORY_BYTES, peaks, strict=True):
                results[f"{shape}: peak MiB, {way}, {size >> 20:,} MiB written"] = peak
            results[f"{shape}: peak at ten times the data, {way}"] = peaks[1] / peaks[0]
    return results


def _peak_mib(way: str, folder: Path, shape: str, size: int) -> float:
    ways.clear(folder)
    command = [sys.executable, ways.__file__, way, str(folder), shape, str(size)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    ways.clear(folder)
    return float(json.loads(answer)["peak_mib"])
