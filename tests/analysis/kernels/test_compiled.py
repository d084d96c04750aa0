"""Compiled loops, checked against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparcom_analysis.kernels import compiled as kernels


@settings(deadline=None, max_examples=20)
@given(
    sets=st.sampled_from([1, 2, 15, 16, 17, 40]),
    words=st.sampled_from([1, 5, 1023, 1024, 1025, 2100]),
    seed=st.integers(0, 9),
    data=st.data(),
)
def test_intersections_equal_those_of_numpy(sets: int, words: int, seed: int, data: st.DataObject) -> None:
    """Every pair has the number of common bits, for any requested rows."""
    rng = np.random.default_rng(seed)
    packed = rng.integers(0, 2**64, size=(sets, words), dtype=np.uint64)
    first = data.draw(st.integers(0, sets - 1))
    last = data.draw(st.integers(first + 1, sets))
    expected = np.array([[int(np.bitwise_count(a & b).sum()) for b in packed[first:]] for a in packed[first:last]])
    assert (kernels.intersection_sizes(packed[first:last], packed[first:]) == expected).all()
    later = kernels.intersection_sizes(packed[first:last], packed[first:], later_only=True)
    assert (np.triu(later) == np.triu(expected)).all()


def test_a_failure_on_a_thread_is_raised() -> None:
    """An exception in one range reaches the caller."""

    def fail(first: int, last: int) -> None:
        raise KeyError(first)

    with pytest.raises(KeyError):
        kernels.parallel_for(fail, 100, 10)


@settings(deadline=None)
@given(stop=st.integers(0, 50), step=st.integers(1, 60))
def test_ranges_cover_everything_once(stop: int, step: int) -> None:
    """parallel_for hands every index to exactly one call."""
    seen: list[int] = []
    kernels.parallel_for(lambda first, last: seen.extend(range(first, last)), stop, step)
    assert sorted(seen) == list(range(stop))


@settings(deadline=None)
@given(values=st.lists(st.integers(0, 40), max_size=200), spare=st.integers(0, 3))
def test_histogram_equals_that_of_numpy(values: list[int], spare: int) -> None:
    """Every value up to the largest is counted, odd lengths and none at all included."""
    largest = max(values, default=0) + spare
    found = kernels.histogram(np.array(values, dtype=np.uint32), largest)
    assert found.tolist() == np.bincount(np.array(values, dtype=np.int64), minlength=largest + 1).tolist()


def test_histogram_refuses_values_past_its_end() -> None:
    """The caller checks bounds, because compiled code does not."""
    with pytest.raises(ValueError, match="at most 3; the largest is 4"):
        kernels.histogram(np.array([1, 4], dtype=np.uint32), 3)


def test_kernels_compile_without_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels compile even if Numba cannot cache (read-only installation, no writable home)."""
    seen: list[bool] = []

    def njit(*, nogil: bool, cache: bool = False) -> object:
        seen.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(kernels, "njit", njit)
    assert kernels.compiled(abs) is abs
    assert seen == [True, False]
