"""Ring regions never overlap, in whatever order they are given back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparcom_extractor.capture.transfer.ring import ALIGNMENT, ByteRing, aligned

CAPACITY = 16 * ALIGNMENT


@given(st.lists(st.tuples(st.integers(0, CAPACITY), st.integers(0, 9)), max_size=60))
def test_regions_never_overlap(moves: list[tuple[int, int]]) -> None:
    """Regions of any size, given back in any order, are disjoint, within the ring and aligned."""
    ring, taken = ByteRing(CAPACITY), list[tuple[int, int]]()
    for size, which in moves:
        start = ring.take(size)
        if start is None:
            assert taken, "an empty ring has room for everything that fits"
            gone = taken.pop(which % len(taken))
            ring.give_back(gone[0])
        else:
            assert start % ALIGNMENT == 0
            stop = start + aligned(size)
            assert stop <= CAPACITY
            assert all(stop <= first or last <= start for first, last in taken)
            taken.append((start, stop))
    for start, _ in taken:
        ring.give_back(start)
    assert ring.take(CAPACITY) == 0


def test_room_is_freed_in_the_order_of_taking() -> None:
    """A later region that is given back first waits for the earlier one."""
    ring = ByteRing(2 * ALIGNMENT)
    first, second = ring.take(1), ring.take(1)
    assert ring.take(1) is None
    assert second is not None
    ring.give_back(second)
    assert ring.take(1) is None
    assert first is not None
    ring.give_back(first)
    assert ring.take(2 * ALIGNMENT) == 0


def test_a_region_wraps_as_a_whole() -> None:
    """A region that does not fit after the newest one begins at the start again."""
    ring = ByteRing(4 * ALIGNMENT)
    first = ring.take(3 * ALIGNMENT)
    assert first == 0
    assert ring.take(2 * ALIGNMENT) is None
    ring.give_back(0)
    assert ring.take(ALIGNMENT) == 0
    assert ring.take(3 * ALIGNMENT) == ALIGNMENT
    assert ring.take(1) is None


def test_a_region_larger_than_the_ring_is_refused() -> None:
    """Waiting for it would never end, so an error names both sizes."""
    with pytest.raises(ValueError, match=f"must fit the ring of {CAPACITY} bytes; {CAPACITY + ALIGNMENT} were"):
        ByteRing(CAPACITY).take(CAPACITY + 1)
