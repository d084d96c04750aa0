"""Counters on the device: how often each neuron was active at the rows of each running instruction.

A running request holds a slot. After every step its new rows are added to it, on the step's stream, before the next
step overwrites the masks; when the request has run, the slot leaves through the outbox and is free again. Beside the
counts lies the mask of the last row: where the engine ran one step past a request's end before it knew, the writer
takes that row off again. It does not know which rows are new; `capture/step.py` does.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from sparcom_extractor.capture.ops.count_kernel import add_counts, check_tiles, split_runs
from sparcom_extractor.capture.ops.step_buffers import MaskBuffer
from sparcom_extractor.capture.transfer.device import DeviceOutbox
from sparcom_extractor.capture.transfer.outbox import Deliver

SPARE_SLOTS = 16


class DeviceCounters:
    """Slots of counters.

    counts: int32 (slots, layers, neurons). last: uint8 (slots, layers, neuron_bytes).
    """

    def __init__(self, buffer: MaskBuffer, outbox: DeviceOutbox, requests: int) -> None:
        """
        Args:
            buffer: the masks of a step.
            outbox: the way off its device.
            requests: how many run at once.
        """
        _, layers, neuron_bytes = buffer.masks.shape
        slots, device = requests + SPARE_SLOTS, buffer.masks.device
        self._buffer, self._outbox = buffer, outbox
        self.counts = torch.zeros((slots, layers, buffer.neurons), dtype=torch.int32, device=device)
        self.last = torch.zeros((slots, layers, neuron_bytes), dtype=torch.uint8, device=device)
        self._free = list(range(slots - 1, -1, -1))

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self.counts.nbytes + self.last.nbytes

    def take(self, number: int) -> NDArray[np.int64]:
        """So many slots, set to zero: int64 (number,).

        Raises:
            RuntimeError: more requests hold slots than run at once.
        """
        if number > len(self._free):
            raise RuntimeError(
                f"requests that run hold the {len(self.counts)} counters; {number} more were asked for, and "
                f"{len(self._free)} are free. Report the vLLM version and max_num_seqs"
            )
        slots = np.array([self._free.pop() for _ in range(number)], dtype=np.int64)
        chosen = self._outbox.upload(slots)
        self._outbox.launch(lambda: self.counts.index_fill_(0, chosen, 0))
        return slots

    def give_back(self, slot: int) -> None:
        """The slot is free; what is enqueued already reads it first."""
        self._free.append(slot)

    def add(self, first: NDArray[np.int64], rows: NDArray[np.int64], slots: NDArray[np.int64]) -> None:
        """Add rows [first, first + rows) of the step to the slots; int64 (n,) each."""
        tiles = split_runs(first, rows, slots)
        check_tiles(tiles, len(self._buffer.masks), len(self.counts))
        uploaded = self._outbox.upload(tiles)
        self._outbox.launch(lambda: add_counts(self._buffer.masks, uploaded, self.counts))

    def keep_last(self, rows: NDArray[np.int64], slots: NDArray[np.int64]) -> None:
        """Keep the masks of these rows of the step as the slots' last; int64 (n,) each."""
        source, target = self._outbox.upload(rows), self._outbox.upload(slots)
        self._outbox.launch(
            lambda: self.last.index_copy_(0, target, self._buffer.masks.index_select(0, source)),
        )

    def send(self, slot: int, deliver: Deliver) -> None:
        """Let a slot leave: [counts (layers, neurons), last (layers, neuron_bytes)]."""
        self._outbox.send([self.counts[slot], self.last[slot]], deliver)
