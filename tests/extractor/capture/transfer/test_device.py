"""A transfer holds the values at the time of sending, and transfers arrive in order, however late the device runs."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sparcom_extractor.capture.transfer.device import PIECE_BYTES, CudaStreams, DeviceTransferQueue
from sparcom_extractor.capture.transfer.ring import ALIGNMENT
from sparcom_verification.testing.fake_device import FakeCuda, FakeDevice

ROWS, LAYERS, BYTES = 16, 3, 5


class Sending:
    """A transfer queue on a late device, the buffer that steps write to, and the deliveries."""

    def __init__(
        self,
        make_streams: Callable[[FakeDevice], Any],
        seed: int,
        ring_steps: float = 2.0,
        keep: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.device = FakeDevice(seed)
        self.masks = torch.zeros((ROWS, LAYERS, BYTES), dtype=torch.uint8)
        self.ids = torch.zeros(ROWS, dtype=torch.int32)
        self.writes = torch.zeros(LAYERS, dtype=torch.int64)
        size = int(ring_steps * 3 * ALIGNMENT)  # each of the three parts takes one unit
        self.queue = DeviceTransferQueue(make_streams(self.device), ring_bytes=size, pinned_bytes=size)
        self.keep = keep
        self.received: list[tuple[int, int]] = []  # step, rows
        self.timers: list[threading.Timer] = []

    def step(self, number: int, rows: int) -> None:
        """Run a forward pass that writes `number` everywhere, and send its rows."""
        self.device.launch(lambda: self._forward(number))
        self.queue.send(
            [self.masks[:rows], self.ids[:rows], self.writes], lambda arrays, done: self._receive(arrays, done, rows)
        )

    def _forward(self, number: int) -> None:
        self.masks.fill_(number % 251)
        self.ids.fill_(number)
        self.writes.fill_(number)

    def _receive(self, arrays: Any, done: Callable[[], None], rows: int) -> None:
        masks, _, writes = arrays
        assert masks.shape == (rows, LAYERS, BYTES)
        number = int(writes[0])
        self._holds(arrays, number)
        self.received.append((number, rows))
        self.timers.append(threading.Timer(self.keep(), lambda: (self._holds(arrays, number), done())))
        self.timers[-1].start()

    @staticmethod
    def _holds(arrays: Any, number: int) -> None:
        masks, ids, writes = arrays
        assert (masks == number % 251).all()
        assert (ids == number).all()
        assert (writes == number).all()

    def close(self) -> None:
        self.device.freeze(False)
        self.queue.close()
        for timer in self.timers:
            timer.join()
        self.device.close()


@pytest.fixture(params=[False, True], ids=["fake streams", "CUDA's streams"])
def sender(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Sending]]:
    made: list[Sending] = []

    def make_streams(device: FakeDevice) -> Any:
        if not request.param:
            return device
        cuda = FakeCuda(device, 1)
        monkeypatch.setattr(torch, "cuda", cuda)
        # A method of another object would not get the tensor.
        monkeypatch.setattr(torch.Tensor, "copy_", lambda *pair, **options: cuda.copy_(*pair, **options))  # noqa: PLW0108
        streams = CudaStreams(torch.device("cuda", 1))
        monkeypatch.setattr(streams, "memory", device.memory)
        monkeypatch.setattr(streams, "launch", device.launch)
        return streams

    def make(*arguments: Any, **options: Any) -> Sending:
        made.append(Sending(make_streams, *arguments, **options))
        return made[-1]

    yield make
    for item in made:
        item.close()


@pytest.mark.parametrize("seed", range(12))
def test_transfers_arrive_in_order(seed: int, sender: Callable[..., Sending]) -> None:
    """Steps overwrite the buffer before it is copied, rings are small and receivers slow, but every value belongs to
    its step."""
    rng = random.Random(seed)  # noqa: S311  (repeatable)
    sending = sender(seed, rng.choice([1.0, 1.3, 2.0, 5.0]), lambda: rng.choice([0.0, 0.0, 0.002]))
    steps = [(number, rng.randrange(1, ROWS + 1)) for number in range(1, 120)]
    for number, rows in steps:
        sending.step(number, rows)
    sending.close()
    sending.queue.check()
    assert sending.received == steps


def test_a_step_does_not_wait_while_there_is_room(sender: Callable[..., Sending]) -> None:
    """With the device stopped, the ring takes as many steps as it holds; none waits and none is delivered."""
    sending = sender(0, 4.0)
    sending.device.freeze(True)
    for number in range(1, 4):
        sending.step(number, ROWS)
    assert sending.queue.backpressure_seconds == 0
    assert sending.received == []
    sending.device.freeze(False)


def test_a_step_waits_when_the_ring_is_full_and_drops_nothing(sender: Callable[..., Sending]) -> None:
    """The waiting time is counted, the step continues when there is room, and everything arrives."""
    sending = sender(0, 1.0)
    sending.device.freeze(True)
    sending.step(1, ROWS)
    threading.Timer(0.2, sending.device.freeze, [False]).start()
    sending.step(2, ROWS)
    assert sending.queue.backpressure_seconds > 0.1
    sending.close()
    assert sending.received == [(1, ROWS), (2, ROWS)]


def test_a_receiver_that_keeps_its_arrays_blocks_steps(sender: Callable[..., Sending]) -> None:
    """Pinned memory is freed only when the receiver is done, so memory stays bounded."""
    sending = sender(0, 1.0, lambda: 0.2)
    sending.step(1, ROWS)
    began = time.monotonic()
    sending.step(2, ROWS)
    assert time.monotonic() - began > 0.1
    assert sending.queue.backpressure_seconds > 0.1


def test_an_upload_precedes_the_work_after_it(sender: Callable[..., Sending]) -> None:
    """Small values reach the device before work enqueued after them; the next transfer frees their room."""
    sending, seen = sender(3, 3.0), []
    for number in range(40):
        values = np.array([number, number + 1], dtype=np.int64)
        uploaded = sending.queue.upload(values)
        values[:] = -1  # the caller may reuse its array at once
        sending.device.launch(lambda uploaded=uploaded: seen.append(uploaded.tolist()))
        sending.step(number + 1, 2)
    sending.close()
    sending.queue.check()
    assert seen == [[number, number + 1] for number in range(40)]


def test_a_receivers_error_is_raised_to_the_next_step(sender: Callable[..., Sending]) -> None:
    """Rows that cannot be delivered end the run with the reason; they are never skipped."""
    sending = sender(0)

    def broken(_arrays: Any, _done: Any) -> None:
        raise OSError("no such shelf")

    sending.queue.send([sending.ids], broken)
    sending.queue.close()  # the transfer was attempted
    with pytest.raises(RuntimeError, match="could not be copied from the device: OSError: no such shelf"):
        sending.step(1, ROWS)
    with pytest.raises(RuntimeError, match="no such shelf"):
        sending.queue.check()


def test_a_transfer_without_parts_keeps_its_order(sender: Callable[..., Sending]) -> None:
    """Calls to a session arrive after the rows sent before them."""
    sending, called = sender(1), []
    for number in range(1, 30):
        sending.step(number, 3)
        sending.queue.send([], lambda _, done, number=number: (called.append((number, len(sending.received))), done()))
    sending.close()
    assert called == [(number, number) for number in range(1, 30)]


class RecordedCuda:
    """Stands for `torch.cuda`, and records its calls in order. status: of `cudaHostRegister`."""

    def __init__(self, status: int = 0) -> None:
        self.calls: list[Any] = []
        self.status = status

    def Stream(self, device: Any) -> Any:  # noqa: N802
        return self

    def Event(self, *, blocking: bool) -> Any:  # noqa: N802
        return ("event", blocking)

    def current_stream(self, device: Any) -> str:
        return "step"

    def set_device(self, device: Any) -> None:
        self.calls.append(("set_device", device, threading.current_thread().name))

    def wait_stream(self, stream: Any) -> None:
        self.calls.append(("wait", stream))

    def record_event(self, event: Any) -> Any:
        self.calls.append(("record", event))
        return SimpleNamespace(synchronize=lambda: self.calls.append(("synchronize", threading.current_thread().name)))

    def cudart(self) -> Any:
        return self

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802
        self.calls.append(("register", address, size, flags))
        return self.status

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        self.calls.append(("unregister", address))
        return 0

    def check_error(self, status: int) -> None:
        if status:
            raise RuntimeError(f"CUDA error {status}")

    @contextmanager
    def stream(self, _stream: Any) -> Iterator[None]:
        self.calls.append("side stream")
        yield
        self.calls.append("end")


def test_cuda_streams_copy_in_pieces_behind_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The side stream waits for the step, copies at most 4 MB at a time, and records a blocking event; the thread that
    waits for it has set its device."""
    cuda, device = RecordedCuda(), torch.device("cuda", 1)
    monkeypatch.setattr(torch, "cuda", cuda)
    copied: list[int] = []
    copy = torch.Tensor.copy_
    monkeypatch.setattr(
        torch.Tensor, "copy_", lambda own, other, **named: copied.append((len(own), named)) or copy(own, other)
    )
    streams = CudaStreams(device)
    monkeypatch.setattr(streams, "memory", lambda size: torch.arange(size, dtype=torch.uint8))
    monkeypatch.setattr(streams, "pinned", lambda size: torch.zeros(size, dtype=torch.uint8))
    size = 2 * PIECE_BYTES + ALIGNMENT
    queue = DeviceTransferQueue(streams, ring_bytes=size, pinned_bytes=size)
    sent, received = torch.arange(size, dtype=torch.uint8), []
    queue.send([sent], lambda arrays, done: (received.append(arrays[0].copy()), done()))
    queue.close()
    assert np.array_equal(received[0], sent.numpy())
    assert copied == [(size, {"non_blocking": True})] + [
        (part, {"non_blocking": True}) for part in (PIECE_BYTES, PIECE_BYTES, ALIGNMENT)
    ]
    order = [call for call in cuda.calls if call[0] not in ("set_device", "synchronize")]
    assert order == [("wait", "step"), "side stream", ("record", ("event", True)), "end"]
    assert [call for call in cuda.calls if call[0] == "set_device"] == [("set_device", device, "sparcom-drain")]
    assert cuda.calls.index(("set_device", device, "sparcom-drain")) < cuda.calls.index(
        ("synchronize", "sparcom-drain")
    )


