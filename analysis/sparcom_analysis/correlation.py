"""How alike instructions are in the experts they use: equations 13 and 14.

The similarity of two instructions is Pearson's correlation of their expert frequencies, over all experts of all layers;
that of two categories its mean over the pairs of two different instructions. An instruction is not paired with itself.

Frequencies that are the same for every expert (where a token chooses all of them) have no variance, and with them no
correlation is defined: it is not a number, not 0, stays out of the means, and how many there are is said.

Computed from the whole numbers T · f, of which r is the same: with c over N experts and layers,
r = (N Σ c c' − Σ c Σ c') / √((N Σ c² − (Σ c)²) (N Σ c'² − (Σ c')²)). Sums and differences are exact, so neither
blocks nor cores change a digit, and whether there is variance is no matter of rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.experts import InstructionExperts
from sparcom_analysis.pairs import PAIRED_ROWS, PairMeans
from sparcom_data.errors import UnsupportedArchiveError

_EXACT_FLOAT = 2**53  # whole numbers up to here are exact as float64, in whichever order they are added
_EXACT_INTEGER = 2**63


@dataclass(frozen=True, slots=True)
class ExpertCorrelation:
    """Mean Pearson correlation between categories, equation 14.

    categories: c names, in order of first appearance. matrix: float64 (c, c), symmetric, -1 to 1; NaN where there is no
    pair with a value. undefined: instructions whose frequencies have no variance.
    """

    categories: Sequence[str]
    matrix: NDArray[np.float64]
    undefined: int


def correlation_blocks(experts: InstructionExperts) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Pearson correlations of all pairs, equation 13, a block of rows at a time.

    Yields:
        i and float64 (b, n - i): correlation of instructions i to i + b with instructions i to n; NaN where one of the
        two has no variance.

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
    for first in range(0, len(experts), PAIRED_ROWS):
        last = min(first + PAIRED_ROWS, len(experts))
        shared = np.empty((last - first, len(experts) - first), dtype=np.int64)
        left = vectors[first:last].astype(np.float64)
        for begin in range(first, len(experts), PAIRED_ROWS):
            right = vectors[begin : begin + PAIRED_ROWS].astype(np.float64)
            shared[:, begin - first : begin - first + len(right)] = (left @ right.T).astype(np.int64)
        above = size * shared - sums[first:last, None] * sums[None, first:]
        yield first, np.clip(above / np.sqrt(varied[first:last, None] * varied[None, first:]), -1.0, 1.0)


def instruction_correlations(experts: InstructionExperts) -> NDArray[np.float64]:
    """Equation 13 for all pairs: float64 (n, n), symmetric; NaN where one of the two has no variance."""
    full = np.empty((len(experts), len(experts)))
    for first, block in correlation_blocks(experts):
        full[first : first + len(block), first:] = block
        full[first:, first : first + len(block)] = block.T
    return full


def expert_correlation(experts: InstructionExperts) -> ExpertCorrelation:
    """Equation 14: the mean correlation within each category and between every two."""
    means = PairMeans(experts.categories)
    undefined = 0
    for first, block in correlation_blocks(experts):
        means.add(first, block)
        undefined += int(np.isnan(np.diagonal(block)).sum())
    return ExpertCorrelation(means.labels, means.without_self(), undefined)
