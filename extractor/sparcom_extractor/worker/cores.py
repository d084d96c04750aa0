"""Cores for threads of ours beside vLLM's.

vLLM binds each thread that computes on a CPU to one core, the main thread to the first. Threads inherit this: without
the functions here, all of ours would share that core with the main thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def thread_cores() -> list[set[int]]:
    """Return the cores that each thread of this process may use."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        try:
            found.append(os.sched_getaffinity(int(task.name)))
        except ProcessLookupError:  # it has ended
            continue
    return found


def free_cores(cores: Iterable[int], threads: Iterable[set[int]]) -> set[int]:
    """Return those of `cores` to which no thread is bound."""
    bound = set().union(*(allowed for allowed in threads if len(allowed) == 1))
    return set(cores) - bound


@contextmanager
def started_on(cores: set[int]) -> Iterator[None]:
    """Let threads that this thread starts in the context, and those that they start, run on `cores`. If there are none,
    they run where this thread does: on two cores, threads of ours on both slowed the model."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
