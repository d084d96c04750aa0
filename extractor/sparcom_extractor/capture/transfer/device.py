"""Off the device without stopping it.

    step's stream   forward of step k │ parts ─▶ ring │ forward of step k+1 …
    side stream                         after that: ring ─▶ pinned memory
    drain thread                                            waits for the copy, delivers, gives the room back

The step's own thread only enqueues: copies on its stream into a ring on the device (the next step may then overwrite
their sources), an event, and one copy of the whole region on the side stream. It waits for nothing, unless the ring or
the pinned memory is full: then it waits until there is room, and drops nothing. Both are allocated once. An error on
the way (a failed copy, a receiver that raised) is raised to the step by the next `send`.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from sparcom_extractor.capture.transfer.outbox import Deliver
from sparcom_extractor.capture.transfer.ring import ByteRing, aligned

_log = logging.getLogger(__name__)


class Event(Protocol):
    """A point of a stream's work."""

    def wait(self) -> None:
        """Block this thread until the point is reached. Never called from a step's thread."""


class Streams(Protocol):
    """What is asked of a device. Nothing but `Event.wait` may block."""

    def memory(self, size: int) -> torch.Tensor:
        """uint8 (size,) on the device."""

    def pinned(self, size: int) -> torch.Tensor:
        """uint8 (size,) on the host, page-locked."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Enqueue a copy on the step's stream."""

    def fetch(self, target: torch.Tensor, source: torch.Tensor) -> Event:
        """Enqueue a copy on the side stream, after all that is on the step's stream now; the event that ends it."""

    def launch(self, work: Callable[[], object]) -> None:
        """Enqueue on the step's stream what `work` launches."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Where a part lies within a region: offset in bytes, shape, dtype of the array."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True, slots=True)
class _Letter:
    arrived: Event
    ring_starts: tuple[int, ...]
    host_starts: tuple[int, ...]  # given back on arrival: what was uploaded for the step
    start: int
    parts: tuple[_Part, ...]
    deliver: Deliver


class DeviceOutbox:
    """An outbox whose parts are on a device.

    Args:
        streams: the device.
        ring_bytes: memory on the device; two whole steps keep it from waiting: one leaves while another is computed.
        pinned_bytes: memory on the host, held from sending until the receiver is done.
    """

    delivers_in_step = False

    def __init__(self, streams: Streams, *, ring_bytes: int, pinned_bytes: int) -> None:
        self._streams = streams
        self._ring, self._host = ByteRing(ring_bytes), ByteRing(pinned_bytes)
        self._ring_memory = streams.memory(self._ring.capacity)
        self._host_memory = streams.pinned(self._host.capacity)
        self._host_array: NDArray[np.uint8] | None = None
        self._room = threading.Condition()
        self._uploads: list[tuple[int, int]] = []
        self._letters: queue.SimpleQueue[_Letter | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self.backpressure_seconds = 0.0
        self.sent_bytes = 0
        self._thread = threading.Thread(target=self._drain, name="sparcom-drain", daemon=True)
        self._thread.start()

    @property
    def device_bytes(self) -> int:
        """What the ring takes of the device's memory."""
        return self._ring.capacity

    @property
    def pinned_bytes(self) -> int:
        """What is page-locked on the host."""
        return self._host.capacity

    def send(self, parts: Sequence[torch.Tensor], deliver: Deliver) -> None:
        """Enqueue the way out of the parts. Waits only while there is no room.

        Raises:
            RuntimeError: an earlier letter could not be delivered.
        """
        places, size = _places(parts)
        ring, host = self._take(size)
        region = self._ring_memory[ring : ring + size]
        for part, place in zip(parts, places, strict=True):
            length = part.numel() * part.element_size()
            if length:
                target = region[place.offset : place.offset + length].view(part.dtype).view(part.shape)
                self._streams.copy(target, part)
        arrived = self._streams.fetch(self._host_memory[host : host + size], region)
        uploads, self._uploads = self._uploads, []
        self.sent_bytes += size
        self._letters.put(
            _Letter(
                arrived, (*(start for start, _ in uploads), ring), tuple(s for _, s in uploads), host, places, deliver
            )
        )

    def upload(self, values: NDArray[Any]) -> torch.Tensor:
        """Enqueue a copy of small `values` to the device, for what the step enqueues before the next `send`."""
        source = torch.from_numpy(values)
        ring, host = self._take(values.nbytes)
        self._uploads.append((ring, host))
        staged = self._host_memory[host : host + values.nbytes].view(source.dtype).view(source.shape)
        staged.copy_(source)
        target = self._ring_memory[ring : ring + values.nbytes].view(source.dtype).view(source.shape)
        self._streams.copy(target, staged)
        return target

    def launch(self, work: Callable[[], object]) -> None:
        """Enqueue what `work` launches, behind what was sent and uploaded before."""
        self._streams.launch(work)

    def close(self) -> None:
        """Deliver what was sent, then stop the thread."""
        self._letters.put(None)
        self._thread.join()

    def _take(self, size: int) -> tuple[int, int]:
        """A region of the ring and one of the pinned memory; waits while there is none."""
        with self._room:
            ring = self._wait_for(self._ring, size)
            return ring, self._wait_for(self._host, size)

    def _wait_for(self, ring: ByteRing, size: int) -> int:
        self.check()
        start = ring.take(size)
        if start is not None:
            return start
        began = time.perf_counter()
        while (start := ring.take(size)) is None:
            self._room.wait(timeout=1.0)
            self.check()
        self.backpressure_seconds += time.perf_counter() - began
        return start

    def check(self) -> None:
        """Raise RuntimeError where a letter could not be delivered."""
        if self._error is not None:
            raise RuntimeError(
                f"rows could not be brought off the device: {type(self._error).__name__}: {self._error}"
            ) from self._error

    def _drain(self) -> None:
        try:
            while (letter := self._letters.get()) is not None:
                letter.arrived.wait()
                self._give_back(letter.ring_starts, letter.host_starts)
                letter.deliver(self._arrays(letter), partial(self._give_back, (), (letter.start,)))
        except Exception as error:  # noqa: BLE001  a thread's last words: raised to the step by the next send
            _log.exception("the way off the device broke")
            with self._room:
                self._error = error
                self._room.notify_all()

    def _give_back(self, ring_starts: Sequence[int], host_starts: Sequence[int]) -> None:
        with self._room:
            for start in ring_starts:
                self._ring.give_back(start)
            for start in host_starts:
                self._host.give_back(start)
            self._room.notify_all()

    def _arrays(self, letter: _Letter) -> list[NDArray[Any]]:
        if self._host_array is None:
            self._host_array = self._host_memory.numpy()
        arrays = []
        for part in letter.parts:
            begin = letter.start + part.offset
            size = int(np.prod(part.shape, dtype=np.int64)) * part.dtype.itemsize
            arrays.append(self._host_array[begin : begin + size].view(part.dtype).reshape(part.shape))
        return arrays


