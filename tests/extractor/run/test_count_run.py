"""Counts equal the sums of the masks, whatever the scheduler does, on the host and on a lagging device.

Each run writes the same rows as masks and as counts, through real sessions and files.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sparcom_data.archive import open_archive
from sparcom_data.create import InstructionColumns, create_archive
from sparcom_data.schema.layout import Layout, plan_layout
from sparcom_data.testing import random_attributes
from sparcom_extractor.capture.counters import DeviceCounters
from sparcom_extractor.capture.discovery.describe import Widths
from sparcom_extractor.capture.ops.count_kernel import REFERENCE
from sparcom_extractor.capture.ops.step_buffers import WRITE, MaskBuffer, StepBuffers
from sparcom_extractor.capture.step import StepCapture
from sparcom_extractor.capture.transfer.device import DeviceTransferQueue
from sparcom_extractor.capture.transfer.queue import HostTransferQueue
from sparcom_extractor.protocol import PLAN_KEY, FinishedRequest
from sparcom_extractor.vllm_surface.runner import BatchRows
from sparcom_extractor.writer.session import CaptureSession
from sparcom_extractor.writer.targets import archive_parts
from sparcom_verification.testing.fake_device import FakeDevice

LAYERS, NEURONS, ROWS, CONCURRENT = 2, 21, 24, 5
SECONDS = 20.0


def bits_of(token: int, position: int) -> NDArray[np.uint8]:
    """Return the true mask of a token, packed uint8 (layer, neuron_byte)."""
    bits = np.random.default_rng((token, position)).random((LAYERS, NEURONS)) < 0.4
    return np.packbits(bits, axis=-1, bitorder="little")


class Host:
    """Runs everything on the host, immediately."""

    def __init__(self, buffer: MaskBuffer, seed: int) -> None:
        self.queue: Any = HostTransferQueue()

    def launch(self, work: Callable[[], Any]) -> None:
        work()

    def counters(self, buffer: MaskBuffer) -> None:
        return None

    def close(self) -> None:
        return


class Lagging:
    """Runs everything on a lagging fake device."""

    def __init__(self, buffer: MaskBuffer, seed: int) -> None:
        self.device = FakeDevice(seed)
        self.queue = DeviceTransferQueue(self.device, ring_bytes=8192, pinned_bytes=8192)
        self.launch = self.device.launch

    def counters(self, buffer: MaskBuffer) -> Any:
        counters = DeviceCounters(buffer, self.queue, CONCURRENT, kernels=REFERENCE)
        counters.allocate()
        return counters

    def close(self) -> None:
        self.device.close()


class Run:
    """Runs requests of both archives through a scheduler that splits prompts, mixes, preempts and runs past ends."""

    def __init__(self, folder: Path, seed: int, case: type[Host | Lagging], positions: str, reported: bool) -> None:
        self.random = random.Random(seed)  # noqa: S311  (repeatable)
        self.reported = reported
        buffers = StepBuffers(ROWS, Widths(range(LAYERS), NEURONS), torch.device("cpu"))
        self.buffer = buffers.dense
        assert self.buffer is not None
        self.case = case(self.buffer, seed)
        self.capture = StepCapture(buffers, self.case.queue, self.case.counters(self.buffer))
        self.ids = torch.zeros(ROWS, dtype=torch.int32)
        self.positions = torch.zeros(ROWS, dtype=torch.int64)
        self.length_unknown = positions != "prompt"
        self.prompts = [self.random.randrange(1, 40) for _ in range(30)]
        self.max_tokens = 6 if self.length_unknown else 0
        self.lengths = [
            p + (self.random.randrange(1, self.max_tokens + 1) if self.length_unknown else 1) - 1 for p in self.prompts
        ]
        self.layout: Layout = plan_layout(self.prompts, positions, self.max_tokens)  # type: ignore[arg-type]
        self.paths = {"token": folder / "masks.zarr", "count": folder / "counts.zarr"}
        for granularity, path in self.paths.items():
            attributes = random_attributes(LAYERS, NEURONS, positions=positions, max_tokens=self.max_tokens)  # type: ignore[arg-type]
            capture = attributes.capture.model_copy(update={"granularity": granularity})
            columns = InstructionColumns(*([f"{n}" for n in range(len(self.prompts))] for _ in range(4)), [""] * 30)
            create_archive(path, attributes.model_copy(update={"capture": capture}), columns, self.layout)
            self.capture.open(granularity, CaptureSession(*archive_parts(path)))
        self.waiting = [(g, n) for n in range(len(self.prompts)) for g in self.paths]
        self.computed: dict[tuple[str, int], int] = {}
        self.replies: dict[str, list[dict[str, Any]]] = {name: [] for name in self.paths}

    def token(self, index: int, position: int) -> int:
        return 100 * index + position

    def run_all(self) -> None:
        """Step until every request has run and all rows are on disk."""
        finished: set[str] = set()
        while self.waiting or self.computed:
            finished = self.step(finished)
            self.poll(False)
        if self.random.random() < 0.5:
            self.step(finished)
        deadline = time.monotonic() + SECONDS
        finish = True
        while not all(self.poll(finish)):
            finish = False
            assert time.monotonic() < deadline
            time.sleep(0.002)
        for name in self.paths:
            self.capture.close(name)
        self.capture.shutdown()
        self.case.close()

    def poll(self, finish: bool) -> list[bool]:
        drained = []
        for name in self.paths:
            if finish:
                self.capture.end_input(name)
            reply = self.capture.poll(name)
            assert reply.error is None, reply
            self.replies[name].append(reply)
            drained.append(reply.drained)
        return drained

    def step(self, finished: set[str]) -> set[str]:
        """Run one step; return the requests that ended in it."""
        new, preempted = self.admit(), self.preempt()
        scheduler = SimpleNamespace(
            finished_req_ids=finished,
            preempted_req_ids={name_of(key) for key in preempted} if self.reported else None,
            scheduled_new_reqs=[self.request(key) for key in new],
        )
        batch = self.batch()
        self.capture.before_step(scheduler)
        rows = [(key, first + row) for key, first, count in batch for row in range(count)]
        self.case.launch(lambda: self.forward(rows))
        starts = np.cumsum([0, *(count for _, _, count in batch)]).astype(np.int64)
        self.capture.after_step(
            BatchRows(
                request_ids=[name_of(key) for key, _, _ in batch],
                start=starts,
                first_position=np.array([first for _, first, _ in batch], dtype=np.int64),
                ids=self.ids[: len(rows)],
                positions=self.positions[: len(rows)],
            )
        )
        return self.ended(batch)

    def admit(self) -> list[tuple[str, int]]:
        new = []
        while self.waiting and len(self.computed) < CONCURRENT:
            new.append(self.waiting.pop(0))
            self.computed[new[-1]] = 0
        return new

    def preempt(self) -> list[tuple[str, int]]:
        """Restart a request at random. If this is not reported, its rows start at 0 again."""
        if self.random.random() > 0.2 or not self.computed:
            return []
        key = self.random.choice(list(self.computed))
        self.computed[key] = 0
        return [key]

    def batch(self) -> list[tuple[tuple[str, int], int, int]]:
        room, batch = ROWS, []
        for key in self.random.sample(list(self.computed), len(self.computed)):
            done, end = self.computed[key], self.end(key)
            count = min(room, self.random.randrange(0, 12), end - done) if done < self.prompts[key[1]] else 1
            count = min(count, room)
            if count:
                batch.append((key, done, count))
                self.computed[key] += count
                room -= count
        return batch

    def end(self, key: tuple[str, int]) -> int:
        """Return the number of rows that a request computes: its own, and sometimes one more if its length is
        unknown."""
        return self.lengths[key[1]] + (self.length_unknown and key[1] % 2)

    def forward(self, rows: list[tuple[tuple[str, int], int]]) -> None:
        self.buffer.masks.fill_(0xAA)
        for row, (key, position) in enumerate(rows):
            token = self.token(key[1], position)
            self.buffer.masks[row] = torch.from_numpy(bits_of(token, position))
            self.ids[row], self.positions[row] = token, position
        self.buffer.write_counters += WRITE + len(rows)

    def ended(self, batch: list[Any]) -> set[str]:
        gone = set()
        for key in [key for key, _, _ in batch if self.computed[key] >= self.end(key)]:
            del self.computed[key]
            gone.add(name_of(key))
            granularity, index = key
            first = int(self.layout.first_position[index])
            capacity = int(self.layout.capacity[index])
            row = int(self.layout.token_start[index])
            self.capture.finish_requests(
                granularity, [FinishedRequest(index, row, capacity, self.lengths[index] - first)]
            )
        return gone

    def request(self, key: tuple[str, int]) -> Any:
        granularity, index = key
        begin = int(self.layout.first_position[index])
        plan = {
            "session": granularity,
            "index": index,
            "row": int(self.layout.token_start[index]),
            "begin": begin,
            "end": begin + int(self.layout.capacity[index]),
            "length_unknown": self.length_unknown,
        }
        return SimpleNamespace(req_id=name_of(key), sampling_params=SimpleNamespace(extra_args={PLAN_KEY: plan}))

    def completed(self, name: str) -> dict[int, tuple[bytes, bytes]]:
        return {item.index: (item.ids, item.positions) for reply in self.replies[name] for item in reply.completed}


def name_of(key: tuple[str, int]) -> str:
    return f"{key[0]}-{key[1]}"


@pytest.mark.parametrize("reported", [True, False], ids=["reported", "unreported"])
@pytest.mark.parametrize("positions", ["prompt", "all", "response"])
@pytest.mark.parametrize("case", [Host, Lagging])
def test_counts_are_sums_of_the_masks(
    tmp_path: Path, case: type[Host | Lagging], positions: str, reported: bool
) -> None:
    """With split prompts, mixed batches, preemptions and rows past an end, each count is the sum of the masks."""
    for seed in range(3):
        folder = tmp_path / str(seed)
        folder.mkdir()
        run = Run(folder, seed, case, positions, reported)
        run.run_all()
        assert [reply.failed for name in run.paths for reply in run.replies[name] if reply.failed] == []
        assert run.completed("token") == run.completed("count")
        assert sorted(run.completed("token")) == list(range(30))
        assert_same(run)


def assert_same(run: Run) -> None:
    masks = open_archive(run.paths["token"]).array("neuron/active")[:]
    counts = open_archive(run.paths["count"]).array("neuron/count")[:]
    for index, length in enumerate(run.lengths):
        start, first = int(run.layout.token_start[index]), int(run.layout.first_position[index])
        rows = np.asarray(masks)[start : start + length - first]
        truth = [bits_of(run.token(index, position), position) for position in range(first, length)]
        assert np.array_equal(rows, np.array(truth).reshape(rows.shape)), "the masks themselves must be right"
        bits = np.unpackbits(rows, axis=-1, bitorder="little")[..., :NEURONS]
        assert np.array_equal(np.asarray(counts)[index], bits.sum(axis=0, dtype=np.uint32)), index
