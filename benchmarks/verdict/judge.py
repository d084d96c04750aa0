"""Judge a ratio of speeds by its interval, and a disk by the rate that a load needs."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

GOAL = 0.98
MIN_PAIRS = 3  # fewer give no interval
HEADROOM = 1.1  # a disk must take this multiple of the needed rate, and hold this multiple of the bytes
SPARE_BYTES = 1 << 30
DISK_SECONDS, DISK_BYTES, DISK_THREADS, DISK_CHUNK = 5.0, 4 << 30, 8, 6 << 20  # chunks and threads as in an archive


@dataclass(frozen=True)
class Judgement:
    """Geometric mean of paired ratios, its 95 % interval (None with too few pairs), and the verdict."""

    ratio: float
    low: float | None
    high: float | None
    verdict: str  # holds, fails or undecided


@cache
def t_quantile(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t distribution, within 1 %, by simulation: vLLM does not need SciPy."""
    return float(np.quantile(np.random.default_rng(0).standard_t(freedom, 1_000_000), 0.975))


def judge(ratios: Sequence[float], goal: float = GOAL) -> Judgement:
    """Return ratio and interval of `ratios` (plain time / time with capture, one per pair), from a t interval of their
    logarithms. The goal holds if the whole interval reaches it, and fails if no part of it does."""
    logs = np.log(ratios)
    ratio, pairs = float(np.exp(logs.mean())), len(logs)
    if pairs < MIN_PAIRS:
        return Judgement(ratio, None, None, "undecided")
    width = t_quantile(pairs - 1) * float(logs.std(ddof=1)) / math.sqrt(pairs)
    low, high = ratio * math.exp(-width), ratio * math.exp(width)
    return Judgement(ratio, low, high, "holds" if low >= goal else "fails" if high < goal else "undecided")


@dataclass(frozen=True)
class Place:
    """A folder for archives. way: name of the figures measured there. rate: durable bytes per second. free: bytes."""

    way: str
    folder: str
    rate: float
    free: int

    def refusal(self, rate: float, size: int) -> str | None:
        """Return why an archive of `size` bytes cannot be written here at `rate` bytes per second, or None."""
        needed = size * HEADROOM + SPARE_BYTES
        if self.free < needed:
            return f"{self.folder} has {self.free / 1e9:,.1f} GB free; {needed / 1e9:,.1f} GB are needed"
        if self.rate < rate * HEADROOM:
            return f"{self.folder} takes {self.rate / 1e6:,.0f} MB/s; {rate * HEADROOM / 1e6:,.0f} MB/s are needed"
        return None


def choose_place(places: Sequence[Place], rate: float, size: int) -> tuple[Place | None, list[str]]:
    """Return the first place that takes `size` bytes at `rate` bytes per second, and why those before it do not."""
    refusals: list[str] = []
    for place in places:
        if (reason := place.refusal(rate, size)) is None:
            return place, refusals
        refusals.append(reason)
    return None, refusals


def find_place(way: str, folder: Path, seconds: float = DISK_SECONDS, most: int = DISK_BYTES) -> Place:
    """Measure a folder's durable rate for at most `seconds` and `most` bytes; return the place.

    Threads write random chunks. Each chunk is synced before the next one, as in an archive.
    """
    free = shutil.disk_usage(folder).free
    budget = min(most, free // 4) // DISK_THREADS
    chunk = np.random.default_rng(0).bytes(DISK_CHUNK)
    with TemporaryDirectory(prefix="sparcom-disk-", dir=folder) as made:
        started = time.perf_counter()

        def write(thread: int) -> int:
            written = number = 0
            while written + len(chunk) <= budget and time.perf_counter() - started < seconds:
                with (Path(made) / f"{thread}-{number}").open("wb", buffering=0) as file:
                    written += file.write(chunk)
                    os.fsync(file.fileno())
                number += 1
            return written

        with ThreadPoolExecutor(DISK_THREADS) as pool:
            written = sum(pool.map(write, range(DISK_THREADS)))
        took = time.perf_counter() - started
    return Place(way, str(folder), written / took, free)
