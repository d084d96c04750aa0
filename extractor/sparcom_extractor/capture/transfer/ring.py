"""Region allocator for a circular buffer. It touches no memory.

Regions are taken in order and do not wrap. They may be given back in any order; space is freed in the order of taking.
"""

from __future__ import annotations

ALIGNMENT = 256  # bytes: any dtype can be viewed at a region's start, and copies run at full width


def aligned(size: int) -> int:
    """Round `size` bytes up to the alignment; at least one unit, so that regions never coincide."""
    return max(1, -(-size // ALIGNMENT)) * ALIGNMENT


class ByteRing:
    """Regions of a buffer of `capacity` bytes. Not thread-safe."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity // ALIGNMENT * ALIGNMENT
        self._regions: dict[int, tuple[int, bool]] = {}  # in the order of taking; start: (stop, given back)

    def take(self, size: int) -> int | None:
        """Return the start of a region of at least `size` bytes, or None while there is no room.
        Raises ValueError if it is larger than the whole ring: waiting would never help."""
        size = aligned(size)
        if size > self.capacity:
            raise ValueError(f"a region must fit the ring of {self.capacity} bytes; {size} were requested")
        if (start := self._fit(size)) is not None:
            self._regions[start] = (start + size, False)
        return start

    def _fit(self, size: int) -> int | None:
        if not self._regions:
            return 0
        oldest, newest = next(iter(self._regions)), next(reversed(self._regions))
        free = self._regions[newest][0]
        wrapped = newest < oldest
        if free + size <= (oldest if wrapped else self.capacity):
            return free
        return 0 if not wrapped and size <= oldest else None

    def give_back(self, start: int) -> None:
        """Mark the region that begins at `start` as unused."""
        self._regions[start] = (self._regions[start][0], True)
        for oldest, (_, unused) in list(self._regions.items()):
            if not unused:
                break
            del self._regions[oldest]
