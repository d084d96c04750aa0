"""Permutation tests, one-sided: how far statistics exceed those of permuted group labels.

The null hypothesis is that group labels are exchangeable: any instruction could carry any of them. `label_tests` has
three kinds of statistics, each over pairs of two different instructions, large where it does not hold:

- of the whole matrix: mean over all pairs within a group minus mean over all pairs between two;
- of each group: mean over its pairs minus mean over the pairs of one of its instructions with one of another group;
- of each two groups: the mean over their pairs, against two random groups of their sizes.

Labels are permuted over the instructions (PCG64). Sizes of groups stay. Instructions without any value take no part;
single pairs without one are left out of numerators and denominators. Sums of pairs by group are whole numbers (see
`pairs`): ties are exact, and neither cores nor blocks change a digit.

Tests presume that instructions are independent, and ignore length and other reasons why a group may be alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparcom_analysis.errors import NotComputableError
from sparcom_analysis.frequencies import Progress
from sparcom_analysis.kernels.compiled import compiled, cores, parallel_for
from sparcom_analysis.options import Options
from sparcom_analysis.resampling.pairs import Floats, PairMatrix, fixed, fixed_bits, ratio

MAX_GROUPS = 256  # sums of one permutation are half a MiB then
MAX_PAIRED = 32  # groups of which every two are tested: 496 statistics of 10,000 permutations are 38 MiB
TILE_COLUMNS = 64  # instructions whose pairs are summed at once: 600 KiB of 1,200 rows stay in the second-level cache
BATCH_BYTES = 32 << 20  # labels and sums of the permutations in hand
BATCH = 2000  # permutations in hand at most: a second or less between two calls of `progress`

Labels = NDArray[np.int16]


def label_tests(pairs: PairMatrix, options: Options, progress: Progress | None = None) -> dict[str, Floats]:
    """Test whether groups are more alike within than between them, and which; means alone if `n_permutations` is 0.

    Returns:
        `null_mean`: mean over all pairs. `overall_within`, `overall_between`, `overall_pvalue`: of the whole matrix.
        `within`, `others` (c,): of each group. `pvalue`, `pvalue_adjusted` (c, c): symmetric, of every two groups,
        NaN with over `MAX_PAIRED`; on the diagonal those of each group. NaN where there is nothing to test.

    Raises:
        NotComputableError: there are more than `MAX_GROUPS` groups.
    """
    if (count := len(pairs.labels)) > MAX_GROUPS and options.n_permutations:
        raise NotComputableError(
            f"Groups are tested against permuted labels where there are up to {MAX_GROUPS}; there are {count}. Group "
            "the instructions into fewer."
        )
    observed, kept = pairs.codes[pairs.defined].astype(np.int16), pairs.with_values()
    batch = max(1, min(BATCH, BATCH_BYTES // (8 * count**2 + 2 * len(observed))))
    permuted = permuted_labels(observed, options.n_permutations, options.seed, batch, progress)
    batches = [_means(kept, labels, count) for labels in chain([observed[None]], permuted)]
    means = {name: np.concatenate([one[name] for one in batches]) for name in batches[0]}
    apart, whole = means.pop("apart"), means["overall_within"] - means["overall_between"]
    found = {name: values[0] for name, values in means.items()}
    if not options.n_permutations:
        return found
    found["overall_pvalue"] = pvalues(whole[:, None])[0]
    for name, tested in (("pvalue", pvalues), ("pvalue_adjusted", step_down)):
        square = np.diag(tested(means["within"] - means["others"]))
        above = np.triu_indices(count, 1)
        square[above] = square.T[above] = tested(apart) if count <= MAX_PAIRED else np.nan
        found[name] = square
    return found


def permuted_labels(
    labels: Labels, n_permutations: int, seed: int, batch: int, progress: Progress | None, strata: Sequence[Any] = ()
) -> Iterator[Labels]:
    """Yield batches of permutations of the labels of m instructions: int16 (batch, m).

    Args:
        progress: called with permutations done and in all; a batch is done once the next is asked for.
        strata: indices of instructions that exchange labels with each other alone; by default all do with all.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    for first in range(0, n_permutations, batch):
        permuted = np.repeat(labels[None], min(batch, n_permutations - first), axis=0)
        for members in strata or [slice(None)]:
            permuted[:, members] = rng.permuted(permuted[:, members], axis=1)
        yield permuted
        if progress is not None:
            progress(first + len(permuted), n_permutations)


