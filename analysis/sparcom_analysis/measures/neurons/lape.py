"""Language activation probability entropy (LAPE, Tang et al. 2024, arXiv 2402.16438), over categories in place of
languages: a second way of selecting, which compares categories where equation 7 ranks neurons within an instruction.

1. p_ic = share of all tokens of category c's instructions at which neuron i is active; tokens are pooled, so a long
   instruction counts more than a short one.
2. Of all N · C values p the filter is the k-th smallest, k = round(0.95 · N · C); a neuron whose largest p_ic is not
   above it is dropped.
3. Entropy −Σ_c q_ic log q_ic of q_ic = p_ic / Σ_c p_ic: low where few categories use the neuron.
4. The round(0.01 · N) neurons of lowest entropy are selected, fewer where fewer passed the filter.
5. A selected neuron is specific to each category where p_ic is above the bar, the k-th smallest p by a second rate.

Rounded half to even and compared strictly, as the authors' code does. It differs from theirs where neurons are equal:
here the lower index comes first, there it is whichever comes; entropies are rounded to twelve digits for it, since sums
of floats differ in the sixteenth. And a neuron that was dropped is never selected, where theirs fill up with them.

p as float64 decides nothing by rounding: two quotients of whole numbers below 2^26 differ as floats, or are equal.
With one category every entropy is 0: nothing is selected, and `reason` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.archive.populations import Population
from sparcom_analysis.components.pooled import PooledCounts
from sparcom_data.errors import InvalidInputError

TIE_DIGITS = 12
BLOCK_NEURONS = 1 << 16  # neurons whose p are held as floats at once
ONE_CATEGORY = "over one category the entropy of every neuron is 0, which tells none from another"


@dataclass(frozen=True, slots=True)
class LapeRates:
    """How much LAPE takes, each above 0 and at most 1.

    top: share of all neurons that is selected. filter: percentile of all p that a neuron must pass in some category.
    bar: percentile of all p above which a selected neuron is specific to a category.
    """

    top: float = 0.01
    filter: float = 0.95
    bar: float = 0.95

    def __post_init__(self) -> None:
        given = {"top": self.top, "filter": self.filter, "bar": self.bar}
        problems = [
            f"LAPE's {name} rate must be above 0 and at most 1; it is {value}. Leave it out for the authors' own"
            for name, value in given.items()
            if not 0 < value <= 1
        ]
        if problems:
            raise InvalidInputError(problems)


@dataclass(frozen=True, slots=True)
class Lape:
    """The m neurons that LAPE selects, lowest entropy first, ties by lower index.

    population: whose neurons. rates: how much was taken.
    categories: c names. tokens: int64 (c,), T of each category. filter, bar: the values of p to be above; NaN with one
    category. passed: neurons that passed the filter. wanted: round(top · N).
    neuron: int64 (m,), index into (layer, expert, neuron) flattened. entropy: float64 (m,), in nats, to twelve digits.
    frequency: float64 (c, m), p. specific: bool (c, m), whether the neuron is specific to the category.
    """

    population: Population
    rates: LapeRates
    categories: Sequence[str]
    tokens: NDArray[np.int64]
    filter: float
    bar: float
    passed: int
    wanted: int
    neuron: NDArray[np.int64]
    entropy: NDArray[np.float64]
    frequency: NDArray[np.float64]
    specific: NDArray[np.bool_]

    @property
    def reason(self) -> str:
        """Why nothing is selected; empty where categories can be compared."""
        return "" if len(self.categories) > 1 else ONE_CATEGORY

    def ids(self, category: int) -> list[NDArray[np.int64]]:
        """Neurons specific to a category, ascending, of each layer: int64 (k,); of routed experts expert · width +
        neuron."""
        own, width = np.sort(self.neuron[self.specific[category]]), self.population.width
        borders = np.searchsorted(own, np.arange(1, self.population.layers) * width)
        return [part - layer * width for layer, part in enumerate(np.split(own, borders))]

    def mask(self, category: int) -> NDArray[np.bool_]:
        """The same as bool (layer, neuron), of routed experts (layer, expert, neuron)."""
        part = self.population
        mask = np.zeros(part.total, dtype=np.bool_)
        mask[self.neuron[self.specific[category]]] = True
        apart = mask.reshape(part.layers, part.experts, part.neurons)
        return apart if part.routed else apart[:, 0]

    def by_category(self) -> NDArray[np.int64]:
        """int64 (c, layer): how many neurons of each layer are specific to each category."""
        layer, part = self.neuron // self.population.width, self.population
        return np.array([np.bincount(layer[own], minlength=part.layers) for own in self.specific], dtype=np.int64)


def lape(pooled: PooledCounts, rates: LapeRates | None = None) -> Lape:
    """Select the neurons whose activity is spread over the fewest categories, by entropy.

    Args:
        pooled: counts of one component, at least one token a category.
        rates: the authors' 0.01, 0.95 and 0.95 where none are given.
    """
    rates = LapeRates() if rates is None else rates
    part, several = pooled.population, len(pooled.categories) > 1
    wanted = round(_decimal(rates.top) * part.total)
    least, bar = (_kth_smallest(pooled, rate) if several else np.nan for rate in (rates.filter, rates.bar))
    neuron, entropy = _entropies(pooled, least)
    first = np.argsort(entropy, kind="stable")[:wanted]
    frequency = _frequencies(pooled, neuron[first])
    return Lape(
        population=part,
        rates=rates,
        categories=list(pooled.categories),
        tokens=pooled.tokens,
        filter=least,
        bar=bar,
        passed=len(neuron),
        wanted=wanted,
        neuron=neuron[first],
        entropy=entropy[first],
        frequency=frequency,
        specific=frequency > bar,
    )


def _decimal(value: float) -> Fraction:
    return Fraction(repr(float(value)))


def _kth_smallest(pooled: PooledCounts, rate: float) -> float:
    """The k-th smallest of all p, k = round(rate · N · C), at least 1; each p that occurs, with how often it does."""
    k = max(1, round(_decimal(rate) * pooled.counts.size))
    values, times = [], []
    for counts, tokens in zip(pooled.counts, pooled.tokens, strict=True):
        found, often = np.unique(counts, return_counts=True)
        values.append(found / np.float64(tokens))
        times.append(often)
    every = np.concatenate(values)
    order = np.argsort(every, kind="stable")
    reached = np.concatenate(times)[order].cumsum()
    return float(every[order][np.searchsorted(reached, k)])


def _entropies(pooled: PooledCounts, least: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Neurons with a p above `least`, ascending: int64 (m,), and their entropies: float64 (m,)."""
    neurons, entropies = [], []
    for first in range(0, pooled.population.total, BLOCK_NEURONS):
        block = pooled.counts[:, first : first + BLOCK_NEURONS] / pooled.tokens[:, None].astype(np.float64)
        passed = np.flatnonzero((block > least).any(axis=0))
        neurons.append(passed + first)
        entropies.append(_entropy(block[:, passed]))
    return np.concatenate(neurons).astype(np.int64), np.concatenate(entropies)


def _entropy(frequency: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy of each column of float64 (c, m), none of which is all 0: float64 (m,).

    Sorted first, so that the same p in other categories give the same digits; and added category by category: numpy's
    own sum adds a lone column in another order than columns beside each other.
    """
    ordered = np.sort(frequency, axis=0)
    total, entropy = np.zeros(frequency.shape[1]), np.zeros(frequency.shape[1])
    for row in ordered:
        total += row
    for row in ordered:
        q = row / total
        entropy -= q * np.log(q, out=np.zeros_like(q), where=q > 0)
    return entropy.round(TIE_DIGITS) + 0.0  # no −0


def _frequencies(pooled: PooledCounts, neuron: NDArray[np.int64]) -> NDArray[np.float64]:
    """p of these neurons: float64 (c, m)."""
    frequency: NDArray[np.float64] = pooled.counts[:, neuron] / pooled.tokens[:, None].astype(np.float64)
    return frequency
