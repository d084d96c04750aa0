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

    def memory(self, size: int) -> torch.Tensor:
        """Return uint8 (size,) on the device."""

    def pinned(self, size: int) -> torch.Tensor:
        """Return uint8 (size,) on the host, page-locked."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Enqueue a copy on the step's stream."""

    def fetch(self, target: torch.Tensor, source: torch.Tensor) -> Event:
        """Enqueue a copy on the side stream, behind all that is now on the step's; return the event at its end."""

    def launch(self, work: Callable[[], object]) -> None:
        """Enqueue on the step's stream what `work` launches."""


class CudaStreams:
    """A CUDA device. The step's stream is the current one of the calling thread."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def memory(self, size: int) -> torch.Tensor:
        """Return uint8 (size,) on the device."""
        return torch.empty(size, dtype=torch.uint8, device=self._device)

    def pinned(self, size: int) -> torch.Tensor:
        """Return uint8 (size,), page-locked."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Enqueue a copy on the current stream."""
        target.copy_(source, non_blocking=True)

    def fetch(self, target: torch.Tensor, source: torch.Tensor) -> Event:
        """Enqueue a copy on the side stream, behind the current one."""
        self._side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._side):
            target.copy_(source, non_blocking=True)
            arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # a spin would take a core
            arrived.record(self._side)
        return arrived

    def launch(self, work: Callable[[], object]) -> None:
        """Call `work`: its launches are enqueued by themselves."""
        work()
