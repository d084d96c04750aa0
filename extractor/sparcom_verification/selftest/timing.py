"""Seconds of work on a CUDA device, by events: the host's clock would time the launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

WARM_UP = 3


def device_seconds(work: Callable[[], Any], rounds: int) -> list[float]:
    """Seconds that each of `rounds` calls took on the device, after a few that are not counted."""
    for _ in range(WARM_UP):
        work()
    pairs = [(_event(), _event()) for _ in range(rounds)]
    for start, stop in pairs:
        start.record()
        work()
        stop.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(stop) / 1000 for start, stop in pairs]


def graph_seconds(calls: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """Seconds of one call when all are replayed as one CUDA graph: without the gaps between launches.

    Give as many calls, on different data, as it takes to be larger than the cache.
    """
    for call in calls:
        call()  # compiles, and creates handles, before the graph is captured
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call() for call in calls]
    seconds = [value / len(calls) for value in device_seconds(graph.replay, rounds)]
    del kept
    return seconds


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
