"""How alike two categories are in the neurons they use: equation 10.

The similarity of two instructions is the Jaccard index of their ISN sets, |A ∩ B| / |A ∪ B|; that of two categories is
its mean over all pairs of an instruction of the one and an instruction of the other. Within a category the equation
counts the pair of an instruction with itself, which is 1 whatever the model does; both versions are computed here.

Two empty sets have similarity 0: they share no neuron, so nothing speaks for their being alike. It can only happen with
the threshold rule, or where no neuron is ever active.

Pairs are reduced to category sums block by block, so memory is O(instructions), not O(pairs).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.categories import category_codes, category_labels
from sparcom_analysis.kernels import PAIR_ROWS, cores, intersection_sizes
from sparcom_analysis.selection import InstructionNeurons


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
        i and float64 (b, n - i): similarity of instructions i to i + b with instructions i to n.
    """
    sizes = neurons.sizes
    step = PAIR_ROWS * max(4, 2 * cores())
    for first in range(0, len(neurons), step):
        last = min(first + step, len(neurons))
        shared = intersection_sizes(neurons.sets, first, last)
        union = sizes[first:last, None] + sizes[None, first:] - shared
        yield first, np.divide(shared, union, out=np.zeros(shared.shape), where=union > 0)


def category_similarity(neurons: InstructionNeurons) -> CategorySimilarity:
    """Similarity of every two categories, with and without pairs of an instruction with itself."""
    codes = category_codes(neurons.categories)
    labels = category_labels(neurons.categories)
    member = np.eye(len(labels))[codes]  # (n, c), 1 where the instruction is of the category
    different = np.zeros((len(labels), len(labels)))  # sums over pairs i < j
    for first, block in jaccard_blocks(neurons):
        later = np.triu(block, k=1)  # row r is instruction first + r, column s instruction first + s
        different += member[first : first + len(block)].T @ later @ member[first:]
    different = different + different.T
    size = member.sum(axis=0)
    itself = np.diag(member.T @ (neurons.sizes > 0))
    pairs = np.outer(size, size)
    other_pairs = pairs - np.diag(size)
    without_self = np.divide(different, other_pairs, out=np.full_like(different, np.nan), where=other_pairs > 0)
    return CategorySimilarity(labels, (different + itself) / pairs, without_self)
