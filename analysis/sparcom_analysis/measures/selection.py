"""Instruction-specific neurons (ISNs): the neurons that an instruction activates most often, equations 7 and 9.

Two rules, both on exact integer counts c = T · p, so that no rounding of p decides who belongs:

- epsilon: the k = ⌈ε · N⌉ most frequent of all N neurons of the population, and every neuron that ties with the last;
- threshold: every neuron with p ≥ threshold.

The population is that of one component over all its layers: dense layers' neurons (equation 7), those of routed
experts over (expert, neuron, layer) (equation 9), or those of shared experts. A neuron that is never active (p = 0)
belongs to no set, even where ε would reach it: it is not specific to anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.kernels.neurons import histogram, pack_at_least
from sparcom_analysis.measures.frequencies import Progress, iterate_counts
from sparcom_analysis.measures.sets import PackedSets
from sparcom_analysis.reading.blocks import DEFAULT_BLOCK_BYTES
from sparcom_analysis.reading.matched_tokens import TokenDraw
from sparcom_analysis.reading.populations import Component, Population, choose_population
from sparcom_analysis.reading.rows import (
    ALL_TOKENS,
    CountedTokens,
    Rows,
    RowSpans,
    SpecialTokens,
    TokenFacts,
    choose_rows,
)
from sparcom_analysis.reading.token_rows import counted_rows
from sparcom_data.archive import Archive, describe_states
from sparcom_data.errors import IncompleteArchiveError, InvalidInputError

DEFAULT_EPSILON = 0.05


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rule selects: exactly one of `epsilon` and `threshold`, each in (0, 1]."""

    epsilon: float | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        given = {"epsilon": self.epsilon, "threshold": self.threshold}
        values = {name: value for name, value in given.items() if value is not None}
        if len(values) != 1:
            raise InvalidInputError(
                f"exactly one of epsilon and threshold must be given; found {' and '.join(values) or 'none'}"
            )
        for name, value in values.items():
            if not 0 < value <= 1:
                raise InvalidInputError(f"{name} must be above 0 and at most 1; it is {value}")

    def wanted(self, neurons: int) -> int | None:
        """k of the epsilon rule, ⌈ε · N⌉ of `neurons`; None for the threshold rule.

        ε is taken as the decimal number that was written: 0.07 of 100 neurons is 7, not the 8 of its binary neighbour.
        """
        return None if self.epsilon is None else math.ceil(_decimal(self.epsilon) * neurons)

    def minimum_count(self, counts: NDArray[np.uint32], neurons: int, tokens: int) -> int:
        """The count from which a neuron belongs, at least 1.

        Args:
            counts: uint32, active rows of each neuron, any shape; entries that stand for no neuron are 0.
            neurons: N, the true number of neurons in `counts`.
            tokens: T of the instruction.
        """
        return self.minimum_of(histogram(counts.reshape(-1), tokens), neurons)

    def minimum_of(self, often: NDArray[np.int64], neurons: int) -> int:
        """The same from how often each count occurs: int64 (T + 1,)."""
        wanted = self.wanted(neurons)
        if wanted is None:
            assert self.threshold is not None  # noqa: S101  (__post_init__ saw to it)
            return math.ceil(_decimal(self.threshold) * (len(often) - 1))
        at_least = often[::-1].cumsum()[::-1]  # entry c: neurons with count ≥ c
        return max(1, int(np.flatnonzero(at_least >= wanted)[-1]))


def _decimal(value: float) -> Fraction:
    return Fraction(repr(float(value)))


def make_selection(epsilon: float | None, threshold: float | None) -> Selection:
    """The rule from options of which at most one may be given; ε = 0.05 where none is."""
    if epsilon is None and threshold is None:
        epsilon = DEFAULT_EPSILON
    return Selection(epsilon=epsilon, threshold=threshold)