def letter_bytes(arrays: Sequence[torch.Tensor], writes: torch.Tensor) -> int:
    """What the letter of a whole step takes: its arrays, token ids (int32), positions (int64) and writes."""
    rows = len(arrays[0])
    return sum(map(aligned, (*(array.nbytes for array in arrays), 4 * rows, 8 * rows, writes.nbytes)))


def _places(parts: Sequence[torch.Tensor]) -> tuple[tuple[_Part, ...], int]:
    """Where each part lies in a region, and the region's size."""
    places, offset = [], 0
    for part in parts:
        dtype = _NUMPY[part.dtype]
        places.append(_Part(offset, tuple(part.shape), dtype))
        offset += aligned(part.numel() * dtype.itemsize)
    return tuple(places), max(1, offset)


_NUMPY: dict[torch.dtype, np.dtype[Any]] = {
    torch.uint8: np.dtype(np.uint8),
    torch.uint16: np.dtype(np.uint16),
    torch.float32: np.dtype(np.float32),
    torch.int32: np.dtype(np.int32),
    torch.int64: np.dtype(np.int64),
}


class CudaStreams:
    """A CUDA device. The step's stream is whatever is current in the thread that calls."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def memory(self, size: int) -> torch.Tensor:
        """uint8 (size,) on the device."""
        return torch.empty(size, dtype=torch.uint8, device=self._device)

    def pinned(self, size: int) -> torch.Tensor:
        """uint8 (size,), page-locked."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Enqueue a copy on the current stream."""
        target.copy_(source, non_blocking=True)

    def fetch(self, target: torch.Tensor, source: torch.Tensor) -> Event:
        """Enqueue a copy on the side stream, behind the current one."""
        staged = torch.cuda.Event()  # type: ignore[no-untyped-call]
        staged.record(torch.cuda.current_stream(self._device))
        self._side.wait_event(staged)
        with torch.cuda.stream(self._side):
            target.copy_(source, non_blocking=True)
            # Its wait sleeps: spinning would take a core from the step.
            arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            arrived.record(self._side)
        return _CudaEvent(arrived)

    def launch(self, work: Callable[[], object]) -> None:
        """Launches are enqueued by themselves."""
        work()


@dataclass(frozen=True, slots=True)
class _CudaEvent:
    event: torch.cuda.Event

    def wait(self) -> None:
        self.event.synchronize()
