"""How far category means could lie from what other instructions would give: bootstrap intervals.

1. Within each category as many instructions as it has are drawn with replacement, `resamples` times; a resample is a
   weight for each instruction, how often it was drawn. One set of draws serves all measures of the same instructions.
2. Each measure is computed again under the weights, as products of matrices.
3. Low and high are percentiles of the results, (1 ± confidence) / 2, interpolated between neighbours.

An instruction drawn twice makes a pair of two draws whose similarity is 1 whatever the model does. Counted as a pair
of two instructions it would pull every mean within a category up, by (1 - mean) / n. So such pairs are not counted:
without self pairs, the mean within a category is Σ_{i≠j} w_i w_j m_ij / Σ_{i≠j} w_i w_j over distinct instructions i
and j. With self pairs (equations 10 and 14) every draw is paired with itself once, as in the equation: with s draws
and that mean u it is ((s - 1) u + Σ_i w_i m_ii / s) / s. Between categories there are none: Σ w_i w_j m_ij / Σ w_i w_j.

A value that is not defined is in no mean. A resample without any value for a cell is left out of that cell. There is no
interval (NaN) for a category of one instruction, nor, since there is only one pair, within a category of two.

Draws come from PCG64. Sums are exact (see `pair_matrix`), so neither cores nor blocks change a digit. What is estimated
is what other instructions of the same categories would give with the same model, not what other models would.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.archive.categories import category_codes, category_labels
from sparcom_analysis.options import Options
from sparcom_analysis.resampling.pairs import PairMatrix, fixed
from sparcom_data.errors import InvalidInputError

RESAMPLES = 1000
CONFIDENCE = 0.95
SEED = 0
LEAST = 2  # instructions with a value that a category must have
LEAST_WITHIN = 3  # of two there is one pair, and every resample that has a pair has that one
BLOCK_VALUES = 1 << 20  # values of all resamples that are sorted at once: 8 MiB


@dataclass(frozen=True, slots=True)
class Resamples:
    """Draws of instructions within their categories.

    categories: n names, one an instruction. weights: float64 (resample, n), how often each was drawn: whole numbers
    that add up to the size of its category. confidence: share of the results between low and high. seed: of the draws.
    """

    categories: Sequence[str]
    weights: NDArray[np.float64]
    confidence: float
    seed: int

    def __len__(self) -> int:
        return len(self.weights)

    def check(self, categories: Sequence[str]) -> None:
        """Refuse values of other instructions than were drawn from."""
        if list(categories) != list(self.categories):
            raise ValueError("resamples must be drawn from the categories of the same instructions")


@dataclass(frozen=True, slots=True)
class Interval:
    """Where the middle of the resampled results lies.

    low, high: float64, shaped as the measure; NaN for none.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PairIntervals:
    """Intervals of the means over pairs, (c, c).

    with_self, without_self: pairs of an instruction with itself counted, and left out.
    """

    with_self: Interval
    without_self: Interval


@dataclass(frozen=True, slots=True)
class MeanIntervals:
    """Intervals of means of values of instructions.

    by_category: (c, …). overall: (…), over all instructions.
    """

    by_category: Interval
    overall: Interval


def resamples_for(categories: Sequence[str], options: Options) -> Resamples | None:
    """Return the draws that `options` ask for; None for no intervals."""
    if not options.n_resamples:
        return None
    return draw_resamples(
        categories, resamples=options.n_resamples, confidence=options.confidence_level, seed=options.seed
    )


def draw_resamples(
    categories: Sequence[str], *, resamples: int = RESAMPLES, confidence: float = CONFIDENCE, seed: int = SEED
) -> Resamples:
    """Draw instructions with replacement within each category.

    Args:
        categories: n names, one an instruction.
        resamples: how many times, at least 1. confidence: above 0 and below 1. seed: 0 or more.

    Raises:
        InvalidInputError: saying which of them is not so.
    """
    problems = []
    if resamples < 1:
        problems.append(f"resamples must be at least 1; they are {resamples}")
    if not 0 < confidence < 1:
        problems.append(f"confidence must be above 0 and below 1; it is {confidence}")
    if seed < 0:
        problems.append(f"the seed must be 0 or more; it is {seed}")
    if problems:
        raise InvalidInputError(problems)
    rng = np.random.Generator(np.random.PCG64(seed))
    codes = category_codes(categories)
    weights = np.zeros((resamples, len(codes)))
    lines = np.arange(resamples)[:, None]
    for code in range(len(category_labels(categories))):
        members = np.flatnonzero(codes == code)
        drawn = rng.integers(len(members), size=(resamples, len(members)))
        places = (lines * len(members) + drawn).ravel()
        weights[:, members] = np.bincount(places, minlength=drawn.size).reshape(drawn.shape)
    return Resamples(list(categories), weights, confidence, seed)


