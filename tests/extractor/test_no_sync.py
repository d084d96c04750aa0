"""A step's code on CUDA never waits for the device: held with tensors that have no values and copies that never end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sparcom_extractor.capture import PLAN_KEY
from sparcom_extractor.capture.buffers import StepBuffers
from sparcom_extractor.capture.counters import DeviceCounters
from sparcom_extractor.capture.device import DeviceOutbox, letter_bytes
from sparcom_extractor.capture.op import CaptureBuffer
from sparcom_extractor.capture.rows import BatchRows
from sparcom_extractor.capture.step import StepCapture

LAYERS, NEURONS, ROWS = 4, 40, 32
CUDA = torch.device("meta")  # stands for the device: shapes and no values, whoever reads one fails


class NoHostReads(TorchDispatchMode):
    """Fails on every operation that would make the host wait for a CUDA device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [item for item in (*args, *(kwargs or {}).values()) if isinstance(item, torch.Tensor)]
        on_device = any(item.device.type == "meta" for item in tensors)
        to_host = isinstance(result, torch.Tensor) and result.device.type == "cpu"
        if on_device and to_host:
            raise AssertionError(f"{func} brings values from the device to the host")
        if func is torch.ops.aten.copy_.default and len({item.device.type for item in tensors}) > 1:
            waits = not (args[2] if len(args) > 2 else (kwargs or {}).get("non_blocking", False))
            if waits:
                raise AssertionError(f"{func} between host and device waits: say non_blocking=True")
        return result


class Streams:
    """A CUDA device whose work never ends; its tensors have shapes and no values."""

    def memory(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, device=CUDA)

    def pinned(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def fetch(self, target: torch.Tensor, source: torch.Tensor) -> NeverEnds:
        assert target.shape == source.shape
        return NeverEnds(threading.get_ident())

    def launch(self, work: Callable[[], object]) -> None:
        work()


class NeverEnds:
    """An event that the drain thread waits for until the test is over, and that a step may not wait for."""

    over = threading.Event()

    def __init__(self, step_thread: int) -> None:
        self._step_thread = step_thread

    def wait(self) -> None:
        assert threading.get_ident() != self._step_thread, "the step waits for the device"
        self.over.wait()
        raise RuntimeError("the test is over")


class Session:
    """Nothing ever reaches it."""

    def __init__(self, counts: bool) -> None:
        self.counts = counts

    def finish(self) -> None:
        raise AssertionError("nothing is delivered here")


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Iterator[StepCapture]:
    """What the GPU worker makes, on a device without values, with a session of masks and one of counts."""
    monkeypatch.setattr("sparcom_extractor.capture.counters.add_counts", lambda *_: None)  # launches, by construction
    NeverEnds.over.clear()
    with NoHostReads():
        buffer = CaptureBuffer(ROWS, LAYERS, NEURONS, CUDA)
        size = 1 << 20
        assert size > letter_bytes([buffer.masks], buffer.stamps)
        outbox = DeviceOutbox(Streams(), ring_bytes=size, pinned_bytes=size)
        capture = StepCapture(StepBuffers.of_dense(buffer), outbox)
        capture.counters = DeviceCounters(buffer, outbox, 8)
        for name in ("token", "count"):
            capture.open(name, Session(name == "count"))  # type: ignore[arg-type]
        yield capture
        assert outbox.waited_seconds == 0
        NeverEnds.over.set()


def new_request(session: str, index: int, end: int, *, response: bool = False) -> Any:
    plan = {"session": session, "index": index, "row": 100 * index, "begin": 0, "end": end, "open": response}
    return SimpleNamespace(req_id=f"{session}-{index}", sampling_params=SimpleNamespace(extra_args={PLAN_KEY: plan}))


def step(capture: StepCapture, rows: list[tuple[str, int, int]], **scheduled: Any) -> None:
    """(request, first position, rows) after each other."""
    count = sum(item[2] for item in rows)
    empty = {"finished_req_ids": set(), "preempted_req_ids": None, "scheduled_new_reqs": []}
    capture.before_step(SimpleNamespace(**(empty | scheduled)))
    capture.after_step(
        BatchRows(
            request_ids=[item[0] for item in rows],
            start=np.cumsum([0, *(item[2] for item in rows)]).astype(np.int64),
            first_position=np.array([item[1] for item in rows], dtype=np.int64),
            ids=torch.empty(count, dtype=torch.int32, device=CUDA),
            positions=torch.empty(count, dtype=torch.int64, device=CUDA),
        )
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_no_step_waits_for_the_device(capture: StepCapture) -> None:
    """New requests, cut prompts, decoding, a preemption, ends, settlements: nothing reads a value or waits."""
    new = [new_request("token", 0, 9), new_request("count", 0, 6), new_request("count", 1, 9, response=True)]
    step(capture, [("token-0", 0, 5), ("count-0", 0, 6), ("count-1", 0, 4)], scheduled_new_reqs=new)
    step(capture, [("count-1", 4, 1), ("token-0", 5, 4)])
    step(capture, [("count-1", 0, 5)], preempted_req_ids={"count-1"})
    step(capture, [], finished_req_ids={"token-0", "count-0", "count-1"})
    capture.finish("token")
    assert not capture.active


def test_a_host_read_is_found() -> None:
    """The net catches what it is for: a value read, a tensor brought to the host, a copy that waits."""
    with NoHostReads():
        tensor = torch.zeros(3, dtype=torch.int64, device=CUDA)
        for read in (tensor[0].item, tensor.cpu, tensor.tolist, lambda: tensor.copy_(torch.zeros(3))):
            with pytest.raises((AssertionError, NotImplementedError, RuntimeError), match=r"host|waits|meta"):
                read()