@dataclass(frozen=True, slots=True)
class InstructionNeurons:
    """The ISN sets of n instructions, in submission order.

    selection, rows: how they were selected. population: of which neurons.
    instruction: int64 (n,), index into the archive's instruction table. ids, categories: n strings.
    tokens: int64 (n,), T. minimum_count: int64 (n,), the least count of a neuron of the set; of
    an empty set the count from which a neuron would belong.
    sets: uint64 (n, word), one bit a neuron; its bytes are (layer, expert, neuron_byte), then zeros.
    layer_counts: int64 (n, layer), ISNs in each layer. without_rows: complete instructions without a row of this kind.
    token_facts: which tokens of these rows did not count. dead_layers: bool (n, layer), whether no neuron of the layer
    is active at any counted token; None where nobody looked.
    """

    selection: Selection
    rows: Rows
    population: Population
    instruction: NDArray[np.int64]
    ids: Sequence[str]
    categories: Sequence[str]
    tokens: NDArray[np.int64]
    minimum_count: NDArray[np.int64]
    sets: PackedSets
    layer_counts: NDArray[np.int64]
    without_rows: int
    token_facts: TokenFacts = ALL_TOKENS
    dead_layers: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def layer_ids(self) -> Sequence[int]:
        """The model's number of each layer."""
        return self.population.layer_ids

    @property
    def sizes(self) -> NDArray[np.int64]:
        """int64 (n,): ISNs of each instruction."""
        sizes: NDArray[np.int64] = self.layer_counts.sum(axis=1)
        return sizes

    def mask(self, k: int) -> NDArray[np.bool_]:
        """The set of instruction k: bool (layer, neuron), of routed experts (layer, expert, neuron)."""
        part = self.population
        shape = (part.layers, part.experts, part.neuron_bytes)
        packed = self.sets.rows(k, k + 1)[0].view(np.uint8)[: math.prod(shape)].reshape(shape)
        mask = np.unpackbits(packed, axis=2, count=part.neurons, bitorder="little").astype(np.bool_)
        return mask if part.routed else mask[:, 0]


