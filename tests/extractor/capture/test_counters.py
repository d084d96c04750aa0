"""Counters of running requests are exact for any number of rows per step, without a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparcom_extractor.capture.counters import DeviceCounters
from sparcom_extractor.capture.ops.count_kernel import MAX_PACKED, REFERENCE, CountKernels
from sparcom_extractor.capture.ops.step_buffers import MaskBuffer

LAYERS, NEURONS, ROWS = 2, 13, 600


class Queue:
    """A transfer queue whose device is the host."""

    def upload(self, values: Any) -> torch.Tensor:
        return torch.from_numpy(values)

    def launch(self, work: Callable[[], object]) -> None:
        work()

    def send(self, parts: list[torch.Tensor], deliver: Callable[[Any, Any], None]) -> None:
        deliver([part.numpy().copy() for part in parts], None)


def make_counters(requests: int) -> tuple[DeviceCounters, MaskBuffer, list[str]]:
    """Return counters, their masks, all ones, and the names of the kernels that run."""
    ran: list[str] = []

    def noted(name: str) -> Callable[..., None]:
        def run(*arguments: Any) -> None:
            ran.append(name)
            getattr(REFERENCE, name)(*arguments)

        return run

    flags = torch.zeros((ROWS, LAYERS), dtype=torch.uint8)
    buffer = MaskBuffer(NEURONS, 0, torch.zeros(LAYERS, dtype=torch.int64), flags)
    buffer.masks.fill_(255)
    kernels = CountKernels(*map(noted, CountKernels._fields))
    counters = DeviceCounters(buffer, Queue(), requests, kernels)  # type: ignore[arg-type]
    counters.allocate()
    assert ran == ["add", "add_packed", "flush"], "all kernels run once, so that no step compiles one"
    ran.clear()
    return counters, buffer, ran


def counts_of(counters: DeviceCounters, counter: int) -> Any:
    received: list[Any] = []
    counters.send(counter, lambda parts, _: received.append(parts[0]))
    return received[0]


@pytest.mark.parametrize("steps", [1, 254, 255, 256, 509, 510, 511])
def test_decode_steps_are_counted_exactly(steps: int) -> None:
    """Full rows, one per step, count the steps. 8-bit counters are flushed once per 255 rows, and before a send."""
    counters, _, ran = make_counters(2)
    (counter,) = counters.take(1)
    for _ in range(steps):
        counters.add_rows(np.array([3]), np.array([1]), np.array([counter]))
    assert ran.count("add_packed") == steps
    assert ran.count("flush") == (steps - 1) // MAX_PACKED
    assert (counts_of(counters, counter) == steps).all()
    assert ran.count("flush") == -(-steps // MAX_PACKED)
    assert not counters.packed.any()
    assert (counts_of(counters, counter) == steps).all(), "a second read flushes nothing"


@given(
    steps=st.lists(st.lists(st.sampled_from([0, 1, 1, 2, 40, 63, 64, 65, 150]), min_size=3, max_size=3), max_size=12),
    seed=st.integers(0, 2**32 - 1),
    again=st.integers(0, 11),
)
def test_counts_are_sums_of_masks(steps: list[list[int]], seed: int, again: int) -> None:
    """Prompts and decode steps may mix, requests may have several runs per step, and a counter may be taken again."""
    counters, buffer, _ = make_counters(3)
    slots, draw = counters.take(3), np.random.default_rng(seed)
    expected = np.zeros((3, LAYERS, NEURONS), dtype=np.int64)
    for number, lengths in enumerate(steps):
        if number == again:
            counters.give_back(int(slots[1]))
            slots[1] = counters.take(1)[0]
            expected[1] = 0
        buffer.masks[:] = torch.from_numpy(draw.integers(0, 256, buffer.masks.shape, dtype=np.uint8))
        rows, owner = np.array(lengths), draw.integers(0, 3, 3)
        first = np.cumsum(rows) - rows
        counters.add_rows(first[rows > 0], rows[rows > 0], slots[owner][rows > 0])
        bits = np.unpackbits(buffer.masks.numpy(), axis=-1, bitorder="little")[..., :NEURONS]
        for start, count, request in zip(first, rows, owner, strict=True):
            expected[request] += bits[start : start + count].sum(axis=0, dtype=np.int64)
        assert (counters._packed_rows <= MAX_PACKED).all()
    for request, slot in enumerate(slots.tolist()):
        assert np.array_equal(counts_of(counters, slot), expected[request])
