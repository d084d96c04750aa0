"""Running requests that have a plan, as a table of columns: a step looks up all of them at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_extractor.protocol import PLAN_KEY, Plan, from_wire
from sparcom_extractor.vllm_surface.runner import NewRequestLike
from sparcom_extractor.writer.session import CaptureSession

NO_COUNTER = -1
_GROWTH = 64  # slots
_PLAN = ("index", "row", "begin", "end", "length_unknown", "prompt")
_SLOT = np.dtype([("session", object), *((name, np.int64) for name in (*_PLAN, "counted", "counter"))])


def plan_of(request: NewRequestLike) -> Plan | None:
    """Return the plan in a request's `extra_args`, or None: the request is not captured."""
    parameters = request.sampling_params  # pooling requests have none
    extra = (parameters.extra_args if parameters else None) or {}
    return from_wire(Plan, extra[PLAN_KEY]) if PLAN_KEY in extra else None


class RunningRequests:
    """Requests with a plan, one slot each.
    table: structured array (slots,), replaced when it grows: `session`, the fields of `Plan`, and two int64 columns.
    counted: first position not yet added to a counter on the device. counter: index of that counter, or NO_COUNTER."""

    def __init__(self) -> None:
        self.table: NDArray[Any] = np.zeros(0, dtype=_SLOT)
        self._slots: dict[str, int] = {}
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._slots)

    def add(self, request: str, plan: Plan, session: CaptureSession) -> None:
        """Add a request, or restart it after a preemption."""
        if request not in self._slots:
            if not self._free:
                self._free = list(range(len(self.table), len(self.table) + _GROWTH))
                self.table = np.concatenate([self.table, np.zeros(_GROWTH, dtype=_SLOT)])
            self._slots[request] = self._free.pop()
        values = (getattr(plan, name) for name in _PLAN)
        self.table[self._slots[request]] = (session, *values, plan.begin, NO_COUNTER)

    def remove(self, request: str) -> None:
        """Remove a request."""
        slot = self._slots.pop(request)
        self.table["session"][slot] = None  # releases a closed session
        self._free.append(slot)

    def slots(self, requests: Sequence[str]) -> NDArray[np.int64]:
        """Return the slot of each request, int64 (requests,); -1 for requests without a plan."""
        return np.fromiter(map(self._slots.get, requests, repeat(-1)), np.int64, len(requests))

    def planned(self, requests: Iterable[str]) -> list[tuple[str, int]]:
        """Return the requests that have a plan, each with its slot."""
        return [(request, self._slots[request]) for request in requests if request in self._slots]

    def of_session(self, session: CaptureSession) -> list[tuple[str, int]]:
        """Return the requests of a session, each with its slot."""
        return [item for item in self._slots.items() if self.table["session"][item[1]] is session]
