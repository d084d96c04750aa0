"""Permutation tests, one-sided: how far statistics exceed those of permuted group labels.

The null hypothesis is that group labels are exchangeable: any instruction could carry any of them. `label_tests` has
three kinds of statistics, each over pairs of two different instructions, large where it does not hold:

- of the whole matrix: mean over all pairs within a group minus mean over all pairs between two;
- of each group: mean over its pairs minus mean over the pairs of one of its instructions with one of another group;
- of each two groups: the mean over their pairs, against two random groups of their sizes.

1. Labels are permuted over the instructions, `n_permutations` times (PCG64). Sizes of groups stay. Instructions without
   any value take no part; single pairs without a value are left out of numerators and denominators.
2. Sums of pairs by group are whole numbers (see `pairs`): ties are exact, and neither cores nor blocks change a digit.
3. p = (1 + permutations whose statistic is at least the observed one) / (1 + n_permutations).
4. p-values of several statistics are adjusted by Westfall and Young's step-down maximum (`step_down`), or by Holm's
   method (`holm`).

Tests presume that instructions are independent, and ignore length and other reasons why a group may be alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparcom_analysis.errors import NotComputableError
from sparcom_analysis.frequencies import Progress
from sparcom_analysis.kernels.compiled import compiled, cores, parallel_for
from sparcom_analysis.options import Options
from sparcom_analysis.resampling.pairs import PairMatrix, fixed, ratio

MAX_GROUPS = 256  # sums of one permutation are half a MiB then
MAX_PAIRED = 32  # groups of which every two are tested: 496 statistics of 10,000 permutations are 38 MiB
TILE_COLUMNS = 64  # instructions whose pairs are summed at once: 600 KiB of 1,200 rows stay in the second-level cache
BATCH_BYTES = 32 << 20  # labels and sums of the permutations in hand
BATCH = 2000  # permutations in hand at most: a second or less between two calls of `progress`

Labels = NDArray[np.int16]


def label_tests(
    pairs: PairMatrix, options: Options, progress: Progress | None = None
) -> dict[str, NDArray[np.float64]] | None:
    """Test whether groups are more alike within than between them, and which; None if `n_permutations` is 0.

    Returns what `against_labels` does.

    Raises:
        NotComputableError: there are more than `MAX_GROUPS` groups.
    """
    if not options.n_permutations:
        return None
    if len(pairs.labels) > MAX_GROUPS:
        raise NotComputableError(
            f"Groups are tested against permuted labels where there are up to {MAX_GROUPS}; there are "
            f"{len(pairs.labels)}. Group the instructions into fewer."
        )
    return against_labels(pairs, permuted_labels(pairs, options.n_permutations, options.seed, progress))


def permuted_labels(
    pairs: PairMatrix, n_permutations: int, seed: int, progress: Progress | None = None
) -> Iterator[Labels]:
    """Yield batches of permuted groups of the m instructions with values: int16 (batch, m).

    `progress` is called with permutations done and in all; a batch is done once the next is asked for.
    """
    labels = pairs.codes[pairs.defined].astype(np.int16)
    rng = np.random.Generator(np.random.PCG64(seed))
    batch = max(1, min(BATCH, BATCH_BYTES // (8 * len(pairs.labels) ** 2 + 2 * len(labels))))
    for first in range(0, n_permutations, batch):
        count = min(batch, n_permutations - first)
        yield rng.permuted(np.broadcast_to(labels, (count, len(labels))), axis=1)
        if progress is not None:
            progress(first + count, n_permutations)


def against_labels(pairs: PairMatrix, permuted: Iterable[Labels]) -> dict[str, NDArray[np.float64]]:
    """Return the tests against given labels of the m instructions with values: int16 (batch, m) each.

    Returns:
        `null_mean`: mean over all pairs. `overall_within`, `overall_between`, `overall_pvalue`: of the whole matrix.
        `within`, `others` (c,): of each group. `pvalue`, `pvalue_adjusted` (c, c): symmetric, of every two groups,
        NaN with over `MAX_PAIRED`; on the diagonal those of each group. NaN where there is nothing to test.
    """
    count, observed = len(pairs.labels), pairs.codes[pairs.defined].astype(np.int16)
    kept = pairs if pairs.defined.all() else pairs.take(np.flatnonzero(pairs.defined))
    batches = [_pair_means(kept, labels, count) for labels in chain([observed[None]], permuted)]
    overall, within, between, own, others, apart = (np.concatenate(part) for part in zip(*batches, strict=True))
    found = {
        "null_mean": overall[0],
        "overall_within": within[0],
        "overall_between": between[0],
        "overall_pvalue": pvalues((within - between)[:, None])[0],
        "within": own[0],
        "others": others[0],
    }
    for name, tested in (("pvalue", pvalues), ("pvalue_adjusted", step_down)):
        square = np.diag(tested(own - others))
        above = np.triu_indices(count, 1)
        square[above] = square.T[above] = tested(apart) if count <= MAX_PAIRED else np.nan
        found[name] = square
    return found


def _pair_means(pairs: PairMatrix, labels: Labels, count: int) -> list[NDArray[np.float64]]:
    """Return the means over pairs of two instructions that statistics are made of, per labeling; NaN without a pair.

    Over all, within groups, between groups: float64 (b,); within each group, of each with the others: (b, c); of every
    two groups: (b, c (c - 1) / 2), empty with over `MAX_PAIRED`.
    """
    sums, numbers = _cells(pairs, labels, count)
    first, second = np.triu_indices(count if count <= MAX_PAIRED else 0, 1)

    def parts(cells: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        own, between = np.diagonal(cells, axis1=1, axis2=2), np.triu(cells, 1).sum(axis=(1, 2))
        within = own.sum(axis=1)
        return within + between, within, between, own, cells.sum(axis=2) - own, cells[:, first, second]

    return [_mean(part, number, pairs.bits) for part, number in zip(parts(sums), parts(numbers), strict=True)]


def _mean(sums: NDArray[np.int64], numbers: NDArray[np.int64], bits: int) -> NDArray[np.float64]:
    return ratio(np.ldexp(sums.astype(np.float64), -bits), numbers)


def cell_means(pairs: PairMatrix, labels: Labels, count: int) -> NDArray[np.float64]:
    """Return the mean over pairs of different instructions of every two groups, per labeling: float64 (b, c, c).

    Args:
        labels: int16 (b, n), group of each instruction, below `count`.
    """
    sums, numbers = _cells(pairs, labels, count)
    return _mean(sums, numbers, pairs.bits)


def _cells(pairs: PairMatrix, labels: Labels, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return sums in fixed point and numbers of the pairs of every two groups: int64 (b, c, c) each, symmetric; numbers
    are (1, c, c) if every pair has a value and all labelings have groups of the same sizes."""
    sums, complete = category_sums(pairs.values, labels, count, pairs.bits), pairs.complete
    sizes = np.stack([np.bincount(one, minlength=count) for one in labels])
    if complete and (sizes == sizes[0]).all():
        sizes = sizes[:1]
    numbers = sizes[:, :, None] * sizes[:, None]
    diagonal = np.arange(count)
    numbers[:, diagonal, diagonal] = sizes * (sizes - 1) // 2
    if not complete:
        numbers -= category_sums(pairs.values, labels, count, None)
    return sums, numbers


