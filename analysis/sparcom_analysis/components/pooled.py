"""At how many tokens of each category every neuron is active: counts summed over the category's instructions.

Tokens are pooled, so an instruction weighs as much as it has tokens (in equation 6 each weighs the same). Sums are
exact whole numbers. Four bytes a neuron and category are held, eight past 2^32 tokens, for any number of instructions.

`pooled_counts` makes a pass of its own; `PoolWhileReading` is given the counts of a pass that is made anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.measures.frequencies import Progress, iterate_counts
from sparcom_analysis.measures.selection import check_enough
from sparcom_analysis.reading.blocks import DEFAULT_BLOCK_BYTES
from sparcom_analysis.reading.categories import category_codes, category_labels
from sparcom_analysis.reading.populations import Component, Population, choose_population
from sparcom_analysis.reading.rows import CountedTokens, Rows, SpecialTokens, choose_rows
from sparcom_analysis.reading.token_rows import counted_rows
from sparcom_data.archive import Archive

MOST_BYTES = 512 << 20  # sums that take more are not kept on the way: 66 categories of 2.03 million neurons
_MOST_32 = 2**32 - 1


class PooledCounts:
    """Sums of counts over the instructions of each category.

    population: whose neurons. categories: c names, in order of first appearance. tokens: int64 (c,), T of each
    category. counts: uint32 or uint64 (c, layer × expert × neuron), tokens at which the neuron is active.
    """

    def __init__(self, population: Population, categories: Sequence[str], tokens: NDArray[np.int64]) -> None:
        """
        Args:
            categories: of each instruction. tokens: int64 (n,), T of each.
        """
        self.population, self.categories = population, category_labels(categories)
        self._codes = category_codes(categories)
        self.tokens = np.zeros(len(self.categories), dtype=np.int64)
        np.add.at(self.tokens, self._codes, tokens)
        dtype = np.dtype(np.uint32 if int(self.tokens.max(initial=0)) <= _MOST_32 else np.uint64)
        self.counts: NDArray[np.unsignedinteger[Any]] = np.zeros((len(self.categories), population.total), dtype)

    def add(self, k: int, counts: NDArray[np.uint32]) -> None:
        """Add instruction k, once; counts as `iterate_counts` gives them: uint32 (layer, expert × 8 × neuron_byte)."""
        part = self.population
        apart = counts.reshape(part.layers, part.experts, -1)[:, :, : part.neurons]
        own = self.counts[self._codes[k]].reshape(apart.shape)
        np.add(own, apart, out=own)


class PoolWhileReading:
    """Pools the counts of a pass that selects neurons (`selection.CountsReader`).

    counts: None where they would take more than `MOST_BYTES`; `reason` says so.
    """

    def __init__(self) -> None:
        self.counts: PooledCounts | None = None
        self.reason = ""

    def start(self, population: Population, categories: Sequence[str], tokens: NDArray[np.int64]) -> None:
        """Make room."""
        names = len(set(categories))
        if 4 * names * population.total > MOST_BYTES:
            self.reason = (
                f"Sums over categories are kept of up to {MOST_BYTES >> 20} MiB; {names:,} categories of "
                f"{population.total:,} neurons take more."
            )
            return
        self.counts = PooledCounts(population, categories, tokens)

    def add(self, k: int, counts: NDArray[np.uint32]) -> None:
        """Add instruction k."""
        if self.counts is not None:
            self.counts.add(k, counts)


def pooled_counts(
    archive: Archive,
    *,
    rows: Rows | None = None,
    component: Component | None = None,
    progress: Progress | None = None,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    special_tokens: SpecialTokens = "count",
    special_token_ids: Sequence[int] | None = None,
    counted_tokens: CountedTokens = "all",
) -> PooledCounts:
    """Counts of every category over its complete instructions, in one pass over the archive.

    Args:
        rows, component, progress, block_bytes, special_tokens, special_token_ids, counted_tokens: as for
            `instruction_specific_neurons`.

    Raises:
        IncompleteArchiveError: fewer than two complete instructions, or not the rows that were asked for.
        UnsupportedArchiveError: the archive does not hold the component.
        DamagedArchiveError: rows of a complete instruction are not what they must be.
    """
    population = choose_population(archive, component)
    chosen = choose_rows(archive, rows)
    spans = counted_rows(
        archive,
        chosen,
        special_tokens=special_tokens,
        special_token_ids=special_token_ids,
        counted_tokens=counted_tokens,
    )
    check_enough(archive, spans, chosen)
    pooled = PooledCounts(population, [archive.instructions.category[i] for i in spans.instruction], spans.tokens)
    for k, counts in iterate_counts(archive, spans, population, progress=progress, block_bytes=block_bytes):
        pooled.add(k, counts)
    return pooled
