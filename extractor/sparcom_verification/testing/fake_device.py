"""A fake device in host memory. Its streams run late, in any order that their events allow.

A thread takes work from either stream by a seeded choice. A copy that is not ordered after the writes it needs, or
before the next ones, therefore reads wrong values. Waiting in the step's thread, which creates the device, is an error.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

SECONDS = 20.0


class FakeEvent:
    """A point in a stream's work."""

    def __init__(self, device: FakeDevice) -> None:
        self._device = device
        self.reached = threading.Event()

    def synchronize(self) -> None:
        """Block until the point is reached. Calling it in the step's thread is an error."""
        if threading.get_ident() == self._device.step_thread:
            raise AssertionError("the step's thread may not wait for the device")
        if not self.reached.wait(SECONDS):
            raise AssertionError("the device never reached the event")


class FakeDevice:
    """Implements `capture.transfer.device.Streams`."""

    def __init__(self, seed: int = 0) -> None:
        self.step_thread = threading.get_ident()
        self._random = random.Random(seed)  # noqa: S311  (repeatable disorder)
        self._main: deque[Callable[[], Any]] = deque()
        self._side: deque[Callable[[], Any]] = deque()
        self._blocked: FakeEvent | None = None
        self._running = False
        self._work = threading.Condition()
        self._ended = False
        self.frozen = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def memory(self, size: int) -> torch.Tensor:
        """Return device memory, filled with 0xDD."""
        return torch.full((size,), 0xDD, dtype=torch.uint8)

    def pinned(self, size: int) -> torch.Tensor:
        """Return host memory, filled with 0xEE."""
        return torch.full((size,), 0xEE, dtype=torch.uint8)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Enqueue a copy on the step's stream."""
        self.launch(lambda: target.copy_(source))

    def fetch(self, target: torch.Tensor, source: torch.Tensor) -> FakeEvent:
        """Enqueue a copy on the side stream, after the current work of the step's stream."""
        staged, arrived = FakeEvent(self), FakeEvent(self)
        with self._work:
            self._main.append(staged.reached.set)
            self._side.extend(
                [lambda: setattr(self, "_blocked", staged), lambda: target.copy_(source), arrived.reached.set]
            )
            self._work.notify_all()
        return arrived

    def enter_thread(self) -> None:
        """Do nothing: the host has one device."""

    def launch(self, work: Callable[[], Any]) -> None:
        """Enqueue work on the step's stream."""
        with self._work:
            self._main.append(work)
            self._work.notify_all()

    def freeze(self, frozen: bool) -> None:
        """Pause all work, or resume it."""
        with self._work:
            self.frozen = frozen
            self._work.notify_all()

    def finish_step(self) -> None:
        """Block until the step's stream is empty. Call it before the host overwrites memory that copies still read."""
        with self._work:
            if not self._work.wait_for(lambda: not self._main and not self._running, SECONDS):
                raise AssertionError("the step's stream never ended")

    def close(self) -> None:
        """Run the remaining work, then end the thread."""
        with self._work:
            self._ended, self.frozen = True, False
            self._work.notify_all()
        self._thread.join(SECONDS)

    def _run(self) -> None:
        while (work := self._next()) is not None:
            work()

    def _next(self) -> Callable[[], Any] | None:
        with self._work:
            self._running = False
            self._work.notify_all()
            while True:
                if self._blocked is not None and self._blocked.reached.is_set():
                    self._blocked = None
                ready = [self._main] if self._blocked is not None else [self._main, self._side]
                streams = [] if self.frozen else [stream for stream in ready if stream]
                if streams:
                    self._running = True
                    return self._random.choice(streams).popleft()
                if self._ended:
                    return None
                self._work.wait(SECONDS)
