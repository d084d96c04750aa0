"""One progress over several passes, of rows read or of shuffles made, taken as equally long until they begin."""

from __future__ import annotations

from sparcom_analysis.measures.frequencies import Progress


class Passes:
    """Gives the progress of each pass as it begins, and reports all of them as one."""

    def __init__(self, progress: Progress | None, count: int) -> None:
        self._progress, self._count = progress, count
        self._begun, self._before, self._last = 0, 0, 0

    def next(self) -> Progress | None:
        """The progress of the next pass."""
        if self._progress is None:
            return None
        report, left = self._progress, max(0, self._count - self._begun - 1)
        self._before += self._last
        self._begun, self._last = self._begun + 1, 0
        before = self._before

        def advance(done: int, total: int) -> None:
            self._last = total
            report(before + done, before + total * (1 + left))

        return advance

    def finish(self) -> None:
        """All is done, passes that were not needed included."""
        if self._progress is not None and self._begun:
            self._progress(self._before + self._last, self._before + self._last)
