"""Asynchronous device-to-host copies.

    step's stream   forward of step k │ parts ─▶ ring │ forward of step k+1 …
    side stream                         after that: ring ─▶ pinned memory
    drain thread                                            waits for the copy, delivers, frees the region

The step's thread only enqueues work: copies into a ring on the device, and one copy of the whole region on the side
stream. The next step may then overwrite the sources. The thread waits only while the ring or the pinned memory is full,
and drops nothing. Both are allocated once. The next `send` raises any error of a copy or a receiver.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, Protocol
from weakref import finalize

import numpy as np
import torch
from numpy.typing import NDArray

from sparcom_extractor.capture.transfer.queue import Deliver
from sparcom_extractor.capture.transfer.ring import ByteRing, aligned

logger = logging.getLogger(__name__)

PIECE_BYTES = 4 << 20  # per copy to the host, so that vLLM's copy of sampled ids does not wait behind a whole step


class Event(Protocol):
    """A recorded point on a stream."""

    def synchronize(self) -> None: ...  # blocks until the point is reached; the step's thread never calls it


class Streams(Protocol):
    """The step's stream and a side stream of one device. Only `Event.synchronize` may block."""

    def memory(self, size: int) -> torch.Tensor: ...  # uint8 (size,) on the device
    def pinned(self, size: int) -> torch.Tensor: ...  # uint8 (size,) on the host, page-locked, no larger
    # Enqueues a copy on the step's stream.
    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None: ...
    # Enqueues a copy on the side stream, after all work now on the step's stream; returns the event at its end.
    def fetch(self, target: torch.Tensor, source: torch.Tensor) -> Event: ...
    def launch(self, work: Callable[[], object]) -> None: ...  # runs `work`, which launches on the step's stream
    def enter_thread(self) -> None: ...  # called once by another thread, before it waits for events