def _means(pairs: PairMatrix, labels: Labels, count: int) -> dict[str, Floats]:
    """Return the means that statistics are made of: (b,), of each group (b, c), of every two, `apart` (b, pairs)."""
    first, second = np.triu_indices(count if count <= MAX_PAIRED else 0, 1)
    own = partial(np.diagonal, axis1=1, axis2=2)
    parts: dict[str, Callable[[NDArray[np.int64]], NDArray[np.int64]]] = {
        "null_mean": lambda cells: np.triu(cells).sum(axis=(1, 2)),
        "overall_within": lambda cells: own(cells).sum(axis=1),
        "overall_between": lambda cells: np.triu(cells, 1).sum(axis=(1, 2)),
        "within": own,
        "others": lambda cells: cells.sum(axis=2) - own(cells),
        "apart": lambda cells: cells[:, first, second],
    }
    sums, numbers = _cells(pairs, labels, count)
    return {name: _mean(part(sums), part(numbers), pairs) for name, part in parts.items()}


def cell_means(pairs: PairMatrix, labels: Labels, count: int) -> Floats:
    """Return the mean over pairs of different instructions of every two groups, per labeling: float64 (b, c, c).

    Args:
        labels: int16 (b, n), group of each instruction, below `count`; permutations of one another.
    """
    return _mean(*_cells(pairs, labels, count), pairs)


def _mean(sums: NDArray[np.int64], numbers: NDArray[np.int64], pairs: PairMatrix) -> Floats:
    return ratio(np.ldexp(sums.astype(np.float64), -fixed_bits(len(pairs))), numbers)


def _cells(pairs: PairMatrix, labels: Labels, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return sums in fixed point and numbers of the pairs of every two groups: int64 (b, c, c) each, symmetric; numbers
    are (1, c, c) if every pair has a value."""
    sizes = np.bincount(labels[0], minlength=count)
    numbers = (np.outer(sizes, sizes) - np.diag(sizes * (sizes + 1) // 2))[None]
    some = np.flatnonzero(pairs.unknown)
    if len(some):  # the few that lack a value are counted among themselves
        numbers = numbers - category_sums(pairs.take(some).values, labels[:, some], count, None)
    return category_sums(pairs.values, labels, count, fixed_bits(len(pairs))), numbers


def category_sums(values: Floats, labels: Labels, count: int, bits: int | None) -> NDArray[np.int64]:
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
        tile[:, : stop - start] = whole.T
        tile[start:] = np.triu(tile[start:], 1)  # pairs i < j
        parallel_for(partial(_add_tile, tile, start, labels, sums), len(labels), max(1, -(-len(labels) // cores())))
    other = sums.transpose(0, 2, 1).copy()
    other[:, np.arange(count), np.arange(count)] = 0
    return sums + other


@compiled
def _add_tile(
    tile: NDArray[np.int64], start: int, labels: Labels, sums: NDArray[np.int64], first: int, last: int
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

    codes: intp (n,), group of each instruction. seed: of PCG64.
    """
    rng, borders = np.random.Generator(np.random.PCG64(seed)), np.bincount(codes).cumsum()[:-1]
    for _ in range(n_permutations):
        yield np.split(rng.permutation(len(codes)), borders)


def pvalue(reached: ArrayLike, n_permutations: int) -> Floats:
    """Return p = (1 + reached) / (1 + n): of n permutations, `reached` have a statistic at least the observed one."""
    return np.asarray((1 + np.asarray(reached)) / (1 + n_permutations), dtype=np.float64)


def holm(p: Floats) -> Floats:
    """Return the p of m tests after Holm's correction for all of them; NaN is no test.

    The k-th smallest times m − k + 1, at most 1, and never below that of a smaller p.
    """
    order = np.argsort(p, kind="stable")[: int((~np.isnan(p)).sum())]
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return corrected


def pvalues(statistics: Floats) -> Floats:
    """Return p of each statistic by itself: (1 + permutations, k), the observed ones first, to float64 (k,).

    NaN if the observed one is; a permutation without a value counts as one that reaches it.
    """
    reached = (~(statistics[1:] < statistics[0])).sum(axis=0)
    return np.where(np.isnan(statistics[0]), np.nan, pvalue(reached, len(statistics) - 1))


def step_down(statistics: Floats) -> Floats:
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
    order = np.argsort(-scores[0], kind="stable")[: known[0].sum()]
    largest = np.maximum.accumulate(scores[1:, order[::-1]], axis=1)[:, ::-1]
    adjusted = np.full(len(known[0]), np.nan)
    adjusted[order] = np.maximum.accumulate(pvalue((largest >= scores[0, order]).sum(axis=0), len(scores) - 1))
    return np.asarray(np.maximum(adjusted, pvalues(statistics)))