def category_sums(values: NDArray[np.float64], labels: Labels, count: int, bits: int | None) -> NDArray[np.int64]:
    """Return sums over the pairs of two instructions by their groups, for each labeling.

    Args:
        values: float64 (n, n), symmetric; NaN adds nothing. labels: int16 (b, n), groups below `count`.
        bits: binary places of the sums, in fixed point. None: count the pairs without a value.

    Returns int64 (b, count, count), symmetric; a pair of two groups is counted once in each of its two cells.
    """
    sums = np.zeros((len(labels), count, count), dtype=np.int64)
    for start in range(0, len(values), TILE_COLUMNS):
        stop = min(start + TILE_COLUMNS, len(values))
        strip = values[start:stop, :stop]  # whole rows; as columns of the tile, by symmetry
        unknown = np.isnan(strip)
        whole = unknown if bits is None else fixed(np.where(unknown, 0.0, strip), bits)
        tile = np.zeros((stop, TILE_COLUMNS), dtype=np.int64)
        tile[:, : stop - start] = np.triu(whole.T, 1 - start)  # pairs i < j
        parallel_for(partial(_add_tile, tile, start, labels, sums), len(labels), max(1, -(-len(labels) // cores())))
    other = sums.transpose(0, 2, 1).copy()
    other[:, np.arange(count), np.arange(count)] = 0
    return sums + other


@compiled
def _add_tile(
    tile: NDArray[np.int64],
    start: int,
    labels: Labels,
    sums: NDArray[np.int64],
    first: int,
    last: int,
) -> None:
    """Add the pairs of columns start.. to the sums of permutations first..last: rows by their groups, whole vectors at
    a time, then the few sums of each column to the column's group."""
    held = np.empty((sums.shape[1], TILE_COLUMNS), dtype=np.int64)
    width = min(TILE_COLUMNS, labels.shape[1] - start)
    for number in range(first, last):
        held[:] = 0
        for row in range(tile.shape[0]):
            one, other = held[labels[number, row]], tile[row]
            for column in range(TILE_COLUMNS):
                one[column] += other[column]
        for column in range(width):
            label = labels[number, start + column]
            for category in range(held.shape[0]):
                sums[number, label, category] += held[category, column]


def permuted_rows(codes: NDArray[np.intp], n_permutations: int, seed: int) -> Iterator[list[NDArray[np.intp]]]:
    """Yield, per permutation, all instructions dealt to c groups anew: c arrays, intp (n_c,), in the groups' sizes.

    Args:
        codes: intp (n,), group of each instruction. seed: of PCG64.
    """
    rng, borders = np.random.Generator(np.random.PCG64(seed)), np.bincount(codes).cumsum()[:-1]
    for _ in range(n_permutations):
        yield np.split(rng.permutation(len(codes)), borders)


def pvalue(reached: ArrayLike, n_permutations: int) -> NDArray[np.float64]:
    """Return p = (1 + reached) / (1 + n): of n permutations, `reached` have a statistic at least the observed one."""
    return np.asarray((1 + np.asarray(reached)) / (1 + n_permutations), dtype=np.float64)


def holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the p of m tests after Holm's correction for all of them; NaN is no test.

    The k-th smallest times m − k + 1, at most 1, and never below that of a smaller p.
    """
    order = np.argsort(p, kind="stable")[: int((~np.isnan(p)).sum())]
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return corrected


def pvalues(statistics: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return p of each statistic by itself: (1 + permutations, k), the observed ones first, to float64 (k,).

    NaN if the observed one is; a permutation without a value counts as one that reaches it.
    """
    reached = (~(statistics[1:] < statistics[0])).sum(axis=0)
    return np.where(np.isnan(statistics[0]), np.nan, pvalue(reached, len(statistics) - 1))


def step_down(statistics: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return p of each statistic, adjusted for all of them by Westfall and Young's step-down maximum; as `pvalues`.

    Statistics are standardized by mean and deviation over the permutations and the observed labels. The observed ones
    are taken in descending order; each is compared with the largest of itself and those after it, per permutation. An
    adjusted p is the probability that any statistic is so large under the null hypothesis.
    """
    known = ~np.isnan(statistics)
    number = np.maximum(known.sum(axis=0), 1)
    away = np.where(known, statistics - np.where(known, statistics, 0.0).sum(axis=0) / number, 0.0)
    spread = np.sqrt((away * away).sum(axis=0) / number)
    scores = np.divide(away, spread, out=np.zeros_like(away), where=spread > 0)
    scores[~known] = -np.inf
    order = [k for k in np.argsort(-scores[0], kind="stable").tolist() if known[0, k]]
    largest, exceeding = np.full(len(scores) - 1, -np.inf), []
    for k in reversed(order):
        np.maximum(largest, scores[1:, k], out=largest)
        exceeding.append(int((largest >= scores[0, k]).sum()))
    adjusted = np.full(statistics.shape[1], np.nan)
    if order:
        adjusted[order] = np.maximum.accumulate(pvalue(exceeding[::-1], len(scores) - 1))
    found: NDArray[np.float64] = np.maximum(adjusted, pvalues(statistics))
    return found
