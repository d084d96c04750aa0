"""What fine-tuning alters of the neurons and experts that an instruction uses: equations 15 and 16.

Equation 15, as read here. Of instruction I, with N_base(I) and N_tuned(I) its ISN sets in both models:

    overlap O(I) = |N_base(I) ∩ N_tuned(I)| / |N_base(I) ∪ N_tuned(I)|,  alteration A(I) = 1 − O(I);

within a layer the same of the neurons of that layer alone. Where both sets are empty there is nothing that could be
altered: no value (NaN), in no mean, and counted. (Equation 10 gives two empty sets the similarity 0; here that would
say that all was altered.)

Equation 16, as read here. With f(I) of equation 11 over all N experts of all layers:

    r(I) = Pearson correlation of f_base(I) and f_tuned(I),  alteration 1 − r(I), from 0 to 2;

no value where one of the two has no variance, counted likewise. r is computed from the whole numbers c = T · f, of
which it is the same, by exact sums: r = (N Σ c c' − Σ c Σ c') / √((N Σ c² − (Σ c)²) (N Σ c'² − (Σ c')²)).

Of a category: the mean over its instructions that have a value. One instruction's two sets are held at a time; sets may
lie in a file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.measures.experts import InstructionExperts
from sparcom_analysis.measures.selection import InstructionNeurons
from sparcom_analysis.reading.categories import category_codes, category_labels
from sparcom_analysis.reading.populations import Population
from sparcom_analysis.tuned.twins import Twins, match_twins
from sparcom_data.errors import UnsupportedArchiveError

_EXACT_INTEGER = 2**63


@dataclass(frozen=True, slots=True)
class CategoryMeans:
    """Means of values of instructions, NaN where none has one.

    categories: c names, in order of first appearance. mean: float64 (c, …). overall: float64 (…), over all
    instructions. counted: int64 (c, …), instructions with a value. undefined: int64 (c, …), those without.
    """

    categories: list[str]
    mean: NDArray[np.float64]
    overall: NDArray[np.float64]
    counted: NDArray[np.int64]
    undefined: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class NeuronAlteration:
    """Equation 15 of the m instructions of `twins`, and what it is made of.

    population: whose neurons. shared, base_counts, tuned_counts: int64 (m, layer), ISNs of both models, of the base and
    of the tuned model.
    """

    twins: Twins
    population: Population
    shared: NDArray[np.int64]
    base_counts: NDArray[np.int64]
    tuned_counts: NDArray[np.int64]

    @property
    def overlap(self) -> NDArray[np.float64]:
        """O(I): float64 (m,), 0 to 1; NaN where both sets are empty."""
        return _jaccard(*(part.sum(axis=1) for part in (self.shared, self.base_counts, self.tuned_counts)))

    @property
    def alteration(self) -> NDArray[np.float64]:
        """A(I): float64 (m,)."""
        return 1.0 - self.overlap

    @property
    def layer_overlap(self) -> NDArray[np.float64]:
        """O(I) of each layer's neurons alone: float64 (m, layer)."""
        return _jaccard(self.shared, self.base_counts, self.tuned_counts)

    @property
    def layer_alteration(self) -> NDArray[np.float64]:
        """A(I) of each layer's neurons alone: float64 (m, layer)."""
        return 1.0 - self.layer_overlap

    def by_category(self, values: NDArray[np.float64] | NDArray[np.int64]) -> CategoryMeans:
        """Means by category of values (m, …) of these instructions."""
        return category_means(values, self.twins.categories)


@dataclass(frozen=True, slots=True)
class ExpertAlteration:
    """Equation 16 of the m instructions of `twins`.

    correlation: r(I), float64 (m,), -1 to 1; NaN where a model's frequencies have no variance.
    """

    twins: Twins
    correlation: NDArray[np.float64]

    @property
    def alteration(self) -> NDArray[np.float64]:
        """1 − r(I): float64 (m,), 0 to 2."""
        return 1.0 - self.correlation

    def by_category(self, values: NDArray[np.float64]) -> CategoryMeans:
        """Means by category of values (m, …) of these instructions."""
        return category_means(values, self.twins.categories)