@pytest.mark.parametrize("size", [ALIGNMENT, (1 << 21) + ALIGNMENT])
def test_pinned_memory_has_the_size_that_is_asked_for(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """CUDA pins the requested bytes, not the next power of two. The last view of the memory keeps it pinned."""
    cuda = RecordedCuda()
    monkeypatch.setattr(torch, "cuda", cuda)
    memory = CudaStreams(torch.device("cuda", 0)).pinned(size)
    address = memory.data_ptr()
    assert (memory.dtype, memory.shape, memory.is_contiguous()) == (torch.uint8, (size,), True)
    assert cuda.calls == [("register", address, size, 0)]
    view = memory[8:16].numpy()
    del memory
    gc.collect()
    assert len(cuda.calls) == 1
    del view
    gc.collect()
    assert cuda.calls[1:] == [("unregister", address)]


def test_memory_that_cannot_be_pinned_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of CUDA ends the start; the memory is not used unpinned."""
    monkeypatch.setattr(torch, "cuda", RecordedCuda(status=2))
    with pytest.raises(RuntimeError, match="CUDA error 2"):
        CudaStreams(torch.device("cuda", 0)).pinned(ALIGNMENT)


def test_reported_memory_is_what_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    """`memory` reports the bytes that the device and the host allocated."""
    device, asked = FakeDevice(), {}
    for name in ("memory", "pinned"):
        make = getattr(device, name)
        monkeypatch.setattr(
            device, name, lambda size, name=name, make=make: (asked.update({name: size}), make(size))[1]
        )
    queue = DeviceTransferQueue(device, ring_bytes=5 * ALIGNMENT + 7, pinned_bytes=9 * ALIGNMENT + 1)
    assert queue.memory() == {"device_ring_bytes": asked["memory"], "pinned_bytes": asked["pinned"]}
    assert asked == {"memory": 5 * ALIGNMENT, "pinned": 9 * ALIGNMENT}
    queue.close()
    device.close()
