"""Counts summed over the instructions of each category: the category's tokens at which each neuron is active.

Tokens are pooled, so instructions are weighted by their number of tokens; equation 6 weights them equally. Sums are
exact integers of four bytes per neuron and category, or eight for 2^32 tokens and more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.archive.categories import category_codes, category_labels
from sparcom_analysis.archive.populations import Population

MAX_BYTES = 512 << 20  # for all sums, enough for 66 categories of 2.03 million neurons


class PooledCounts:
    """Sums of counts over the instructions of each category.

    Attributes:
        population: population of the neurons.
        categories: c labels, in order of first appearance.
        codes: intp (n,), category of each instruction.
        tokens: int64 (c,), tokens per category.
        counts: uint32 or uint64 (c, layer × expert × neuron), tokens at which the neuron is active.
    """

    def __init__(self, population: Population, categories: Sequence[str], tokens: NDArray[np.int64]) -> None:
        """Start with zeros; `categories` and `tokens` (T) have one entry per instruction."""
        self.population, self.categories = population, category_labels(categories)
        self.codes = category_codes(categories)
        self.tokens = np.zeros(len(self.categories), dtype=np.int64)
        np.add.at(self.tokens, self.codes, tokens)
        dtype = np.dtype(np.uint32 if int(self.tokens.max(initial=0)) < 1 << 32 else np.uint64)
        self.counts: NDArray[np.unsignedinteger[Any]] = np.zeros((len(self.categories), population.total), dtype)

    def add(self, k: int, counts: NDArray[np.uint32]) -> None:
        """Add instruction k, once: uint32 (layer, expert × 8 × neuron_byte), as `iterate_counts` yields them."""
        part = self.population
        apart = counts.reshape(part.layers, part.experts, -1)[:, :, : part.neurons]
        total = self.counts[self.codes[k]].reshape(apart.shape)
        total += apart


def pool_for(
    population: Population, categories: Sequence[str], tokens: NDArray[np.int64]
) -> tuple[PooledCounts | None, str]:
    """Return empty sums, or None and the reason if they would take more than `MAX_BYTES`."""
    groups = len(set(categories))
    if 4 * groups * population.total > MAX_BYTES:
        return None, (
            f"Sums per category may take up to {MAX_BYTES >> 20} MiB; {groups:,} categories of {population.total:,} "
            "neurons take more."
        )
    return PooledCounts(population, categories, tokens), ""