class CudaStreams:
    """Streams of a CUDA device. The step's stream is the current one of the calling thread."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def memory(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, device=self._device)

    def pinned(self, size: int) -> torch.Tensor:
        # torch's own pinned memory is rounded up to a power of two, up to twice the size
        array = np.empty(size, dtype=np.uint8)
        cudart, address = torch.cuda.cudart(), array.ctypes.data  # type: ignore[no-untyped-call]
        torch.cuda.check_error(cudart.cudaHostRegister(address, size, 0))
        finalize(array, cudart.cudaHostUnregister, address).atexit = False  # runs before the memory is freed
        return torch.from_numpy(array)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def fetch(self, target: torch.Tensor, source: torch.Tensor) -> Event:
        self._side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._side):
            for start in range(0, len(source), PIECE_BYTES):
                piece = slice(start, start + PIECE_BYTES)
                target[piece].copy_(source[piece], non_blocking=True)
            # blocking: synchronize sleeps; spinning would take a core from the step
            arrived: Event = self._side.record_event(torch.cuda.Event(blocking=True))  # type: ignore[no-untyped-call]
        return arrived

    def launch(self, work: Callable[[], object]) -> None:
        work()

    def enter_thread(self) -> None:
        torch.cuda.set_device(self._device)  # a new thread is on device 0, and would open a context there


@dataclass(frozen=True, slots=True)
class _Transfer:
    """A copy in flight to `start` in pinned memory. Its ring and upload regions are freed on arrival."""

    arrived: Event
    start: int
    ring_starts: list[int]
    upload_starts: list[int]  # in pinned memory
    parts: Sequence[torch.Tensor]  # for shapes and dtypes: the next step overwrites the values
    deliver: Deliver


class DeviceTransferQueue:
    """A `TransferQueue` for tensors on a device.
    ring_bytes: device memory; room for two whole steps avoids waiting: one is copied while another is computed.
    pinned_bytes: host memory; a region is held from `send` until the receiver is done."""

    delivers_in_step = False

    def __init__(self, streams: Streams, *, ring_bytes: int, pinned_bytes: int) -> None:
        self._streams = streams
        self._ring, self._pinned = ByteRing(ring_bytes), ByteRing(pinned_bytes)
        self._ring_memory = streams.memory(self._ring.capacity)
        self._pinned_memory = streams.pinned(self._pinned.capacity)
        self._room = threading.Condition()
        self._uploads: list[tuple[int, int]] = []  # starts in ring and pinned memory
        self._transfers: queue.SimpleQueue[_Transfer | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self.backpressure_seconds = 0.0
        self.sent_bytes = 0
        self._thread = threading.Thread(target=self._drain, name="sparcom-drain", daemon=True)
        self._thread.start()

    def memory(self) -> dict[str, int]:
        return {"device_ring_bytes": self._ring.capacity, "pinned_bytes": self._pinned.capacity}

    def send(self, parts: Sequence[torch.Tensor], deliver: Deliver) -> None:
        """Enqueue the transfer of the parts. Waits only while there is no room. Raises the errors of `check`."""
        *offsets, size = _offsets(parts)
        ring, pinned = self._reserve(size)
        for part, offset in zip(parts, offsets, strict=True):
            self._streams.copy(_view(self._ring_memory, ring + offset, part), part)
        target, source = self._pinned_memory[pinned : pinned + size], self._ring_memory[ring : ring + size]
        arrived = self._streams.fetch(target, source)
        rings, uploads = ([pair[n] for pair in self._uploads] for n in (0, 1))
        self._transfers.put(_Transfer(arrived, pinned, [*rings, ring], uploads, parts, deliver))
        self._uploads.clear()
        self.sent_bytes += size

    def upload(self, values: NDArray[Any]) -> torch.Tensor:
        """Enqueue a copy of small `values` to the device, for work enqueued before the next `send`."""
        source = torch.from_numpy(values)
        ring, pinned = self._reserve(values.nbytes)
        self._uploads.append((ring, pinned))
        staged, target = _view(self._pinned_memory, pinned, source), _view(self._ring_memory, ring, source)
        staged.copy_(source)
        self._streams.copy(target, staged)
        return target

    def launch(self, work: Callable[[], object]) -> None:
        self._streams.launch(work)

    def check(self) -> None:
        if self._error is not None:
            raise RuntimeError(
                f"rows could not be copied from the device: {type(self._error).__name__}: {self._error}"
            ) from self._error

    def close(self) -> None:
        self._transfers.put(None)
        self._thread.join()

    def _reserve(self, size: int) -> tuple[int, int]:
        """Return the starts of a ring region and a pinned region; wait until both have room."""
        with self._room:
            return self._reserve_in(self._ring, size), self._reserve_in(self._pinned, size)

    def _reserve_in(self, ring: ByteRing, size: int) -> int:
        self.check()
        if (start := ring.take(size)) is not None:
            return start
        began = time.perf_counter()
        while (start := ring.take(size)) is None:
            self._room.wait(timeout=1.0)
            self.check()
        self.backpressure_seconds += time.perf_counter() - began
        return start

    def _drain(self) -> None:
        try:
            self._streams.enter_thread()
            while (transfer := self._transfers.get()) is not None:
                transfer.arrived.synchronize()
                self._give_back(self._ring, transfer.ring_starts)
                self._give_back(self._pinned, transfer.upload_starts)
                starts = [transfer.start + offset for offset in _offsets(transfer.parts)[:-1]]
                views = [_view(self._pinned_memory, *pair) for pair in zip(starts, transfer.parts, strict=True)]
                transfer.deliver(
                    [view.numpy() for view in views], partial(self._give_back, self._pinned, [transfer.start])
                )
        except Exception as error:  # ends this thread; the next send raises it to the step
            logger.exception("the transfer of rows from the device failed")
            with self._room:
                self._error = error
                self._room.notify_all()

    def _give_back(self, ring: ByteRing, starts: Sequence[int]) -> None:
        with self._room:
            for start in starts:
                ring.give_back(start)
            self._room.notify_all()


def transfer_bytes(arrays: Sequence[torch.Tensor], writes: torch.Tensor) -> int:
    """Return the bytes of a whole step's transfer: arrays, token ids (int32), positions (int64) and write counters."""
    rows = len(arrays[0])
    return sum(map(aligned, (*(array.nbytes for array in arrays), 4 * rows, 8 * rows, writes.nbytes)))


def _offsets(parts: Sequence[torch.Tensor]) -> list[int]:
    """Return the offset of each part within a region, and the region's size."""
    return list(accumulate((aligned(part.nbytes) for part in parts), initial=0))


def _view(memory: torch.Tensor, start: int, like: torch.Tensor) -> torch.Tensor:
    """Return a view of the memory from `start` on, with the dtype and shape of `like`."""
    return memory[start : start + like.nbytes].view(like.dtype).view(like.shape)
