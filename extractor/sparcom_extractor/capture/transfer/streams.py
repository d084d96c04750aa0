"""Streams of a device: the interface, and CUDA's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch


class Event(Protocol):
    """A point in a stream's work."""

    def synchronize(self) -> None:
        """Block this thread until the point is reached. Never called from the step's thread."""


class Streams(Protocol):
    """The step's stream and a side stream of one device. Only `Event.synchronize` may block."""

    def memory(self, size: int) -> torch.Tensor: ...  # uint8 (size,) on the device
    def pinned(self, size: int) -> torch.Tensor: ...  # uint8 (size,) on the host, page-locked
    # Enqueues a copy on the step's stream.
    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None: ...
    # Enqueues a copy on the side stream, behind all that is now on the step's; returns the event at its end.
    def fetch(self, target: torch.Tensor, source: torch.Tensor) -> Event: ...
    def launch(self, work: Callable[[], object]) -> None: ...  # enqueues on the step's stream what `work` launches


class CudaStreams:
    """Streams of a CUDA device. The step's stream is the current one of the calling thread."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def memory(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, device=self._device)

    def pinned(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def fetch(self, target: torch.Tensor, source: torch.Tensor) -> Event:
        self._side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._side):
            target.copy_(source, non_blocking=True)
            # blocking: synchronize sleeps; spinning would take a core from the step
            arrived: Event = self._side.record_event(torch.cuda.Event(blocking=True))  # type: ignore[no-untyped-call]
        return arrived

    def launch(self, work: Callable[[], object]) -> None:
        work()
