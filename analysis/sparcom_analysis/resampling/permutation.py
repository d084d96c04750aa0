"""Whether categories are more alike than chance makes them: tests by permuting the categories of instructions.

The hypothesis is that categories are names without meaning: any instruction could carry any of them. Three statistics,
each over pairs of two different instructions, large where it does not hold:

- of the whole matrix: mean over all pairs within a category minus mean over all pairs between two;
- of each category: mean over its pairs minus mean over the pairs of one of its instructions with one of another's;
- of each two categories: the mean over their pairs. "Higher than chance" is higher than between two random groups of
  their sizes, drawn from all instructions.

1. The names are shuffled over the instructions, `permutations` times (PCG64); sizes of categories stay.
2. Sums of pairs by category are taken again, as whole numbers in fixed point (see `pair_matrix`): ties are exact, and
   neither cores nor blocks change a digit.
3. p = (1 + shuffles whose statistic is at least the observed one) / (1 + permutations), one-sided.
4. Of many statistics (categories; pairs of categories) p is corrected by Westfall and Young's step-down maximum: each
   is standardised by mean and deviation over all shuffles and the observed naming; the observed ones are taken in
   falling order, each compared with the largest of itself and those after it in every shuffle. `p_adjusted` is then
   the risk that any statistic at all is so large where no category means anything.

Tests presume that instructions are independent of each other. They know nothing of length or of other reasons why a
category may be alike. A category of one instruction has no pair and no test of its own; instructions without values
take no part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparcom_analysis.frequencies import Progress
from sparcom_analysis.kernels.compiled import compiled, cores, parallel_for
from sparcom_analysis.options import Options
from sparcom_analysis.resampling.pairs import PairMatrix, fixed
from sparcom_data.errors import InvalidInputError, UnsupportedArchiveError

PERMUTATIONS = 9999
SEED = 0
MOST_CATEGORIES = 256  # sums of a naming are half a MiB then
MOST_PAIRED = 32  # categories of which every two are tested: 496 statistics of 10,000 namings are 38 MiB
TILE_COLUMNS = 64  # instructions whose pairs are summed at once: 600 KiB of 1,200 rows stay in the second-level cache
BATCH_BYTES = 32 << 20  # names and sums of the shuffles in hand
BATCH = 2000  # shuffles in hand at most: a second or less between two calls of `progress`


@dataclass(frozen=True, slots=True)
class LabelTests:
    """What permuting the categories of instructions says; NaN where there is nothing to test.

    categories: c names. instructions: with values, whose names were shuffled. permutations, seed: how often, and from
    where. within, between: means over all pairs within a category and between two. p: of their difference.
    category_within, category_others: float64 (c,), the means of each category. category_p, category_p_adjusted: of
    their difference, by itself and corrected for c tests.
    expected: mean over all pairs, what chance gives each cell. pair_p, pair_p_adjusted: float64 (c, c), symmetric, of
    every two categories, by itself and corrected for all of them; the diagonal is NaN, and all with over `MOST_PAIRED`.
    """

    categories: Sequence[str]
    instructions: int
    permutations: int
    seed: int
    within: float
    between: float
    p: float
    category_within: NDArray[np.float64]
    category_others: NDArray[np.float64]
    category_p: NDArray[np.float64]
    category_p_adjusted: NDArray[np.float64]
    expected: float
    pair_p: NDArray[np.float64]
    pair_p_adjusted: NDArray[np.float64]


def label_tests(pairs: PairMatrix, options: Options, progress: Progress | None = None) -> LabelTests | None:
    """Return the tests that `options` ask for; None if there are none or too many categories."""
    if not options.n_permutations or len(pairs.labels) > MOST_CATEGORIES:
        return None
    return permutation_tests(pairs, permutations=options.n_permutations, seed=options.seed, progress=progress)


def permutation_tests(
    pairs: PairMatrix, *, permutations: int = PERMUTATIONS, seed: int = SEED, progress: Progress | None = None
) -> LabelTests:
    """Test whether categories are more alike within than between them, and which.

    Args:
        pairs: values of all pairs. permutations: shuffles, at least 1. seed: of the shuffles, 0 or more.
        progress: called with shuffles done and shuffles in all.

    Raises:
        InvalidInputError: the number of shuffles or the seed is not so.
        UnsupportedArchiveError: there are more than `MOST_CATEGORIES`.
    """
    problems = []
    if permutations < 1:
        problems.append(f"permutations must be at least 1; they are {permutations}")
    if seed < 0:
        problems.append(f"the seed must be 0 or more; it is {seed}")
    if problems:
        raise InvalidInputError(problems)
    if len(pairs.labels) > MOST_CATEGORIES:
        raise UnsupportedArchiveError(
            f"categories are tested against chance where there are up to {MOST_CATEGORIES}; there are "
            f"{len(pairs.labels)}. Group the instructions into fewer categories"
        )
    shuffles = shuffled_names(pairs, permutations, seed)
    return against_namings(pairs, _reported(shuffles, permutations, progress), permutations, seed)


def _reported(
    shuffles: Iterable[NDArray[np.int16]], total: int, progress: Progress | None
) -> Iterator[NDArray[np.int16]]:
    """The same batches; once the next is asked for, the one before is done."""
    done = 0
    for names in shuffles:
        yield names
        done += len(names)
        if progress is not None:
            progress(done, total)


def shuffled_names(pairs: PairMatrix, permutations: int, seed: int) -> Iterator[NDArray[np.int16]]:
    """Shuffled names of the m instructions with values: int16 (batch, m), categories by index; so many in all."""
    names = pairs.codes[pairs.defined].astype(np.int16)
    rng = np.random.Generator(np.random.PCG64(seed))
    batch = max(1, min(BATCH, BATCH_BYTES // (8 * len(pairs.labels) ** 2 + 2 * len(names))))
    for first in range(0, permutations, batch):
        count = min(batch, permutations - first)
        yield rng.permuted(np.broadcast_to(names, (count, len(names))), axis=1)


def against_namings(
    pairs: PairMatrix, shuffles: Iterable[NDArray[np.int16]], permutations: int, seed: int
) -> LabelTests:
    """The tests against given namings of the instructions with values, int16 (batch, m) each."""
    defined, labels = pairs.defined, pairs.labels
    values = pairs.values if defined.all() else pairs.values[np.ix_(defined, defined)]
    names = pairs.codes[defined].astype(np.int16)
    sizes = np.bincount(names, minlength=len(labels))
    found = [
        _Means.of(category_sums(values, one, len(labels), pairs.bits), sizes, pairs.bits)
        for one in (names[None], *shuffles)
    ]
    whole = np.concatenate([one.within - one.between for one in found])[:, None]
    by_category = np.concatenate([one.category_within - one.category_others for one in found])
    by_pair = np.concatenate([one.pairs for one in found])
    observed = found[0]
    return LabelTests(
        categories=labels,
        instructions=len(names),
        permutations=permutations,
        seed=seed,
        within=float(observed.within[0]),
        between=float(observed.between[0]),
        p=float(_plain(whole)[0]),
        category_within=observed.category_within[0],
        category_others=observed.category_others[0],
        category_p=_plain(by_category),
        category_p_adjusted=_corrected(by_category),
        expected=observed.expected,
        pair_p=_square(_plain(by_pair), len(labels)),
        pair_p_adjusted=_square(_corrected(by_pair), len(labels)),
    )


@dataclass(frozen=True, slots=True)
class _Means:
    """What the statistics are made of, for each of b namings; NaN where there is no pair.

    within, between: float64 (b,). category_within, category_others: float64 (b, c). pairs: float64
    (b, c (c - 1) / 2), of every two categories, row by row; none with over `MOST_PAIRED`. expected: over all pairs.
    """

    within: NDArray[np.float64]
    between: NDArray[np.float64]
    category_within: NDArray[np.float64]
    category_others: NDArray[np.float64]
    pairs: NDArray[np.float64]
    expected: float

    @classmethod
    def of(cls, sums: NDArray[np.int64], sizes: NDArray[np.intp], bits: int) -> _Means:
        """Means from sums in fixed point, int64 (b, c, c), symmetric, of categories of these sizes."""
        own, total = np.diagonal(sums, axis1=1, axis2=2), np.triu(sums).sum(axis=(1, 2))
        own_pairs, all_pairs = sizes * (sizes - 1) // 2, int(sizes.sum() * (sizes.sum() - 1) // 2)

        def mean(part: NDArray[np.int64], pairs: NDArray[np.intp] | int) -> NDArray[np.float64]:
            whole = np.ldexp(part.astype(np.float64), -bits)
            means: NDArray[np.float64] = np.divide(
                whole, pairs, out=np.full_like(whole, np.nan), where=np.greater(pairs, 0)
            )
            return means

        first, second = np.triu_indices(len(sizes) if len(sizes) <= MOST_PAIRED else 0, 1)
        return cls(
            within=mean(own.sum(axis=1), int(own_pairs.sum())),
            between=mean(total - own.sum(axis=1), all_pairs - int(own_pairs.sum())),
            category_within=mean(own, own_pairs),
            category_others=mean(sums.sum(axis=2) - own, sizes * (sizes.sum() - sizes)),
            pairs=mean(sums[:, first, second], sizes[first] * sizes[second]),
            expected=float(mean(total, all_pairs)[0]),
        )


def category_sums(values: NDArray[np.float64], names: NDArray[np.int16], count: int, bits: int) -> NDArray[np.int64]:
    """Sums of the pairs of two instructions by their categories, in fixed point, for each naming.

    Args:
        values: float64 (m, m), symmetric, without NaN. names: int16 (b, m), categories by index, below `count`.

    Returns:
        int64 (b, count, count), symmetric; a pair of two categories is counted once in each of its two cells.
    """
    sums = np.zeros((len(names), count, count), dtype=np.int64)
    for start in range(0, len(values), TILE_COLUMNS):
        stop = min(start + TILE_COLUMNS, len(values))
        tile = np.zeros((stop, TILE_COLUMNS), dtype=np.int64)
        tile[:, : stop - start] = np.triu(fixed(values[:stop, start:stop], bits), 1 - start)  # pairs i < j
        parallel_for(partial(_add_tile, tile, start, names, sums), len(names), max(1, -(-len(names) // cores())))
    other = sums.transpose(0, 2, 1).copy()
    other[:, np.arange(count), np.arange(count)] = 0
    return sums + other


@compiled
def _add_tile(
    tile: NDArray[np.int64],
    start: int,
    names: NDArray[np.int16],
    sums: NDArray[np.int64],
    first: int,
    last: int,
) -> None:
    """Add the columns start.. of pairs to the sums of namings first..last, by the names of row and column.

    Rows are summed by category, whole vectors at a time; then the few sums of each column go where its name says.
    """
    held = np.empty((sums.shape[1], TILE_COLUMNS), dtype=np.int64)
    width = min(TILE_COLUMNS, names.shape[1] - start)
    for number in range(first, last):
        held[:] = 0
        for row in range(tile.shape[0]):
            one, other = held[names[number, row]], tile[row]
            for column in range(TILE_COLUMNS):
                one[column] += other[column]
        for column in range(width):
            name = names[number, start + column]
            for category in range(held.shape[0]):
                sums[number, name, category] += held[category, column]


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


def _plain(statistics: NDArray[np.float64]) -> NDArray[np.float64]:
    """p of each statistic by itself: (namings, k) with the observed one first to float64 (k,)."""
    as_large = (statistics[1:] >= statistics[0]).sum(axis=0)
    return np.where(np.isnan(statistics[0]), np.nan, (1 + as_large) / len(statistics))


def _corrected(statistics: NDArray[np.float64]) -> NDArray[np.float64]:
    """p of each statistic, corrected for all of them by step-down maxima; as `_plain`."""
    adjusted = np.full(statistics.shape[1], np.nan)
    spread = statistics.std(axis=0)
    scores = np.divide(statistics - statistics.mean(axis=0), spread, out=np.zeros_like(statistics), where=spread > 0)
    order = [k for k in np.argsort(-scores[0], kind="stable").tolist() if not np.isnan(statistics[0, k])]
    largest, exceeding = np.full(len(scores) - 1, -np.inf), []
    for k in reversed(order):
        np.maximum(largest, scores[1:, k], out=largest)
        exceeding.append(int((largest >= scores[0, k]).sum()))
    adjusted[order] = (1 + np.maximum.accumulate(exceeding[::-1])) / len(scores) if order else np.nan
    return adjusted


def _square(values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Values of every two categories as a symmetric matrix, NaN on its diagonal, or everywhere where there are none."""
    matrix = np.full((count, count), np.nan)
    if len(values):
        first, second = np.triu_indices(count, 1)
        matrix[first, second] = matrix[second, first] = values
    return matrix
