"""How tensors of a step leave for the writer: the interface, and its implementation for tensors on the host.

    send([masks, ids, positions, …], deliver)  ─▶  deliver([arrays of the same values], done)

Transfers are delivered in the order of sending. The receiver may use the arrays until it calls `done`, once.
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


class TransferQueue(Protocol):
    """The way from the step's tensors to the sessions."""

    delivers_in_step: bool  # `send` delivers before it returns, so that a receiver that waits makes the step wait
    backpressure_seconds: float  # total time that steps waited for room
    sent_bytes: int  # total

    def send(self, parts: Sequence[torch.Tensor], deliver: Deliver) -> None:
        """Copy the parts in the order of the step's stream, and deliver them when they have arrived."""

    def launch(self, work: Callable[[], object]) -> None:
        """Do `work` on the tensors in the order of the step's stream."""

    def check(self) -> None:
        """Raise RuntimeError if a transfer could not be delivered."""

    def memory(self) -> dict[str, int]:
        """Return the bytes that the queue holds, by purpose."""

    def close(self) -> None:
        """Deliver what was sent, then stop."""


class HostTransferQueue:
    """Copies tensors on the host and delivers them before `send` returns."""

    delivers_in_step = True
    backpressure_seconds = 0.0
    sent_bytes = 0

    def send(self, parts: Sequence[torch.Tensor], deliver: Deliver) -> None:
        """Copy and deliver."""
        deliver([np.array(part.numpy()) for part in parts], lambda: None)

    def launch(self, work: Callable[[], object]) -> None:
        """Do it at once."""
        work()

    def check(self) -> None:
        """Do nothing: `send` raises its errors itself."""

    def memory(self) -> dict[str, int]:
        """Return {}: nothing is held."""
        return {}

    def close(self) -> None:
        """Do nothing: everything is delivered."""
