"""Threads of our own on the cores of vLLM's CPU worker, for work that holds no interpreter lock.

vLLM binds each of its threads to a core, the one that steps too, and a new thread would inherit that one core. So each
of ours is bound to a core of those that the process's threads have together. It does not know what is computed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch


def run_shares(work: Callable[[int, int], None], count: int, unit: int) -> None:
    """Call `work(first, stop)` on as many threads as torch has, for shares of [0, count) on borders of `unit`."""
    pool, threads = _pool()
    units = -(-count // unit)
    borders = [min(count, units * thread // threads * unit) for thread in range(threads + 1)]
    shares = [pool.submit(work, first, stop) for first, stop in pairwise(borders) if first < stop]
    for share in shares:
        share.result()


@cache
def _pool() -> tuple[ThreadPoolExecutor, int]:
    """The threads, made at the first use: by then vLLM has bound its own."""
    threads, cores = torch.get_num_threads(), process_cores()
    free = iter([cores[number % len(cores)] for number in range(threads)])
    lock = threading.Lock()

    def bind() -> None:
        with lock:
            os.sched_setaffinity(0, {next(free)})

    return ThreadPoolExecutor(threads, thread_name_prefix="sparcom-gate", initializer=bind if cores else None), threads


def process_cores() -> list[int]:
    """The cores that any thread of this process may run on; empty where the system does not say."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            found |= os.sched_getaffinity(int(task.name))
        except ProcessLookupError:
            continue  # a thread that has just ended
    return sorted(found)
