"""Queue that transfers a step's tensors to the writer: the interface, and its implementation for host tensors.

send([masks, ids, positions, …], deliver)  ─▶  deliver([arrays of the same values], done)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

Arrays = Sequence[NDArray[Any]]
Done = Callable[[], None]
Deliver = Callable[[Arrays, Done], None]
"""Receives arrays, and may use them until it calls `done`, once."""


class TransferQueue(Protocol):
    """Transfers the step's tensors to the sessions, in the order of sending.
    delivers_in_step: `send` delivers before it returns, so a waiting receiver blocks the step.
    backpressure_seconds: total time that steps waited for room. sent_bytes: total."""

    delivers_in_step: bool
    backpressure_seconds: float
    sent_bytes: int

    # Copies the parts in the order of the step's stream, and delivers them on arrival.
    def send(self, parts: Sequence[torch.Tensor], deliver: Deliver) -> None: ...
    # Runs `work` on tensors, in the order of the step's stream.
    def launch(self, work: Callable[[], object]) -> None: ...
    def check(self) -> None: ...  # RuntimeError if a transfer could not be delivered
    def memory(self) -> dict[str, int]: ...  # bytes that the queue holds, by purpose
    def close(self) -> None: ...  # delivers pending transfers, then stops


class HostTransferQueue:
    """Copies tensors on the host and delivers them before `send` returns."""

    delivers_in_step = True
    backpressure_seconds = 0.0
    sent_bytes = 0

    def send(self, parts: Sequence[torch.Tensor], deliver: Deliver) -> None:
        deliver([np.array(part.numpy()) for part in parts], lambda: None)

    def launch(self, work: Callable[[], object]) -> None:
        work()

    def check(self) -> None:
        """Do nothing: `send` raises a receiver's error itself."""

    def memory(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        pass
