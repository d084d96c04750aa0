"""How much time is left, and how much of it a step may have. Knows steps only by two numbers of seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]


class Budget:
    """Seconds of a whole self-test, counted from when it is made."""

    def __init__(self, seconds: float, clock: Clock = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._started = clock()

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started

    @property
    def left(self) -> float:
        """Seconds until the end, never below 0."""
        return max(0.0, self.seconds - self.spent)

    def allowance(self, most: float, least: float, keep: float = 0.0) -> float | None:
        """Seconds that a step may take, at most `most`; None where fewer than `least` are to be had.

        keep: seconds that later steps need at least. They are left alone where everything fits; where it does not,
        who comes first is served first, for a step that is cut short has used its time for little.
        """
        if self.left < least:
            return None
        return min(most, self.left - keep if self.left >= keep + least else self.left)