def pair_intervals(pairs: PairMatrix, resamples: Resamples) -> PairIntervals:
    """Intervals for every cell of equation 10 or of equation 14, of both versions."""
    found = _Ends(len(pairs.labels), resamples.confidence)
    for a, b, means in resampled_cells(pairs, resamples):
        found.add(a, b, means)
    return found.intervals


def difference_intervals(
    first: PairMatrix, second: PairMatrix, resamples: Resamples
) -> tuple[PairIntervals, PairIntervals, PairIntervals]:
    """Intervals of two measures of the same instructions and of second minus first, from the same draws.

    That of the difference is not what the two others differ by: both measures rise and fall with the same draws.
    """
    ends = [_Ends(len(first.labels), resamples.confidence) for _ in range(3)]
    cells = zip(resampled_cells(first, resamples), resampled_cells(second, resamples), strict=True)
    for (a, b, one), (_, _, other) in cells:
        ends[0].add(a, b, one)
        ends[1].add(a, b, other)
        ends[2].add(a, b, (other[0] - one[0], other[1] - one[1]))
    return ends[0].intervals, ends[1].intervals, ends[2].intervals


Both = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Means of all resamples, self pairs counted and left out: float64 (resample,) each."""


class _Ends:
    """Ends of both versions of a matrix over c categories, filled in cell by cell."""

    def __init__(self, count: int, confidence: float) -> None:
        ends = [np.full((count, count), np.nan) for _ in range(4)]
        self.intervals = PairIntervals(Interval(ends[0], ends[1]), Interval(ends[2], ends[3]))
        self._confidence = confidence

    def add(self, a: int, b: int, results: Both) -> None:
        """The cell of categories a and b, and its mirror."""
        both = (self.intervals.with_self, self.intervals.without_self)
        for interval, means in zip(both, results, strict=True):
            low, high = percentiles(means[:, None], self._confidence)
            interval.low[[a, b], [b, a]] = low
            interval.high[[a, b], [b, a]] = high


def resampled_cells(pairs: PairMatrix, resamples: Resamples) -> Iterator[tuple[int, int, Both]]:
    """Every two categories a ≤ b, and their means of all resamples; NaN where there are too few instructions."""
    resamples.check(pairs.categories)
    codes, defined = pairs.codes, pairs.defined
    members = [np.flatnonzero((codes == code) & defined) for code in range(len(pairs.labels))]
    weights = [resamples.weights[:, one] for one in members]
    nothing = np.full(len(resamples), np.nan)
    for a, b in zip(*(side.tolist() for side in np.triu_indices(len(members))), strict=True):
        if min(len(members[a]), len(members[b])) < LEAST:
            yield a, b, (nothing, nothing)
            continue
        block = pairs.values[np.ix_(members[a], members[b])]
        if a == b:
            yield a, b, _within(weights[a], block, pairs.bits)
        else:
            yield a, b, (_between(weights[a], weights[b], block, pairs.bits),) * 2


def _within(weights: NDArray[np.float64], block: NDArray[np.float64], bits: int) -> Both:
    """Means of all resamples within one category, self pairs counted and left out: float64 (resample,) each."""
    drawn = weights.sum(axis=1)
    if weights.shape[1] < LEAST_WITHIN:
        nothing = np.full(len(weights), np.nan)
        return nothing, nothing
    upper = np.triu(fixed(block, bits), 1)
    pairs = (drawn * drawn - (weights * weights).sum(axis=1)) / 2  # i < j
    apart = _ratio(_bilinear(weights, upper, weights, bits), pairs)
    itself = _ratio(np.ldexp(weights @ fixed(np.diagonal(block), bits), -bits), drawn)
    together = _ratio((drawn - 1) * np.where(drawn == 1, 0.0, apart) + itself, drawn)
    return together, apart


def _between(
    left: NDArray[np.float64], right: NDArray[np.float64], block: NDArray[np.float64], bits: int
) -> NDArray[np.float64]:
    """Means of all resamples between two categories: float64 (resample,)."""
    return _ratio(_bilinear(left, fixed(block, bits), right, bits), left.sum(axis=1) * right.sum(axis=1))


def _bilinear(
    left: NDArray[np.float64], block: NDArray[np.float64], right: NDArray[np.float64], bits: int
) -> NDArray[np.float64]:
    """Σ_ij left_i block_ij right_j of every resample, of a block in fixed point: float64 (resample,)."""
    rows = (left @ block).astype(np.int64)
    total: NDArray[np.int64] = np.einsum("rj,rj->r", rows, right.astype(np.int64))
    return np.ldexp(total.astype(np.float64), -bits)


def mean_intervals(values: NDArray[np.float64] | NDArray[np.int64], resamples: Resamples) -> MeanIntervals:
    """Intervals of the means of what each instruction has: ISNs by layer, alteration, expert frequencies.

    Args:
        values: float64 or int64 (n, …); NaN where an instruction has no value, which is then in no mean.
        resamples: drawn from the categories of the same n instructions.
    """
    if len(values) != len(resamples.categories):
        raise ValueError(f"there must be values of {len(resamples.categories)} instructions; there are {len(values)}")
    codes, labels = category_codes(resamples.categories), category_labels(resamples.categories)
    flat = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    shape = values.shape[1:]
    low, high = np.full((2, len(labels) + 1, flat.shape[1]), np.nan)
    step = max(1, BLOCK_VALUES // (len(resamples) * (len(labels) + 1)))
    for first in range(0, flat.shape[1], step):
        part = slice(first, first + step)
        results = weighted_means(flat[:, part], resamples.weights, codes, len(labels))
        low[:, part], high[:, part] = percentiles(results, resamples.confidence)
    low, high = low.reshape(-1, *shape), high.reshape(-1, *shape)
    return MeanIntervals(Interval(low[:-1], high[:-1]), Interval(low[-1], high[-1]))


def weighted_means(
    values: NDArray[np.float64], weights: NDArray[np.float64], codes: NDArray[np.intp], count: int
) -> NDArray[np.float64]:
    """Means of (n, k) values by category, and over all last: float64 (resample, count + 1, k).

    Args:
        values: NaN where an instruction has none. weights: float64 (resample, n). codes: intp (n,), categories by
            index, below `count`.
    """
    known = ~np.isnan(values)
    whole, bits = _fixed_columns(np.where(known, values, 0.0))
    sums = np.zeros((len(weights), count + 1, values.shape[1]))
    drawn, few = np.zeros_like(sums), np.zeros((count + 1, values.shape[1]), dtype=np.bool_)
    for code in range(count):
        members = codes == code
        sums[:, code] = weights[:, members] @ whole[members]
        drawn[:, code] = weights[:, members] @ known[members].astype(np.float64)
        few[code] = known[members].sum(axis=0) < LEAST
    sums[:, count], drawn[:, count] = sums[:, :count].sum(axis=1), drawn[:, :count].sum(axis=1)
    few[count] = known.sum(axis=0) < LEAST
    means = np.ldexp(_ratio(sums, drawn), -bits)
    means[:, few] = np.nan
    return means


def _fixed_columns(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.intc]]:
    """Values (n, k) as whole numbers, and the binary places of each column, so many that sums of n are exact."""
    _, exponent = np.frexp(np.abs(values).max(axis=0, initial=0.0))
    bits = (53 - len(values).bit_length() - exponent).astype(np.intc)
    return np.rint(np.ldexp(values, bits)), bits


def _ratio(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def percentiles(results: NDArray[np.float64], confidence: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The (1 ± confidence) / 2 quantiles over the first axis, NaN left out, as `numpy.quantile` interpolates them.

    `numpy.nanquantile` goes column by column in Python: 1,000 × 8,640 results took it seconds.
    """
    ordered = np.sort(results.reshape(len(results), -1).T, axis=1)  # NaN last
    last = np.maximum((~np.isnan(ordered)).sum(axis=1) - 1, 0)
    lines = np.arange(len(ordered))

    def at(share: float) -> NDArray[np.float64]:
        place = last * share
        below = np.floor(place).astype(np.intp)
        one, other = ordered[lines, below], ordered[lines, np.minimum(below + 1, last)]
        return np.asarray(one + (other - one) * (place - below)).reshape(results.shape[1:])

    return at((1 - confidence) / 2), at((1 + confidence) / 2)
