"""The running requests that have a plan, as a table of columns: one step looks all of them up at once.

Requests without a `Plan` in their `extra_args` are left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_extractor.protocol import PLAN_KEY, Plan, from_wire
from sparcom_extractor.vllm_surface.runner import NewRequest

NO_COUNTER = -1
_GROWTH = 64  # slots
_PLAN = ("index", "row", "begin", "end", "length_unknown", "prompt")
_SLOT = np.dtype([(name, np.int64) for name in ("session", *_PLAN, "counted", "counter")])


def plan_of(request: NewRequest) -> Plan | None:
    """Return the plan of a new request, or None."""
    parameters = request.sampling_params  # pooling requests have none
    extra = (parameters.extra_args if parameters else None) or {}
    return from_wire(Plan, extra[PLAN_KEY]) if PLAN_KEY in extra else None


class RunningRequests:
    """Requests with a plan, one slot each.

    Attributes:
        table: structured, (slots,), int64 fields: those of `Plan`, the session as a number; `counted`: the first
            position that is not yet added to a counter on the device; `counter`: its index, or NO_COUNTER.
    """

    def __init__(self) -> None:
        self.table: NDArray[Any] = np.zeros(0, dtype=_SLOT)
        self._slots: dict[str, int] = {}
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._slots)

    def add(self, request: str, plan: Plan, session: int) -> None:
        """Begin a request, or begin it again after a preemption."""
        if request not in self._slots:
            if not self._free:
                self._free = list(range(len(self.table), len(self.table) + _GROWTH))
                self.table = np.concatenate([self.table, np.zeros(_GROWTH, dtype=_SLOT)])
            self._slots[request] = self._free.pop()
        values = (getattr(plan, name) for name in _PLAN)
        self.table[self._slots[request]] = (session, *values, plan.begin, NO_COUNTER)

    def remove(self, request: str) -> None:
        """Forget a request."""
        self._free.append(self._slots.pop(request))

    def slots(self, requests: Sequence[str]) -> NDArray[np.int64]:
        """Return the slot of each request, int64 (requests,); -1 for requests without a plan."""
        return np.fromiter((self._slots.get(request, -1) for request in requests), np.int64, len(requests))

    def planned(self, requests: Iterable[str]) -> list[tuple[str, int]]:
        """Return those of the requests that have a plan, each with its slot."""
        return [(request, self._slots[request]) for request in requests if request in self._slots]

    def of_session(self, session: int) -> list[tuple[str, int]]:
        """Return the requests of a session, each with its slot."""
        return [(request, slot) for request, slot in self._slots.items() if self.table["session"][slot] == session]
