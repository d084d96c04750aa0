"""Bootstrap intervals for means of groups, from instructions resampled within groups.

Each resample draws n instructions with replacement from a group of n, `n_resamples` times (PCG64). A resample stores
one weight per instruction, the number of times it was drawn. All measures of the same instructions use the same draws.
Intervals are percentile intervals; statistics with resampling bias use `centered_interval`.

Pairs: an instruction drawn twice forms a pair with its copy, and its value is 1 for every model. Including such pairs
would raise each within-group mean by (1 - mean) / n, so they are excluded. Without self pairs, the mean within a group
is u = Σ_{i<j} w_i w_j m_ij / Σ_{i<j} w_i w_j. With self pairs (SPARCOM, eq. 10 and 14), each draw is paired with itself
once, and pairs of a draw with its copy count as u. Undefined pairs enter neither numerators nor denominators. A cell
skips resamples in which it has no defined pair.

A group of one instruction has no interval (NaN); nor has the mean within a group of two, which has one pair. Sums are
exact (see `pairs`), so results do not depend on block size or number of cores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparcom_analysis.archive.categories import category_codes, category_labels
from sparcom_analysis.options import Options
from sparcom_analysis.resampling.pairs import STRIP_ROWS, Floats, PairMatrix, fixed, fixed_bits, ratio

MIN_MEMBERS = 2  # defined instructions required per group
MIN_WITHIN = 3  # a group of two has one pair, which does not vary
BLOCK_VALUES = 1 << 20  # values over all resamples sorted at once: 8 MiB


@dataclass(frozen=True, slots=True, eq=False)
class Resamples:
    """Bootstrap draws of instructions within their groups.

    Attributes:
        categories: n strings. weights: float64 (resample, n), integer draw counts that sum to the group size.
        confidence_level: fraction of the resampled results inside the interval.
    """

    categories: Sequence[str]
    weights: Floats
    confidence_level: float


class Interval(NamedTuple):
    """Ends of a confidence interval: float64, with the shape of the measure; NaN if there is none."""

    low: Floats
    high: Floats


def resamples_for(categories: Sequence[str], options: Options) -> Resamples | None:
    """Return the draws for `n_resamples`, `confidence_level` and `seed` of `options`; None if `n_resamples` is 0."""
    if not options.n_resamples:
        return None
    rng = np.random.Generator(np.random.PCG64(options.seed))
    codes = category_codes(categories)
    weights = np.zeros((options.n_resamples, len(codes)))
    for code in range(len(category_labels(categories))):
        members = np.flatnonzero(codes == code)
        drawn = rng.integers(len(members), size=(len(weights), len(members)))
        cells = np.arange(len(weights))[:, None] * len(members) + drawn
        weights[:, members] = np.bincount(cells.ravel(), minlength=drawn.size).reshape(drawn.shape)
    return Resamples(list(categories), weights, options.confidence_level)


def resampled_rows(codes: NDArray[np.intp], n_resamples: int, seed: int) -> Iterator[list[NDArray[np.intp]]]:
    """Yield, per resample, the instructions drawn with replacement in each of c groups: c arrays, intp (n_c,).

    For statistics that are not weighted means. codes: intp (n,), group of each instruction. seed: PCG64 seed.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    members = [np.flatnonzero(codes == code) for code in range(int(codes.max(initial=-1)) + 1)]
    for _ in range(n_resamples):
        yield [rows[rng.integers(0, len(rows), len(rows))] for rows in members]


def centered_interval(
    estimate: ArrayLike, drawn: ArrayLike, confidence_level: float, upper: float = np.inf
) -> Interval:
    """Return the estimate plus the percentiles of the resamples' deviations from their own mean.

    For statistics with resampling bias: counts above a threshold, sums of absolute values. Their plain percentile
    interval can miss the estimate. Centering keeps the spread of the resamples and removes their shift. The interval
    estimates the variation over samples of the same size.

    Args:
        estimate: (…), statistic over all instructions. drawn: (resample, …), per resample; any NaN gives NaN.
        upper: upper limit of the interval; the lower limit is 0.
    """
    results, middle = np.asarray(drawn, dtype=np.float64), np.asarray(estimate, dtype=np.float64)
    below, above = percentiles(results - results.mean(axis=0), confidence_level)
    low, high = middle + np.minimum(below, 0), middle + np.maximum(above, 0)
    return Interval(np.maximum(low, 0.0), np.minimum(high, upper))


