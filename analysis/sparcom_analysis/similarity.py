"""How alike two categories are in the neurons they use: equation 10.

The similarity of two instructions is the Jaccard index of their ISN sets, |A ∩ B| / |A ∪ B|; that of two categories is
its mean over all pairs of an instruction of the one and an instruction of the other. Within a category the equation
counts the pair of an instruction with itself, which is 1 whatever the model does; both versions are computed here.

Two empty sets have similarity 0: they share no neuron, so nothing speaks for their being alike. It can only happen with
the threshold rule, or where no neuron is ever active.

Sets are compared a block with a block, and pairs are reduced to category sums as they come, so memory is
O(instructions), not O(pairs), and sets may lie in a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.kernels import intersection_sizes
from sparcom_analysis.pairs import PAIRED_ROWS, PairMeans
from sparcom_analysis.selection import InstructionNeurons

ACROSS_BYTES = 64 << 20  # packed sets that a block of rows is compared with at once


@dataclass(frozen=True, slots=True)
class CategorySimilarity:
    """Mean Jaccard index between categories, equation 10.

    categories: c names, in order of first appearance.
    matrix: float64 (c, c), symmetric, 0 to 1, pairs of an instruction with itself counted, as in the equation.
    without_self: the same without those pairs; the diagonal of a category with one instruction is NaN (no pair).
    """

    categories: Sequence[str]
    matrix: NDArray[np.float64]
    without_self: NDArray[np.float64]


def jaccard_blocks(neurons: InstructionNeurons) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Jaccard indices of all pairs, a block of rows at a time.

    Yields:
        i and float64 (b, n - i): similarity of instructions i to i + b with instructions i to n, each with itself and
        with those after it; what is before it is not filled in.
    """
    sizes, sets = neurons.sizes, neurons.sets
    across = max(1, ACROSS_BYTES // max(8, 8 * sets.shape[1]))
    for first in range(0, len(neurons), PAIRED_ROWS):
        last = min(first + PAIRED_ROWS, len(neurons))
        left = sets.rows(first, last)
        shared = np.zeros((last - first, len(neurons) - first), dtype=np.int64)
        for begin in range(first, len(neurons), across):
            end = min(begin + across, len(neurons))
            own = begin == first and end >= last
            found = intersection_sizes(left, sets.rows(begin, end), later_only=own)
            shared[:, begin - first : end - first] = found
        union = sizes[first:last, None] + sizes[None, first:] - shared
        yield first, np.divide(shared, union, out=np.zeros(shared.shape), where=union > 0)


def category_similarity(neurons: InstructionNeurons) -> CategorySimilarity:
    """Similarity of every two categories, with and without pairs of an instruction with itself."""
    means = PairMeans(neurons.categories)
    for first, block in jaccard_blocks(neurons):
        means.add(first, block)
    itself = (neurons.sizes > 0).astype(np.float64)
    return CategorySimilarity(means.labels, means.with_self(itself), means.without_self())
