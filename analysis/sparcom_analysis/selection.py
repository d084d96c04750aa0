"""Instruction-specific neurons (ISNs): the neurons that an instruction activates most often, equation 7.

Two rules, both on exact integer counts c_ij = T · p_ij, so that no rounding of p decides who belongs:

- epsilon: the k = ⌈ε · N⌉ most frequent of all N neurons of all layers, and every neuron that ties with the last;
- threshold: every neuron with p_ij ≥ threshold.

A neuron that is never active (p_ij = 0) belongs to no set, even where ε would reach it: it is not specific to anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.blocks import DEFAULT_BLOCK_BYTES
from sparcom_analysis.frequencies import Progress, iterate_counts
from sparcom_analysis.kernels import histogram
from sparcom_analysis.rows import Rows, RowSpans, check_supported, choose_rows, row_spans
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
                [f"exactly one of epsilon and threshold must be given; found {' and '.join(values) or 'none'}"]
            )
        for name, value in values.items():
            if not 0 < value <= 1:
                raise InvalidInputError([f"{name} must be above 0 and at most 1; it is {value}"])

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
        wanted = self.wanted(neurons)
        if wanted is None:
            assert self.threshold is not None  # noqa: S101  (__post_init__ saw to it)
            return math.ceil(_decimal(self.threshold) * tokens)
        at_least = histogram(counts.reshape(-1), tokens)[::-1].cumsum()[::-1]  # entry c: neurons with count ≥ c
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

    selection, rows: how they were selected.
    instruction: int64 (n,), index into the archive's instruction table. ids, categories: n strings.
    tokens: int64 (n,), T. minimum_count: int64 (n,), the count from which a neuron belongs.
    sets: uint64 (n, word), one bit a neuron; its bytes are (layer, neuron_byte) as in the archive, then zeros.
    layer_counts: int64 (n, layer), ISNs in each layer. layer_ids: the model's number of each layer.
    neurons: width of a layer. without_rows: complete instructions that have no row of this kind.
    """

    selection: Selection
    rows: Rows
    instruction: NDArray[np.int64]
    ids: Sequence[str]
    categories: Sequence[str]
    tokens: NDArray[np.int64]
    minimum_count: NDArray[np.int64]
    sets: NDArray[np.uint64]
    layer_counts: NDArray[np.int64]
    layer_ids: Sequence[int]
    neurons: int
    without_rows: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """int64 (n,): ISNs of each instruction."""
        sizes: NDArray[np.int64] = self.layer_counts.sum(axis=1)
        return sizes

    def mask(self, k: int) -> NDArray[np.bool_]:
        """bool (layer, neuron): the set of instruction k."""
        layers, width = len(self.layer_ids), -(-self.neurons // 8)
        packed = self.sets[k].view(np.uint8)[: layers * width].reshape(layers, width)
        return np.unpackbits(packed, axis=1, count=self.neurons, bitorder="little").astype(np.bool_)


@dataclass(frozen=True, slots=True)
class _Found:
    """The parts of `InstructionNeurons` that the pass over the archive fills in."""

    sets: NDArray[np.uint64]
    layer_counts: NDArray[np.int64]
    minimum_count: NDArray[np.int64]

    @classmethod
    def none(cls, archive: Archive, count: int) -> _Found:
        words = -(-archive.layers * archive.neuron_bytes // 8)
        return cls(
            sets=np.zeros((count, words), dtype=np.uint64),
            layer_counts=np.zeros((count, archive.layers), dtype=np.int64),
            minimum_count=np.zeros(count, dtype=np.int64),
        )

    def keep(self, k: int, counts: NDArray[np.uint32], least: int) -> None:
        """Instruction k has the neurons whose count is at least `least`; counts: (layer, 8 × neuron_byte)."""
        selected = counts >= np.uint32(least)  # the same type: compared without a wider copy
        packed = np.packbits(selected, bitorder="little")
        self.sets[k].view(np.uint8)[: len(packed)] = packed
        self.layer_counts[k] = selected.sum(axis=1)
        self.minimum_count[k] = least


def instruction_specific_neurons(
    archive: Archive,
    *,
    epsilon: float | None = None,
    threshold: float | None = None,
    rows: Rows | None = None,
    progress: Progress | None = None,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
) -> InstructionNeurons:
    """The ISNs of every complete instruction, equation 7, in one pass over the archive.

    Args:
        archive: an archive of masks or of counts.
        epsilon: share of all neurons that is selected, ties included; 0.05 where neither rule is given.
        threshold: select by p_ij ≥ threshold instead.
        rows: prompt, response or all; without it the prompt's where the archive holds them. Of counts only what was
            captured can be had.
        progress: called with rows done and rows in all.
        block_bytes: packed masks or counts read at once; it changes memory and speed, never the result.

    Raises:
        IncompleteArchiveError: fewer than two complete instructions, or not the rows that were asked for.
        InvalidInputError: both rules are given, or a value is outside (0, 1].
    """
    selection = make_selection(epsilon, threshold)
    check_supported(archive)
    chosen = choose_rows(archive, rows)
    spans = row_spans(archive, chosen)
    _check_enough(archive, spans, chosen)
    found, total = _Found.none(archive, len(spans)), archive.layers * archive.neurons
    for k, counts in iterate_counts(archive, spans, progress=progress, block_bytes=block_bytes):
        least = selection.minimum_count(counts, total, int(spans.tokens[k]))
        found.keep(k, counts, least)
    table = archive.instructions
    return InstructionNeurons(
        selection=selection,
        rows=chosen,
        instruction=spans.instruction,
        ids=[table.id[i] for i in spans.instruction],
        categories=[table.category[i] for i in spans.instruction],
        tokens=spans.tokens,
        minimum_count=found.minimum_count,
        sets=found.sets,
        layer_counts=found.layer_counts,
        layer_ids=list(archive.attributes.model.layer_ids),
        neurons=archive.neurons,
        without_rows=spans.without_rows,
    )


def _check_enough(archive: Archive, spans: RowSpans, rows: Rows) -> None:
    if len(spans) >= 2:
        return
    states = ", ".join(f"{count} {name}" for name, count in describe_states(archive.instructions.state).items())
    raise IncompleteArchiveError(
        f"an analysis needs at least 2 complete instructions with {rows} rows; {archive.path} has {len(spans)} "
        f"({states}). Finish the extraction, or run the failed instructions again"
    )