def neuron_alteration(
    base: InstructionNeurons, tuned: InstructionNeurons, twins: Twins | None = None
) -> NeuronAlteration:
    """Equation 15 of every instruction that both have.

    Args:
        twins: what `match_twins` found for these two, where it was asked already (given archives it compares tokens).

    Raises:
        As `match_twins` does.
    """
    found = match_twins(base, tuned) if twins is None else twins
    part = base.population
    shared = np.empty((len(found), part.layers), dtype=np.int64)
    for row, (left, right) in enumerate(zip(found.base.tolist(), found.tuned.tolist(), strict=True)):
        both = base.sets.rows(left, left + 1)[0] & tuned.sets.rows(right, right + 1)[0]
        packed = both.view(np.uint8)[: part.layers * part.columns // 8].reshape(part.layers, -1)
        shared[row] = np.bitwise_count(packed).sum(axis=1, dtype=np.int64)
    return NeuronAlteration(found, part, shared, base.layer_counts[found.base], tuned.layer_counts[found.tuned])


def expert_alteration(
    base: InstructionExperts, tuned: InstructionExperts, twins: Twins | None = None
) -> ExpertAlteration:
    """Equation 16 of every instruction that both have; arguments and errors as for `neuron_alteration`.

    Raises:
        UnsupportedArchiveError: also where an instruction is too long for exact sums (a hundred million tokens).
    """
    found = match_twins(base, tuned) if twins is None else twins
    for side in (base, tuned):
        _check_exact(side)
    pairs = zip(found.base.tolist(), found.tuned.tolist(), strict=True)
    correlation = [_pearson(base.counts[i].reshape(-1), tuned.counts[j].reshape(-1)) for i, j in pairs]
    return ExpertAlteration(found, np.array(correlation, dtype=np.float64))


def category_means(values: NDArray[np.float64] | NDArray[np.int64], categories: Sequence[str]) -> CategoryMeans:
    """Means of values (m, …) of m instructions, by category and over all; NaN is in no mean."""
    labels, codes = category_labels(categories), category_codes(categories)
    known = ~np.isnan(values)
    sums, counted = np.zeros((len(labels), *values.shape[1:])), np.zeros((len(labels), *values.shape[1:]), np.int64)
    np.add.at(sums, codes, np.where(known, values, 0))
    np.add.at(counted, codes, known)
    members = np.bincount(codes, minlength=len(labels)).reshape(-1, *[1] * (values.ndim - 1))
    return CategoryMeans(
        labels, _mean(sums, counted), _mean(sums.sum(axis=0), counted.sum(axis=0)), counted, members - counted
    )


def _mean(sums: NDArray[np.float64], counted: NDArray[np.int64]) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = np.divide(sums, counted, out=np.full(sums.shape, np.nan), where=counted > 0)
    return mean


def _jaccard(shared: NDArray[np.int64], left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
    """|A ∩ B| / |A ∪ B| from sizes of the same shape, NaN of two empty sets."""
    union = left + right - shared
    found: NDArray[np.float64] = np.divide(shared, union, out=np.full(shared.shape, np.nan), where=union > 0)
    return found


def _pearson(left: NDArray[np.uint32], right: NDArray[np.uint32]) -> float:
    """Pearson correlation of two rows of counts, NaN where one has no variance."""
    x, y, size = left.astype(np.int64), right.astype(np.int64), len(left)
    sums = int(x.sum()), int(y.sum())
    spread = [size * int(z @ z) - total * total for z, total in zip((x, y), sums, strict=True)]
    if not all(spread):
        return math.nan
    above = size * int(x @ y) - sums[0] * sums[1]
    squared = above * above / (spread[0] * spread[1])  # of whole numbers, rounded once: exactly 1 of a row and itself
    return math.copysign(math.sqrt(squared), above)


def _check_exact(side: InstructionExperts) -> None:
    longest, size = int(side.tokens.max(initial=0)), math.prod(side.counts.shape[1:])
    if longest**2 * size >= _EXACT_INTEGER:
        raise UnsupportedArchiveError(
            f"correlations are exact where T² times the {size} experts of all layers is below 2⁶³; an instruction "
            f"has {longest} tokens. Analyse the archives without such instructions"
        )
