"""A fake device in host memory. Its streams run late, in any order that their events allow.

A thread takes work from either stream by a seeded choice. A copy that is not ordered after the writes it needs, or
before the next ones, therefore reads wrong values. Waiting in the step's thread, which creates the device, is an error.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
        arrived = FakeEvent(self)
        self.order_side_stream()
        self.launch_on_side_stream(lambda: target.copy_(source))
        self.launch_on_side_stream(arrived.reached.set)
        return arrived

    def order_side_stream(self) -> None:
        """Let later work of the side stream wait for the current work of the step's stream."""
        staged = FakeEvent(self)
        self.launch(staged.reached.set)
        self.launch_on_side_stream(lambda: setattr(self, "_blocked", staged))

    def launch_on_side_stream(self, work: Callable[[], Any]) -> None:
        """Enqueue work on the side stream."""
        with self._work:
            self._side.append(work)
            self._work.notify_all()

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


class FakeCuda:
    """Stands for `torch.cuda` on a fake device, for code that calls it. As in CUDA, the current stream and the current
    device belong to a thread, new threads are on device 0, and streams of other devices cannot be awaited there."""

    def __init__(self, late: FakeDevice, number: int) -> None:
        self.late, self.number = late, number
        self._thread, self._copy = threading.local(), torch.Tensor.copy_
        self.registered: dict[int, int] = {}  # sizes of page-locked memory by address

    def copy_(self, target: torch.Tensor, source: torch.Tensor, *, non_blocking: bool = False) -> torch.Tensor:
        """Stands for `Tensor.copy_`: enqueue the copy on the current stream of this thread. One that blocks is between
        tensors of the host."""
        if not non_blocking:
            return self._copy(target, source)
        side = getattr(self._thread, "side", False)
        (self.late.launch_on_side_stream if side else self.late.launch)(lambda: self._copy(target, source))
        return target

    def Stream(self, _device: torch.device) -> FakeCuda:  # noqa: N802
        return self

    def Event(self, *, blocking: bool) -> FakeCudaEvent:  # noqa: N802
        if not blocking:
            raise AssertionError("an event that spins takes a core from the step")
        return FakeCudaEvent(self)

    def current_stream(self, _device: torch.device) -> str:
        return "step"

    def wait_stream(self, stream: str) -> None:
        """Order the side stream behind the step's."""
        if stream != "step":
            raise AssertionError(f"the side stream must wait for the step's stream, not for {stream!r}")
        self.late.order_side_stream()

    def record_event(self, event: FakeCudaEvent) -> FakeCudaEvent:
        """Enqueue the event on the side stream."""
        self.late.launch_on_side_stream(event.reached.set)
        return event

    @contextmanager
    def stream(self, _stream: FakeCuda) -> Iterator[None]:
        self._thread.side = True
        yield
        self._thread.side = False

    def set_device(self, device: torch.device) -> None:
        self._thread.number = device.index

    def current_device(self) -> int:
        return int(getattr(self._thread, "number", 0))

    def cudart(self) -> FakeCuda:
        return self

    def cudaHostRegister(self, address: int, size: int, _flags: int) -> int:  # noqa: N802
        self.registered[address] = size
        return 0

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        del self.registered[address]
        return 0

    def check_error(self, status: int) -> None:
        if status:
            raise RuntimeError(f"CUDA error {status}")


class FakeCudaEvent(FakeEvent):
    """An event of a stream of one device."""

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__(cuda.late)
        self._cuda = cuda

    def synchronize(self) -> None:
        """Block until the point is reached; an error in the step's thread, and in a thread on another device."""
        if self._cuda.current_device() != self._cuda.number:
            raise AssertionError("waiting on another device opens a context there")
        super().synchronize()