def pair_intervals(resamples: Resamples, *matrices: PairMatrix) -> list[Interval]:
    """Return intervals of `PairMatrix.means`: (2, c, c), with and without self pairs.

    For two matrices of the same instructions, add the interval of second minus first from the same draws. This paired
    difference varies less than either matrix.
    """
    count = len(matrices[0].labels)
    found = [Interval(*np.full((2, 2, count, count), np.nan)) for _ in range(2 * len(matrices) - 1)]
    for cells in zip(*(resampled_cells(one, resamples) for one in matrices), strict=True):
        a, b, _ = cells[0]
        drawn = [means for _, _, means in cells]
        drawn += [second - first for first, second in pairwise(drawn)]
        for interval, results in zip(found, drawn, strict=True):
            low, high = percentiles(results, resamples.confidence_level)
            interval.low[:, [a, b], [b, a]], interval.high[:, [a, b], [b, a]] = low[:, None], high[:, None]
    return found


def resampled_cells(pairs: PairMatrix, resamples: Resamples) -> Iterator[tuple[int, int, Floats]]:
    """Yield group pairs a ≤ b and resampled means, with and without self pairs: float64 (resample, 2), NaN if small."""
    if list(pairs.categories) != list(resamples.categories):
        raise ValueError("resamples must be drawn from the categories of the same instructions")
    members = [np.flatnonzero((pairs.codes == code) & pairs.defined) for code in range(len(pairs.labels))]
    weights = [resamples.weights[:, rows] for rows in members]
    for a, rows in enumerate(members):
        sums, missing = _pair_sums(pairs, weights[a:], members[a:])
        drawn = [one.sum(axis=1) for one in weights[a:]]
        for k, others in enumerate(members[a:]):
            if min(len(rows), len(others)) < (MIN_MEMBERS if k else MIN_WITHIN):
                means = np.full((len(resamples.weights), 2), np.nan)
            elif k:
                means = np.stack([ratio(sums[k], drawn[0] * drawn[k] - missing[k])] * 2, axis=1)
            else:
                means = _within(pairs, rows, weights[a], sums[0], missing[0])
            yield a, a + k, means


def _within(pairs: PairMatrix, rows: NDArray[np.intp], weights: Floats, sums: Floats, missing: Floats) -> Floats:
    """Return the means within one group, with and without self pairs: float64 (resample, 2)."""
    itself, bits = pairs.values.diagonal()[rows], fixed_bits(len(pairs))
    drawn, known = weights.sum(axis=1), ~np.isnan(itself)
    apart = ratio(sums, (drawn * drawn - (weights * weights).sum(axis=1)) / 2 - missing)
    like = weights[:, ~known]
    different = drawn * (drawn - 1) - 2 * missing - (like * (like - 1)).sum(axis=1)
    own = np.ldexp(weights[:, known] @ fixed(itself[known], bits), -bits)
    total = different * np.where(different == 0, 0.0, apart) + own
    return np.stack([ratio(total, different + weights[:, known].sum(axis=1)), apart], axis=1)


def _pair_sums(
    pairs: PairMatrix, weights: Sequence[Floats], members: Sequence[NDArray[np.intp]]
) -> tuple[Floats, Floats]:
    """Return Σ w_i w_j m_ij over defined pairs, and Σ w_i w_j over undefined ones: float64 (group, resample) each.

    Pairs are those of the first group with itself (i < j) and with each other group.
    """
    bits = fixed_bits(len(pairs))
    sums, missing = np.zeros((2, len(members), len(weights[0])), dtype=np.int64)
    for first in range(0, len(members[0]), STRIP_ROWS):
        strip, left = pairs.values[members[0][first : first + STRIP_ROWS]], weights[0][:, first : first + STRIP_ROWS]
        for k, (columns, right) in enumerate(zip(members, weights, strict=True)):
            block = strip[:, columns] if k else np.triu(strip[:, columns], 1 + first)
            unknown = np.isnan(block)
            if unknown.any():
                missing[k] += _bilinear(left, unknown.astype(np.float64), right)
                block = np.where(unknown, 0.0, block)
            sums[k] += _bilinear(left, fixed(block, bits), right)
    return np.ldexp(sums.astype(np.float64), -bits), missing.astype(np.float64)


