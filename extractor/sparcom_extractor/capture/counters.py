"""Count on the device how often each neuron is active, per running instruction.

After every step, the new rows of a request are added to its counter on the step's stream, before the next step
overwrites the masks. When the request ends, its counts go to the transfer queue and the counter becomes free. The
mask of its last row goes with the counts: if the engine ran one step past the end, the writer subtracts that row.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from sparcom_extractor.capture.ops.step_buffers import MaskBuffer
from sparcom_extractor.capture.transfer.device import DeviceTransferQueue
from sparcom_extractor.capture.transfer.queue import Deliver

SPARE_COUNTERS = 16
AddCounts = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


class DeviceCounters:
    """Counters of a dense model for `requests` running requests. buffer: its masks.

    counts: int32 (counters, layers, neurons). last: uint8 (counters, layers, neuron_bytes). Empty until `allocate`.
    add_counts: kernel that adds tiles of masks to counts; defaults to the Triton kernel.
    """

    def __init__(
        self, buffer: MaskBuffer, queue: DeviceTransferQueue, requests: int, add_counts: AddCounts | None = None
    ) -> None:
        from sparcom_extractor.capture.ops import count_kernel  # needs Triton

        self._buffer, self._queue, self._kernel = buffer, queue, count_kernel
        self._add_counts: AddCounts = add_counts or count_kernel.add_counts
        self._size = requests + SPARE_COUNTERS
        self._free: list[int] = []
        self.counts = self.last = torch.empty(0)

    def allocate(self) -> None:
        """Allocate the counters once, for the first session that counts. Raises torch.OutOfMemoryError without room."""
        if not len(self.counts):
            masks, shape = self._buffer.masks, (self._size, self._buffer.masks.shape[1])
            counts = torch.zeros((*shape, self._buffer.neurons), dtype=torch.int32, device=masks.device)
            self.last = torch.zeros((*shape, masks.shape[2]), dtype=torch.uint8, device=masks.device)
            self.counts, self._free = counts, list(range(self._size))

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
        return counters

    def give_back(self, counter: int) -> None:
        """Free a counter. Reads that are already enqueued run first."""
        self._free.append(counter)

    def add_rows(self, first: NDArray[np.int64], rows: NDArray[np.int64], counters: NDArray[np.int64]) -> None:
        """Add rows [first, first + rows) of the step to the counters; int64 (n,) each."""
        tiles = self._kernel.split_runs(first, rows, counters)
        self._kernel.check_tiles(tiles, len(self._buffer.masks), len(self.counts))
        uploaded = self._queue.upload(tiles)
        self._queue.launch(lambda: self._add_counts(self._buffer.masks, uploaded, self.counts))

    def keep_last(self, rows: NDArray[np.int64], counters: NDArray[np.int64]) -> None:
        """Store the masks of these rows of the step in `last` of the counters; int64 (n,) each."""
        source, target = self._queue.upload(rows), self._queue.upload(counters)
        self._queue.launch(lambda: self.last.index_copy_(0, target, self._buffer.masks.index_select(0, source)))

    def send(self, counter: int, deliver: Deliver) -> None:
        """Send a counter: [counts (layers, neurons), last (layers, neuron_bytes)]."""
        self._queue.send([self.counts[counter], self.last[counter]], deliver)
