"""The requests that run with a plan: where each one's rows go, kept in columns so that a step is looked up at once.

A request says where its rows go with the `Plan` in its `extra_args`. Requests without a plan are left alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_extractor.protocol import PLAN_KEY, Plan, from_wire

NO_SLOT = -1


def plan_of(request: Any) -> Plan | None:
    """The plan of one of vLLM's new requests, or None."""
    extra = getattr(request.sampling_params, "extra_args", None) or {}
    return from_wire(Plan, extra[PLAN_KEY]) if PLAN_KEY in extra else None


# counted: the first position that has not been added to the counters on the device; slot: the counter, or NO_SLOT.
_COLUMNS = ("session", "index", "row", "begin", "end", "length_unknown", "prompt", "counted", "slot")


class RunningRequests:
    """A table of requests with a plan, one line each. Columns are int64 and are read and written as attributes of a
    selection of lines; `session` is the number of a name."""

    def __init__(self) -> None:
        self._lines: dict[str, int] = {}
        self._free: list[int] = []
        self._numbers: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._next_number = itertools.count()
        self._columns = np.zeros((len(_COLUMNS), 0), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, request: str, plan: Plan) -> None:
        """Begin a request; once more where it was known, as after a preemption."""
        if request not in self._lines:
            if not self._free:
                self._grow()
            self._lines[request] = self._free.pop()
        values = (
            self.number(plan.session),
            plan.index,
            plan.row,
            plan.begin,
            plan.end,
            plan.length_unknown,
            plan.prompt,
            plan.begin,
            NO_SLOT,
        )
        self._columns[:, self._lines[request]] = values

    def remove(self, request: str) -> None:
        """Forget a request."""
        line = self._lines.pop(request, None)
        if line is not None:
            self._free.append(line)

    def lines(self, requests: Sequence[str]) -> NDArray[np.int64]:
        """The line of each request, -1 for those without a plan: int64 (requests,)."""
        return np.fromiter((self._lines.get(request, -1) for request in requests), np.int64, len(requests))

    def known(self, requests: Iterable[str]) -> list[tuple[str, int]]:
        """Those of the requests that have a plan, each with its line."""
        return [(request, self._lines[request]) for request in requests if request in self._lines]

    def of_session(self, session: str) -> list[tuple[str, int]]:
        """The requests of a session, each with its line."""
        number = self.number(session)
        return [(name, line) for name, line in self._lines.items() if self._columns[0, line] == number]

    def column(self, name: str) -> NDArray[np.int64]:
        """A column, a view: int64 (lines,)."""
        column: NDArray[np.int64] = self._columns[_COLUMNS.index(name)]
        return column

    def name(self, number: int) -> str:
        """The name behind a number of the column `session`."""
        return self._names[number]

    def number(self, session: str) -> int:
        """The number of a session's name, the same until it is forgotten."""
        if session not in self._numbers:
            number = self._numbers[session] = next(self._next_number)
            self._names[number] = session
        return self._numbers[session]

    def forget(self, session: str) -> None:
        """No request of this session is left: what a step looks through does not grow with sessions that ended."""
        self._names.pop(self._numbers.pop(session, -1), None)

    def _grow(self) -> None:
        size = self._columns.shape[1]
        more = max(64, size)
        self._columns = np.concatenate([self._columns, np.zeros((len(_COLUMNS), more), dtype=np.int64)], axis=1)
        self._free.extend(range(size + more - 1, size - 1, -1))