@dataclass(frozen=True, slots=True)
class _Found:
    """The parts of `InstructionNeurons` that the pass over the archive fills in."""

    sets: PackedSets
    layer_counts: NDArray[np.int64]
    minimum_count: NDArray[np.int64]
    dead_layers: NDArray[np.bool_]
    words: NDArray[np.uint64]  # the set in hand

    @classmethod
    def none(cls, population: Population, count: int, scratch: Path | None) -> _Found:
        words = -(-population.layers * population.columns // 64)
        return cls(
            sets=PackedSets(count, words, scratch),
            layer_counts=np.zeros((count, population.layers), dtype=np.int64),
            minimum_count=np.zeros(count, dtype=np.int64),
            dead_layers=np.zeros((count, population.layers), dtype=np.bool_),
            words=np.zeros(words, dtype=np.uint64),
        )

    def keep(self, k: int, counts: NDArray[np.uint32], least: int) -> None:
        """Instruction k has the neurons whose count is at least `least`; counts: (layer, 8 × byte)."""
        layers, columns = counts.shape
        packed = self.words.view(np.uint8)[: layers * columns // 8].reshape(layers, -1)
        pack_at_least(counts, least, packed, self.layer_counts[k])
        self.sets[k] = self.words
        self.minimum_count[k] = least
        without_isn = np.flatnonzero(self.layer_counts[k] == 0)  # others are not dead: an ISN is active somewhere
        self.dead_layers[k, without_isn] = ~counts[without_isn].any(axis=1)


def _least_in_set(often: NDArray[np.int64], bound: int) -> int:
    """The least count that occurs and is at least `bound`; `bound` where there is none. It selects the same neurons."""
    held = np.flatnonzero(often[bound:])
    return bound + int(held[0]) if len(held) else bound


class CountsReader(Protocol):
    """Who else wants every instruction's counts, so that they are read once."""

    def start(self, population: Population, categories: Sequence[str], tokens: NDArray[np.int64]) -> None:
        """What is to come: the category and T of each instruction."""

    def add(self, k: int, counts: NDArray[np.uint32]) -> None:
        """Instruction k, as `iterate_counts` gives it; the array is used again."""


def instruction_specific_neurons(
    archive: Archive,
    *,
    epsilon: float | None = None,
    threshold: float | None = None,
    rows: Rows | None = None,
    component: Component | None = None,
    progress: Progress | None = None,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    scratch: Path | None = None,
    special_tokens: SpecialTokens = "count",
    special_token_ids: Sequence[int] | None = None,
    counted_tokens: CountedTokens = "all",
    tokens: TokenDraw | None = None,
    least: int = 2,
    also: CountsReader | None = None,
) -> InstructionNeurons:
    """The ISNs of every complete instruction, equations 7 and 9, in one pass over the archive.

    Args:
        archive: an archive of masks or of counts.
        epsilon: share of the component's neurons that is selected, ties included; 0.05 where neither rule is given.
        threshold: select by p ≥ threshold instead.
        rows: prompt, response or all; without it the prompt's where the archive holds them. Of counts only what was
            captured can be had.
        component: whose neurons are ranked together; without it those of routed experts where the model has them, else
            those of dense layers.
        progress: called with rows done and rows in all.
        block_bytes: packed masks or counts read at once; it changes memory and speed, never the result.
        scratch: folder for a temporary file of the sets, which takes them where they are too many for memory.
        special_tokens: `leave_out` leaves rows of special tokens (BOS, marks of a chat template) out of T and of all
            counts. Of masks only.
        special_token_ids: which ids are special, in place of those that the archive knows.
        counted_tokens: `content` leaves rows that a chat template or the tokenizer wrote out of T and of all counts.
            Of masks only.
        tokens: let m drawn tokens stand for each instruction, so that T is the same for all. Of masks only.
        least: instructions that there must be, 1 or 2.
        also: is given the counts too.

    Raises:
        IncompleteArchiveError: too few complete instructions, or not the rows that were asked for.
        InvalidInputError: both rules are given, or a value is outside (0, 1].
        UnsupportedArchiveError: the archive does not hold the component, or cannot tell which tokens to leave out.
        DamagedArchiveError: rows of a complete instruction are not what they must be.
    """
    selection = make_selection(epsilon, threshold)
    population = choose_population(archive, component)
    chosen = choose_rows(archive, rows)
    spans = counted_rows(
        archive,
        chosen,
        special_tokens=special_tokens,
        special_token_ids=special_token_ids,
        counted_tokens=counted_tokens,
        tokens=tokens,
    )
    if len(spans) < least:
        check_enough(archive, spans, chosen)
    found, length = _Found.none(population, len(spans), scratch), spans.tokens
    table = archive.instructions
    categories = [table.category[i] for i in spans.instruction]
    if also is not None:
        also.start(population, categories, length)
    for k, counts in iterate_counts(archive, spans, population, progress=progress, block_bytes=block_bytes):
        often = histogram(counts.reshape(-1), int(length[k]))
        found.keep(k, counts, _least_in_set(often, selection.minimum_of(often, population.total)))
        if also is not None:
            also.add(k, counts)
    return InstructionNeurons(
        selection=selection,
        rows=chosen,
        population=population,
        instruction=spans.instruction,
        ids=[table.id[i] for i in spans.instruction],
        categories=categories,
        tokens=length,
        minimum_count=found.minimum_count,
        sets=found.sets,
        layer_counts=found.layer_counts,
        without_rows=spans.without_rows,
        token_facts=spans.facts,
        dead_layers=found.dead_layers,
    )


def check_enough(archive: Archive, spans: RowSpans, rows: Rows) -> None:
    """Raise IncompleteArchiveError where there are fewer than two instructions to compare."""
    if len(spans) >= 2:
        return
    states = ", ".join(f"{count} {name}" for name, count in describe_states(archive.instructions.state).items())
    found, remedy = f"{len(spans)} ({states})", "Finish the extraction, or run the failed instructions again"
    kind = f"{rows} rows"
    if spans.facts.special_tokens == "leave_out":
        kind += " beside special tokens"
    if spans.facts.counted_tokens == "content":
        kind += " of content"
        found += f"; {spans.facts.unknown_origin} have tokens of unknown origin"
    if (m := spans.facts.drawn) is not None:
        kind = f"at least {m} {kind}"
        found, remedy = f"{found}; {spans.facts.too_short} have fewer", "Draw fewer tokens"
    raise IncompleteArchiveError(
        f"an analysis needs at least 2 complete instructions with {kind}; {archive.path} has {found}. {remedy}"
    )
