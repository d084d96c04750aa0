"""The writer's threads leave the cores on which vLLM computes, if others are free."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from sparcom_extractor.worker.cores import free_cores, started_on, thread_cores


@pytest.mark.parametrize(
    ("cores", "threads", "free"),
    [
        ({0, 1}, [{0}, {1}, {0}], set()),
        (range(8), [{0}, {1}, {2}, {3}, {0}, {0}], {4, 5, 6, 7}),
        (range(8), [set(range(7)), {0}], set(range(1, 8))),
        ({4, 5, 6}, [{0}, {4}], {5, 6}),
        ({0, 1, 2, 3}, [set(range(4))], {0, 1, 2, 3}),
    ],
    ids=["all are bound", "half", "a thread on several cores is not bound", "a part of the machine", "none is bound"],
)
def test_cores_without_a_bound_thread_are_free(cores: set[int], threads: list[set[int]], free: set[int]) -> None:
    """Cores of threads that compute are left out."""
    assert free_cores(cores, threads) == free


def test_threads_inherit_the_cores_and_the_main_thread_keeps_its_own() -> None:
    """Threads that are started in the context, and those of their pools, run on its cores; others do not."""
    before = os.sched_getaffinity(0)
    last, found = {max(before)}, []

    def run() -> None:
        with ThreadPoolExecutor(1) as pool:
            found.append(pool.submit(os.sched_getaffinity, 0).result())

    with started_on(last):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert found == [last]
    assert os.sched_getaffinity(0) == before
    assert before in thread_cores()


def test_without_free_cores_nothing_changes() -> None:
    """Threads then run where the thread that starts them does."""
    before = os.sched_getaffinity(0)
    with started_on(set()):
        assert os.sched_getaffinity(0) == before
