"""How alike two categories are in the neurons they use: equation 10.

The similarity of two instructions is the Jaccard index of their ISN sets, |A ∩ B| / |A ∪ B|; that of two categories is
its mean over all pairs of an instruction of the one and an instruction of the other. Within a category the equation
counts the pair of an instruction with itself, which is 1 whatever the model does; both versions are computed here.

Two empty sets have similarity 0: they share no neuron, so nothing speaks for their being alike. It can only happen with
the threshold rule, or where no neuron is ever active.

Sets are compared a block with a block, and pairs are reduced to category sums as they come, so memory is
that of two blocks of sets, which may lie in a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.measures.intersections import shared_blocks
from sparcom_analysis.measures.pairs import PairMeans
from sparcom_analysis.measures.selection import InstructionNeurons
from sparcom_analysis.statistics.pair_matrix import PairMatrix, keep_pairs


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


def jaccard_blocks(neurons: InstructionNeurons) -> Iterator[tuple[slice, slice, NDArray[np.float64]]]:
    """Jaccard indices of all pairs, a block at a time.

    Yields:
        instructions of the rows and of the columns, and float64 (rows, columns), the similarity of each two. In blocks
        on the diagonal, whose rows are their columns, what is left of it is not filled in.
    """
    sizes = neurons.sizes
    for rows, columns, shared in shared_blocks(neurons.sets, int(sizes.sum())):
        union = sizes[rows, None] + sizes[None, columns] - shared
        yield rows, columns, np.divide(shared, union, out=np.zeros(shared.shape), where=union > 0)


def similarity_pairs(neurons: InstructionNeurons) -> PairMatrix:
    """Jaccard indices of all pairs, kept, in one pass over the sets; of at most `MOST_INSTRUCTIONS`."""
    return keep_pairs(neurons.categories, jaccard_blocks(neurons))


def category_similarity(neurons: InstructionNeurons, pairs: PairMatrix | None = None) -> CategorySimilarity:
    """Similarity of every two categories, with and without pairs of an instruction with itself.

    Args:
        pairs: `similarity_pairs` of these neurons where they are kept: the same bits without a pass over the sets.
    """
    means = PairMeans(neurons.categories)
    for rows, columns, block in jaccard_blocks(neurons) if pairs is None else pairs.blocks():
        means.add(rows, columns, block)
    itself = (neurons.sizes > 0).astype(np.float64)
    return CategorySimilarity(means.labels, means.with_self(itself), means.without_self())
