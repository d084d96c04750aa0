"""One-sided permutation tests against permuted group labels.

The null hypothesis is that group labels are exchangeable between instructions. `label_tests` has three kinds of
statistics over pairs of two different instructions; large values speak against the null hypothesis:

- whole matrix: mean over all pairs within groups minus mean over all pairs between groups;
- each group: mean over its pairs minus mean over pairs of its instructions with those of other groups;
- each pair of groups: mean over their pairs, compared with two random groups of the same sizes.

Permutations (PCG64) keep group sizes. Tests exclude instructions without a defined pair; other undefined pairs enter
neither numerators nor denominators. Sums over pairs are exact (see `pairs`), so ties are exact, and results do not
depend on block size or number of cores.

The tests assume that instructions are independent. They do not control for length or other confounders.
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

MAX_GROUPS = 256  # the sums of one permutation then take half a MiB
MAX_PAIRED = 32  # groups for pairwise tests: 496 statistics of 10,000 permutations take 38 MiB
TILE_COLUMNS = 64  # instructions summed at once: with 1,200 rows, 600 KiB, which fit into L2 cache
BATCH_BYTES = 32 << 20  # labels and sums of one batch
BATCH = 2000  # permutations per batch at most, so that `progress` is called at least once per second

Labels = NDArray[np.int16]


def label_tests(pairs: PairMatrix, options: Options, progress: Progress | None = None) -> dict[str, Floats]:
    """Test whether pairs are more similar within groups than between; return only means if `n_permutations` is 0.

    Returns:
        `null_mean`: mean over all pairs. `overall_within`, `overall_between`, `overall_pvalue`: whole matrix.
        `within`, `others` (c,): each group. `pvalue`, `pvalue_adjusted` (c, c), symmetric: each pair of groups (NaN
        with more than `MAX_PAIRED` groups), and on the diagonal each group. Pairs and groups are two families of
        corrected tests. NaN where no test is possible.

    Raises:
        NotComputableError: there are more than `MAX_GROUPS` groups.
    """
    if (count := len(pairs.labels)) > MAX_GROUPS and options.n_permutations:
        raise NotComputableError(
            f"Permutation tests support up to {MAX_GROUPS} groups; there are {count}. Group the instructions into "
            "fewer."
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
        progress: called with permutations done and in total; a batch is done when the next is requested.
        strata: index arrays; labels are permuted within each (default: one stratum of all instructions).
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
    """Return the means for the statistics: overall (b,), per group (b, c), per pair of groups, `apart` (b, pairs)."""
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
    """Return the mean over pairs of different instructions, per labeling and pair of groups: float64 (b, c, c).

    Args:
        labels: int16 (b, n), group of each instruction, below `count`; permutations of one another.
    """
    return _mean(*_cells(pairs, labels, count), pairs)


def _mean(sums: NDArray[np.int64], numbers: NDArray[np.int64], pairs: PairMatrix) -> Floats:
    return ratio(np.ldexp(sums.astype(np.float64), -fixed_bits(len(pairs))), numbers)


def _cells(pairs: PairMatrix, labels: Labels, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return fixed-point sums and numbers of pairs by group: int64 (b, c, c), or (1, c, c) if all pairs are defined."""
    sizes = np.bincount(labels[0], minlength=count)
    numbers = (np.outer(sizes, sizes) - np.diag(sizes * (sizes + 1) // 2))[None]
    some = np.flatnonzero(pairs.unknown)
    if len(some):  # undefined pairs occur only among these instructions
        numbers = numbers - category_sums(pairs.take(some).values, labels[:, some], count, None)
    return category_sums(pairs.values, labels, count, fixed_bits(len(pairs))), numbers


def category_sums(values: Floats, labels: Labels, count: int, bits: int | None) -> NDArray[np.int64]:
    """Return sums over pairs of instructions by group, for each labeling.

    Args:
        values: float64 (n, n), symmetric; NaN adds nothing. labels: int16 (b, n), groups below `count`.
        bits: binary places of the fixed-point sums. None: count the undefined pairs instead.

    Returns int64 (b, count, count), symmetric: a pair of two groups is in both of its cells.
    """
    sums = np.zeros((len(labels), count, count), dtype=np.int64)
    for start in range(0, len(values), TILE_COLUMNS):
        stop = min(start + TILE_COLUMNS, len(values))
        strip = values[start:stop, :stop]  # contiguous rows; by symmetry, the columns of the tile
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
    """Add a tile of pairs to the sums of permutations first..last: first by the rows' groups, then by the columns'."""
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
    """Yield, per permutation, the instructions assigned to each of c groups of unchanged size: c arrays, intp (n_c,).

    codes: intp (n,), group of each instruction. seed: PCG64 seed.
    """
    rng, borders = np.random.Generator(np.random.PCG64(seed)), np.bincount(codes).cumsum()[:-1]
    for _ in range(n_permutations):
        yield np.split(rng.permutation(len(codes)), borders)


def pvalue(reached: ArrayLike, n_permutations: int) -> Floats:
    """Return p = (1 + reached) / (1 + n); `reached` of n permutations have a statistic at least the observed one."""
    return np.asarray((1 + np.asarray(reached)) / (1 + n_permutations), dtype=np.float64)


def holm(p: Floats) -> Floats:
    """Return the p-values of m tests after Holm's correction; NaN marks a missing test.

    The k-th smallest p is multiplied by m − k + 1, capped at 1, and made monotone.
    """
    order = np.argsort(p, kind="stable")[: int((~np.isnan(p)).sum())]
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return corrected


def pvalues(statistics: Floats) -> Floats:
    """Return the uncorrected p of each statistic, float64 (k,), from (1 + permutations, k), observed values first.

    p is NaN if the observed value is. A NaN under permutation counts as reaching the observed value.
    """
    reached = (~(statistics[1:] < statistics[0])).sum(axis=0)
    return np.where(np.isnan(statistics[0]), np.nan, pvalue(reached, len(statistics) - 1))


def step_down(statistics: Floats) -> Floats:
    """Return p-values adjusted by Westfall and Young's step-down maxT; arguments as for `pvalues`.

    Statistics are standardized by mean and standard deviation over permuted and observed labels. In descending order,
    each observed score is compared, per permutation, with the maximum over itself and all later scores. The adjusted p
    controls the family-wise error rate if no group differs, since one group that differs changes the null of all.
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
