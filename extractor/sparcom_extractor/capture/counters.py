"""Count on the device how often each neuron is active, per running instruction.

After every step, the new rows of a request are added to its counter on the step's stream, before the next step
overwrites the masks. Few rows, as in decode steps, go to 8-bit counters. These are flushed to the 32-bit ones before
they can overflow, and before a counter is sent. When the request ends, its counts go to the transfer queue and the
counter becomes free. The mask of its last row goes with the counts: if the engine ran one step past the end, the writer
subtracts that row.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from sparcom_extractor.capture.ops.step_buffers import MaskBuffer
from sparcom_extractor.capture.transfer.device import DeviceTransferQueue
from sparcom_extractor.capture.transfer.queue import Deliver

if TYPE_CHECKING:
    from sparcom_extractor.capture.ops.count_kernel import CountKernels

SPARE_COUNTERS = 16
MAX_ROWS_IN_8_BITS = 64  # per request and step; for more, a flush costs more traffic than it saves


class DeviceCounters:
    """Counters of a dense model for `requests` running requests. buffer: its masks.

    counts: int32 (counters, layers, neurons). packed: 8-bit counters, see `count_kernel`; uint8 (counters, layers, 2,
    neuron_bytes, 4). last: uint8 (counters, layers, neuron_bytes). Empty until `allocate`.
    kernels: functions that count; default to the Triton kernels.
    """

    def __init__(
        self, buffer: MaskBuffer, queue: DeviceTransferQueue, requests: int, kernels: CountKernels | None = None
    ) -> None:
        from sparcom_extractor.capture.ops import count_kernel  # needs Triton

        self._buffer, self._queue, self._kernel = buffer, queue, count_kernel
        self._kernels: CountKernels = kernels or count_kernel.DEVICE
        self._size = requests + SPARE_COUNTERS
        self._free: list[int] = []
        self._packed_rows = np.zeros(self._size, dtype=np.int64)  # rows in `packed`, at most MAX_PACKED
        self.counts = self.packed = self.last = torch.empty(0)

    def allocate(self) -> None:
        """Allocate the counters and compile the kernels once, for the first session that counts: no step may wait for a
        compiler. Raises torch.OutOfMemoryError without room."""
        if not len(self.counts):
            masks, shape = self._buffer.masks, (self._size, self._buffer.masks.shape[1])
            counts = torch.zeros((*shape, self._buffer.neurons), dtype=torch.int32, device=masks.device)
            packed = torch.zeros((*shape, 2, masks.shape[2], 4), dtype=torch.uint8, device=masks.device)
            self.last = torch.zeros((*shape, masks.shape[2]), dtype=torch.uint8, device=masks.device)
            self.counts, self.packed, self._free = counts, packed, list(range(self._size))
            tile = torch.zeros((1, 3), dtype=torch.int32, device=masks.device)  # no rows, counter 0
            slot = torch.zeros(1, dtype=torch.int64, device=masks.device)
            self._queue.launch(lambda: self._kernels.add(masks, tile, counts))
            self._queue.launch(lambda: self._kernels.add_packed(masks, tile, packed))
            self._queue.launch(lambda: self._kernels.flush(packed, counts, slot))

    def take(self, number: int) -> NDArray[np.int64]:
        """Return `number` zeroed counters: int64 (number,), indices."""
        if number > len(self._free):
            raise RuntimeError(
                f"running requests share {len(self.counts)} counters; {number} more are needed, and "
                f"{len(self._free)} are free. Report the vLLM version and max_num_seqs"
            )
        counters = np.array([self._free.pop() for _ in range(number)], dtype=np.int64)
        uploaded = self._queue.upload(counters)
        self._queue.launch(lambda: self.counts.index_fill_(0, uploaded, 0))
        self._queue.launch(lambda: self.packed.index_fill_(0, uploaded, 0))
        self._packed_rows[counters] = 0
        return counters

    def give_back(self, counter: int) -> None:
        """Free a counter. Reads that are already enqueued run first."""
        self._free.append(counter)

    def add_rows(self, first: NDArray[np.int64], rows: NDArray[np.int64], counters: NDArray[np.int64]) -> None:
        """Add rows [first, first + rows) of the step to the counters; int64 (n,) each."""
        total = np.bincount(counters, rows, self._size).astype(np.int64)
        few = (total > 0) & (total <= MAX_ROWS_IN_8_BITS)
        self._flush(np.flatnonzero(few & (self._packed_rows + total > self._kernel.MAX_PACKED)))
        self._packed_rows[few] += total[few]
        for runs, add, target in (
            (few[counters], self._kernels.add_packed, self.packed),
            (~few[counters], self._kernels.add, self.counts),
        ):
            if runs.any():
                tiles = self._kernel.split_runs(first[runs], rows[runs], counters[runs])
                self._kernel.check_tiles(tiles, len(self._buffer.masks), len(self.counts))
                self._queue.launch(partial(add, self._buffer.masks, self._queue.upload(tiles), target))

    def _flush(self, counters: NDArray[np.int64]) -> None:
        """Move the 8-bit counts to the 32-bit counters: int64 (n,), each once."""
        if len(counters):
            self._queue.launch(partial(self._kernels.flush, self.packed, self.counts, self._queue.upload(counters)))
            self._packed_rows[counters] = 0

    def keep_last(self, rows: NDArray[np.int64], counters: NDArray[np.int64]) -> None:
        """Store the masks of these rows of the step in `last` of the counters; int64 (n,) each."""
        source, target = self._queue.upload(rows), self._queue.upload(counters)
        self._queue.launch(lambda: self.last.index_copy_(0, target, self._buffer.masks.index_select(0, source)))

    def send(self, counter: int, deliver: Deliver) -> None:
        """Send a counter: [counts (layers, neurons), last (layers, neuron_bytes)]."""
        if self._packed_rows[counter]:
            self._flush(np.array([counter], dtype=np.int64))
        self._queue.send([self.counts[counter], self.last[counter]], deliver)
