"""How tensors of a step leave for the writer: the interface, and the simple way for tensors that are on the host.

    send([masks, ids, positions, …], deliver)  ─▶  deliver([arrays of the same values], done)

Letters are delivered in the order in which they were sent. The arrays may be used until `done` is called, which
must happen once. It does not know what it carries. `capture/device.py` is the way off a device.
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


class Outbox(Protocol):
    """What a step needs of a way out."""

    delivers_in_step: bool
    """Whether `send` delivers before it returns, so that a receiver which waits makes the step wait."""
    backpressure_seconds: float
    """How long steps have stood still because the way out had no room."""

    def send(self, parts: Sequence[torch.Tensor], deliver: Deliver) -> None:
        """Copy the parts as they are now, in the order of the step's stream, and deliver them when they are there."""

    def launch(self, work: Callable[[], object]) -> None:
        """Do `work` on the tensors in the order of the step's stream."""

    def check(self) -> None:
        """Raise RuntimeError where something that was sent could not be delivered."""

    def close(self) -> None:
        """Deliver what was sent, then stop."""


class HostOutbox:
    """For tensors on the host: copies at once and delivers before `send` returns."""

    delivers_in_step = True
    backpressure_seconds = 0.0

    def send(self, parts: Sequence[torch.Tensor], deliver: Deliver) -> None:
        """Copy and deliver."""
        deliver([np.array(part.numpy()) for part in parts], _nothing)

    def launch(self, work: Callable[[], object]) -> None:
        """Do it at once."""
        work()

    def check(self) -> None:
        """What could not be delivered was raised by `send`."""

    def close(self) -> None:
        """Nothing is under way."""


def _nothing() -> None:
    """Arrays of their own need no giving back."""
