"""How alike instructions are in the experts they use: equations 13 and 14.

The similarity of two instructions is Pearson's correlation of their expert frequencies, over all experts of all layers;
that of two categories its mean over all pairs of an instruction of the one and an instruction of the other. Within a
category the equation counts the pair of an instruction with itself, which is 1 whatever the model does; both versions
are computed here, as of equation 10.

Frequencies that are the same for every expert (where a token chooses all of them) have no variance, and with them no
correlation is defined, not even with itself: it is not a number, not 0, stays out of the means, and how many there are
is said.

Computed from the whole numbers T · f, of which r is the same: with c over N experts and layers,
r = (N Σ c c' − Σ c Σ c') / √((N Σ c² − (Σ c)²) (N Σ c'² − (Σ c')²)). Sums and differences are exact, so neither
blocks nor cores change a digit, and whether there is variance is no matter of rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.measures.experts import InstructionExperts
from sparcom_analysis.measures.pairs import PairMeans, pair_blocks
from sparcom_analysis.statistics.pair_matrix import PairMatrix, keep_pairs
from sparcom_data.errors import UnsupportedArchiveError

_EXACT_FLOAT = 2**53  # whole numbers up to here are exact as float64, in whichever order they are added
_EXACT_INTEGER = 2**63


@dataclass(frozen=True, slots=True)
class ExpertCorrelation:
    """Mean Pearson correlation between categories, equation 14.

    categories: c names, in order of first appearance.
    matrix: float64 (c, c), symmetric, -1 to 1, pairs of an instruction with itself counted, as in the equation; NaN
    where there is no pair with a value.
    without_self: the same without those pairs; the diagonal of a category with one instruction is NaN (no pair).
    undefined: instructions whose frequencies have no variance; they are in no mean.
    """

    categories: Sequence[str]
    matrix: NDArray[np.float64]
    without_self: NDArray[np.float64]
    undefined: int


def correlation_blocks(experts: InstructionExperts) -> Iterator[tuple[slice, slice, NDArray[np.float64]]]:
    """Pearson correlations of all pairs, equation 13, a block at a time.

    Yields:
        instructions of the rows and of the columns, and float64 (rows, columns), the correlation of each two; NaN where
        one of them has no variance.

    Raises:
        UnsupportedArchiveError: an instruction is so long that the sums would not be exact (millions of tokens).
    """
    vectors = experts.counts.reshape(len(experts), -1)
    size, sums = vectors.shape[1], vectors.sum(axis=1, dtype=np.int64)
    largest = max((int(np.square(row, dtype=np.float64).sum()) for row in vectors), default=0)
    if largest >= _EXACT_FLOAT or size * largest >= _EXACT_INTEGER or int(sums.max()) ** 2 >= _EXACT_INTEGER:
        raise UnsupportedArchiveError(
            f"correlations are exact for instructions of up to about a million tokens; the longest here has "
            f"{int(experts.tokens.max())}. Analyse it without such instructions"
        )
    spread = np.array([size * int(np.square(row, dtype=np.int64).sum()) for row in vectors]) - sums * sums
    varied = np.where(spread > 0, spread, np.nan)
    for rows, columns in pair_blocks(len(experts)):
        shared = vectors[rows].astype(np.float64) @ vectors[columns].astype(np.float64).T
        above = size * shared.astype(np.int64) - sums[rows, None] * sums[None, columns]
        yield rows, columns, np.clip(above / np.sqrt(varied[rows, None] * varied[None, columns]), -1.0, 1.0)


def instruction_correlations(experts: InstructionExperts) -> NDArray[np.float64]:
    """Equation 13 for all pairs: float64 (n, n), symmetric; NaN where one of the two has no variance."""
    full = np.empty((len(experts), len(experts)))
    for rows, columns, block in correlation_blocks(experts):
        full[rows, columns] = block
        full[columns, rows] = block.T
    return full


def correlation_pairs(experts: InstructionExperts) -> PairMatrix:
    """Equation 13 for all pairs, kept; of at most `MOST_INSTRUCTIONS`."""
    return keep_pairs(experts.categories, correlation_blocks(experts))


def expert_correlation(experts: InstructionExperts, pairs: PairMatrix | None = None) -> ExpertCorrelation:
    """Equation 14: the mean correlation within each category and between every two, with and without pairs of an
    instruction with itself.

    Args:
        pairs: `correlation_pairs` of these experts where they are kept: the same bits without computing them again.
    """
    means = PairMeans(experts.categories)
    itself = np.empty(len(experts))
    for rows, columns, block in correlation_blocks(experts) if pairs is None else pairs.blocks():
        means.add(rows, columns, block)
        if rows == columns:
            itself[rows] = np.diagonal(block)
    undefined = int(np.isnan(itself).sum())
    return ExpertCorrelation(means.labels, means.with_self(itself), means.without_self(), undefined)
