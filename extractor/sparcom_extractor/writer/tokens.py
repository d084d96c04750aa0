"""Token ids and positions of running instructions, as the steps fed them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_extractor.writer.rows import RowFault, StepRows, row_numbers, source_rows

_GROWTH = 64  # slots
UNWRITTEN = -1


class RunningTokens:
    """One slot per running instruction, so that a step's rows are stored by a fixed number of operations.

    Slots are as wide as the largest instruction so far. Memory is touched only where an instruction has rows.
    """

    def __init__(self, instructions: int) -> None:
        self._slot = np.full(instructions, -1, dtype=np.int64)
        self._free: list[int] = []
        self._values = np.empty((2, 0, 0), dtype=np.int32)  # ids and positions: (slots, rows)
        self._stop = np.zeros(0, dtype=np.int64)  # per slot, one past the last row that a step wrote
        self._faults: dict[int, RowFault] = {}

    def record_rows(self, ranges: NDArray[Any], step: StepRows) -> None:
        """Store ids and positions of the ranges, and the first fault of each instruction."""
        index, offset, rows = ranges["index"], ranges["offset"], ranges["rows"]
        for k in np.flatnonzero(self._slot[index] < 0).tolist():
            self._add(int(index[k]), int(ranges["capacity"][k]))
        slots, source = self._slot[index], source_rows(ranges)
        at = row_numbers(slots * self._values.shape[2] + offset, rows)
        flat = self._values.reshape(2, -1)
        flat[0, at], flat[1, at] = step.ids[source], step.positions[source]
        np.maximum.at(self._stop, slots, offset + rows)
        for number, fault in step.faults.items():
            known = self._faults.get(number)
            if self._slot[number] >= 0 and (known is None or fault.offset < known.offset):
                self._faults[number] = fault

    def take(self, index: int, length: int) -> tuple[NDArray[np.int32], int, str | None]:
        """Forget an instruction of `length` rows.

        Returns:
            Ids and positions, int32 (2, length), `UNWRITTEN` where no step wrote; one past the last row that a step
            wrote; and why it cannot be trusted, or None. Rows past its end do not matter.
        """
        slot, fault = int(self._slot[index]), self._faults.pop(index, None)
        if slot < 0:
            values, stop = np.full((2, length), UNWRITTEN, dtype=np.int32), 0
        else:
            values, stop = self._values[:, slot, :length].copy(), int(self._stop[slot])
            self._slot[index] = -1
            self._free.append(slot)
        if fault is not None and fault.offset < length:
            return values, stop, fault.reason
        missing = np.flatnonzero(values[0] == UNWRITTEN)
        reason = (
            f"every one of its {length} rows must be written by a step; {len(missing)} were not, the first is row "
            f"{int(missing[0])}. Run the instruction again"
            if len(missing)
            else None
        )
        return values, stop, reason

    def _add(self, index: int, capacity: int) -> None:
        if self._slot[index] >= 0:  # several ranges of a new instruction
            return
        slots, width = self._values.shape[1:]
        if not self._free or capacity > width:
            more = 0 if self._free else _GROWTH
            larger = np.empty((2, slots + more, max(width, capacity)), dtype=np.int32)
            used = self._slot[self._slot >= 0]
            larger[:, used, :width] = self._values[:, used]
            self._values = larger
            self._stop = np.concatenate([self._stop, np.zeros(more, dtype=np.int64)])
            self._free += range(slots, slots + more)
        slot = self._free.pop()
        self._slot[index], self._stop[slot] = slot, 0
        self._values[:, slot, :capacity] = UNWRITTEN