def _bilinear(left: Floats, block: Floats, right: Floats) -> NDArray[np.int64]:
    """Return Σ_ij left_i block_ij right_j per resample; all inputs are integers: int64 (resample,)."""
    return np.asarray(np.einsum("rj,rj->r", (left @ block).astype(np.int64), right.astype(np.int64)))


def mean_intervals(values: NDArray[Any], resamples: Resamples) -> tuple[Interval, Interval]:
    """Return intervals of the means of one value per instruction: by group (c, …), and over all instructions (…).

    Args:
        values: numbers (n, …); means skip NaN.
    """
    if len(values) != len(resamples.categories):
        raise ValueError(
            f"values must have {len(resamples.categories)} entries, one per instruction; got {len(values)}"
        )
    codes, n_groups = category_codes(resamples.categories), len(category_labels(resamples.categories))
    flat = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    ends = np.empty((2, n_groups + 1, flat.shape[1]))
    step = max(1, BLOCK_VALUES // (len(resamples.weights) * (n_groups + 1)))
    for first in range(0, flat.shape[1], step):
        part = slice(first, first + step)
        results = weighted_means(flat[:, part], resamples.weights, codes, n_groups)
        ends[:, :, part] = percentiles(results, resamples.confidence_level)
    low, high = ends.reshape(2, -1, *values.shape[1:])
    return Interval(low[:-1], high[:-1]), Interval(low[-1], high[-1])


def weighted_means(values: Floats, weights: Floats, codes: NDArray[np.intp], n_groups: int) -> Floats:
    """Return the means of (n, k) values per group, then over all: float64 (resample, n_groups + 1, k).

    Args:
        values: NaN where undefined. weights: float64 (resample, n), of `Resamples`.
        codes: intp (n,), group of each instruction, below `n_groups`.
    """
    known = ~np.isnan(values)
    values = np.where(known, values, 0.0)
    _, exponent = np.frexp(np.abs(values).max(axis=0, initial=0.0))
    bits = (53 - len(values).bit_length() - exponent).astype(np.intc)  # per column, so that sums of n are exact
    whole = np.rint(np.ldexp(values, bits))
    sums, drawn = np.zeros((2, len(weights), n_groups + 1, values.shape[1]))
    for code in range(n_groups):
        members = codes == code
        sums[:, code] = weights[:, members] @ whole[members]
        drawn[:, code] = weights[:, members] @ known[members].astype(np.float64)
    sums[:, -1], drawn[:, -1] = sums[:, :-1].sum(axis=1), drawn[:, :-1].sum(axis=1)
    held = np.array([*(known[codes == code].sum(axis=0) for code in range(n_groups)), known.sum(axis=0)])
    return np.asarray(np.where(held < MIN_MEMBERS, np.nan, np.ldexp(ratio(sums, drawn), -bits)))


def percentiles(results: Floats, confidence_level: float) -> Interval:
    """Return the (1 ± confidence_level) / 2 quantiles over the first axis, ignoring NaN, with NumPy's interpolation."""
    ordered = np.sort(results.reshape(len(results), -1).T, axis=1)  # NaN last
    last = np.maximum((~np.isnan(ordered)).sum(axis=1) - 1, 0)
    lines = np.arange(len(ordered))

    def at(quantile: float) -> Floats:
        exact = last * quantile
        below = np.floor(exact).astype(np.intp)
        one, other = ordered[lines, below], ordered[lines, np.minimum(below + 1, last)]
        return np.asarray(one + (other - one) * (exact - below)).reshape(results.shape[1:])

    return Interval(at((1 - confidence_level) / 2), at((1 + confidence_level) / 2))
