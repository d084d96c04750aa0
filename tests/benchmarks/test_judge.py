"""Intervals, verdicts and the choice of a disk, with known numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from verdict.judge import Place, choose_place, find_place, judge, t_quantile

DISK = Place("written", "/disk", rate=2.0e9, free=50 << 30)
MEMORY = Place("in memory", "/dev/shm", rate=9.0e9, free=60 << 30)  # noqa: S108


@pytest.mark.parametrize("freedom", [2, 3, 7, 11, 40])
def test_the_quantile_is_that_of_student(freedom: int) -> None:
    """The simulated quantile is within 1 % of SciPy's."""
    assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.01)


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([0.990, 0.991, 0.989, 0.990], "holds"),
        ([0.96, 0.961, 0.959, 0.96], "fails"),
        ([0.99, 0.97, 0.98, 0.985], "undecided"),
        ([0.985, 0.965, 0.975, 0.98], "undecided"),
        ([0.99, 0.991], "undecided"),  # too few pairs
        ([0.90], "undecided"),
    ],
)
def test_the_verdict_needs_the_whole_interval(ratios: list[float], verdict: str) -> None:
    """A goal holds if the whole interval reaches it, fails if none of it does, and needs three pairs for either."""
    found = judge(ratios)
    assert found.verdict == verdict
    assert (found.low is None) == (len(ratios) < 3)


def test_the_interval_is_that_of_paired_logarithms() -> None:
    """The interval equals SciPy's t interval of the logarithms."""
    ratios = [0.97, 0.99, 1.01, 0.98, 0.985]
    logs = np.log(ratios)
    low, high = stats.t.interval(0.95, len(logs) - 1, logs.mean(), stats.sem(logs))
    found = judge(ratios)
    assert found.ratio == pytest.approx(stats.gmean(ratios))
    assert (found.low, found.high) == pytest.approx((np.exp(low), np.exp(high)), rel=1e-3)


def test_the_interval_covers_the_true_ratio() -> None:
    """Of 1,000 intervals from eight noisy pairs, about 950 hold the true ratio."""
    draw = np.random.default_rng(0)
    found = [judge(np.exp(draw.normal(np.log(0.98), 0.01, 8)).tolist()) for _ in range(1000)]
    assert 925 <= sum(item.low is not None and item.low <= 0.98 <= (item.high or 0) for item in found) <= 975


def test_a_fast_disk_is_used() -> None:
    """A disk that takes the rate with headroom holds the archives; nothing is refused."""
    assert choose_place([DISK, MEMORY], rate=1.79e9, size=6 << 30) == (DISK, [])


@pytest.mark.parametrize(
    ("rate", "size", "reason"),
    [
        (1.9e9, 6 << 30, "/disk takes 2,000 MB/s; 2,090 MB/s are needed"),  # 5 % faster than needed is too little
        (1.0e9, 48 << 30, "/disk has 53.7 GB free; 57.8 GB are needed"),
    ],
)
def test_a_slow_or_full_disk_is_named(rate: float, size: int, reason: str) -> None:
    """A disk that is too slow or too full is refused with both figures, and memory is used."""
    assert choose_place([DISK, MEMORY], rate, size) == (MEMORY, [reason])


def test_nothing_is_measured_if_no_place_will_do() -> None:
    """If neither disk nor memory holds the archive, there is no place, and both reasons are given."""
    place, reasons = choose_place([DISK, MEMORY], 1.0e9, 100 << 30)
    assert place is None
    assert len(reasons) == 2


def test_the_rate_of_a_disk_is_measured_in_the_given_folder(tmp_path: Path) -> None:
    """Measuring writes synced chunks, at most the given bytes, and leaves no file behind."""
    place = find_place("written", tmp_path, seconds=5.0, most=8 * (7 << 20))
    assert place.rate > 1e6
    assert place.free > 0
    assert list(tmp_path.iterdir()) == []
