"""What length explains: the similarities of equations 10 and 14 with T matched, beside the plain ones.

    plain      the measures as they are, over the instructions that the draw did not leave out: so that what differs
               comes from the tokens, not from who is compared
    matched    the same measures where m drawn tokens stand for each instruction (`matched_tokens`)

The draw is one sample: another seed gives somewhat other numbers. Intervals say what other instructions would give, not
what other tokens of these would; plain and matched are resampled alike, so that their difference has one too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.measures.correlation import correlation_pairs, expert_correlation
from sparcom_analysis.measures.experts import InstructionExperts, instruction_experts
from sparcom_analysis.measures.frequencies import Progress
from sparcom_analysis.measures.selection import InstructionNeurons, instruction_specific_neurons
from sparcom_analysis.measures.similarity import category_similarity, similarity_pairs
from sparcom_analysis.reading.blocks import DEFAULT_BLOCK_BYTES
from sparcom_analysis.reading.categories import category_codes, category_labels
from sparcom_analysis.reading.matched_tokens import TokenDraw
from sparcom_analysis.statistics.bootstrap import Interval, PairIntervals, Resamples, difference_intervals
from sparcom_analysis.statistics.matrix_pair import MatrixPair, MatrixPairIntervals
from sparcom_analysis.statistics.pair_matrix import PairMatrix
from sparcom_analysis.statistics.ranks import rank_correlation
from sparcom_data.archive import Archive
from sparcom_data.errors import InvalidInputError

Measured = InstructionNeurons | InstructionExperts
Draws = Callable[[Sequence[str]], Resamples]
_Ends = tuple[PairIntervals, PairIntervals, PairIntervals]  # plain, matched, and their difference


@dataclass(frozen=True, slots=True)
class MatchedNeurons:
    """Equation 10 with and without T matched, for the neurons of one component.

    plain, matched: the sets, of all instructions used and of those with enough tokens. similarity: pairs of an
    instruction with itself counted; without_self: left out.
    """

    plain: InstructionNeurons
    matched: InstructionNeurons
    similarity: MatrixPair
    without_self: MatrixPair

    @property
    def places(self) -> NDArray[np.bool_]:
        """bool (instruction,): which instructions of the plain measure are in both."""
        return _in_both(self.plain, self.matched)

    @property
    def size_by_length(self) -> tuple[float | None, float | None]:
        """Spearman's rank correlation of T, before the draw, and the size of the set: plain, and matched."""
        lengths = self.plain.tokens[self.places]
        plain, matched = self.plain.sizes[self.places], self.matched.sizes
        return rank_correlation(lengths, plain), rank_correlation(lengths, matched)


@dataclass(frozen=True, slots=True)
class MatchedExperts:
    """Equation 14 with and without T matched.

    correlation: pairs of an instruction with itself counted; without_self: left out.
    """

    correlation: MatrixPair
    without_self: MatrixPair


@dataclass(frozen=True, slots=True)
class LengthControl:
    """What length explains. neurons: an entry a component; experts: None for a dense model."""

    neurons: Sequence[MatchedNeurons]
    experts: MatchedExperts | None = None


def length_control(
    archive: Archive,
    components: Sequence[InstructionNeurons],
    experts: InstructionExperts | None = None,
    draw: TokenDraw | None = None,
    *,
    draws: Draws | None = None,
    passes: Callable[[], Progress | None] = lambda: None,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    scratch: Path | None = None,
) -> LengthControl:
    """Measure again with T matched, and put it beside the plain measures; one pass for each of them.

    Args:
        archive: of masks, what the plain measures were made from.
        components, experts: the plain measures; rows, rule and choice of tokens are taken from them.
        draw: how many tokens of each instruction; without it as many as the shortest of at least 8 has.
        draws: for intervals: called with the categories of the instructions that are compared, as `draw_resamples` is.
        passes: gives the progress of each pass as it begins.
        block_bytes, scratch: as for `instruction_specific_neurons`.

    Raises:
        UnsupportedArchiveError: the archive holds counts, or intervals are wanted of too many instructions.
        IncompleteArchiveError: fewer than two instructions have enough tokens.
    """
    chosen = draw or TokenDraw()
    found = []
    for plain in components:
        matched = instruction_specific_neurons(
            archive,
            epsilon=plain.selection.epsilon,
            threshold=plain.selection.threshold,
            rows=plain.rows,
            component=plain.population.component,
            progress=passes(),
            block_bytes=block_bytes,
            scratch=scratch,
            special_tokens=plain.token_facts.special_tokens,
            special_token_ids=plain.token_facts.special_ids or None,
            counted_tokens=plain.token_facts.counted_tokens,
            tokens=chosen,
        )
        found.append(match_neurons(plain, matched, draws))
    if experts is None:
        return LengthControl(found)
    matched_experts = instruction_experts(
        archive,
        rows=experts.rows,
        progress=passes(),
        block_bytes=block_bytes,
        special_tokens=experts.token_facts.special_tokens,
        special_token_ids=experts.token_facts.special_ids or None,
        counted_tokens=experts.token_facts.counted_tokens,
        tokens=chosen,
    )
    return LengthControl(found, match_experts(experts, matched_experts, draws))


def match_neurons(plain: InstructionNeurons, matched: InstructionNeurons, draws: Draws | None = None) -> MatchedNeurons:
    """Equation 10 of two selections from one archive that differ in the draw alone, with intervals if there are draws.

    Raises:
        InvalidInputError: they differ in something else.
    """
    _check_pair(plain, matched)
    if (plain.population, plain.selection) != (matched.population, matched.selection):
        raise InvalidInputError(
            "plain and matched sets must be of one component and one rule; they are of "
            f"{plain.population.component} by {plain.selection} and {matched.population.component} by "
            f"{matched.selection}. Select both alike"
        )
    names = _drawn_categories(plain, matched)
    pairs = None if draws is None else _Pairs(similarity_pairs(plain), similarity_pairs(matched))
    alone = category_similarity(replace(plain, categories=names), None if pairs is None else pairs.named(names))
    drawn = category_similarity(matched, None if pairs is None else pairs.matched)
    ends = None if pairs is None or draws is None else pairs.intervals(_in_both(plain, matched), draws)
    return MatchedNeurons(
        plain,
        matched,
        _pair(plain, matched, names, alone.matrix, drawn.matrix, ends, "with_self"),
        _pair(plain, matched, names, alone.without_self, drawn.without_self, ends, "without_self"),
    )


def match_experts(plain: InstructionExperts, matched: InstructionExperts, draws: Draws | None = None) -> MatchedExperts:
    """Equation 14 of expert frequencies of one archive that differ in the draw alone; as `match_neurons`.

    Raises:
        InvalidInputError: they differ in something else.
    """
    _check_pair(plain, matched)
    names = _drawn_categories(plain, matched)
    pairs = None if draws is None else _Pairs(correlation_pairs(plain), correlation_pairs(matched))
    alone = expert_correlation(replace(plain, categories=names), None if pairs is None else pairs.named(names))
    drawn = expert_correlation(matched, None if pairs is None else pairs.matched)
    ends = None if pairs is None or draws is None else pairs.intervals(_in_both(plain, matched), draws)
    return MatchedExperts(
        _pair(plain, matched, names, alone.matrix, drawn.matrix, ends, "with_self"),
        _pair(plain, matched, names, alone.without_self, drawn.without_self, ends, "without_self"),
    )


def left_out_by_category(plain: Measured, matched: Measured) -> dict[str, int]:
    """Of each category, in order of first appearance: instructions with too few tokens for the draw."""
    labels, both = category_labels(plain.categories), _in_both(plain, matched)
    short = np.bincount(category_codes(plain.categories)[~both], minlength=len(labels))
    return dict(zip(labels, short.tolist(), strict=True))


def _check_pair(plain: Measured, matched: Measured) -> None:
    facts = matched.token_facts
    alike = replace(facts, drawn=None, seed=0, too_short=0) == plain.token_facts and plain.rows == matched.rows
    known = bool(np.isin(matched.instruction, plain.instruction).all())
    if facts.drawn is None or not alike or not known or len(matched) + facts.too_short != len(plain):
        raise InvalidInputError(
            "what is compared must be of one archive with the same rows and special tokens, first without a draw, "
            f"then with one; it is {plain.token_facts} of {len(plain)} instructions and {facts} of {len(matched)}. "
            "Make both with the same options but `tokens`"
        )


def _in_both(plain: Measured, matched: Measured) -> NDArray[np.bool_]:
    both: NDArray[np.bool_] = np.isin(plain.instruction, matched.instruction)
    return both


def _drawn_categories(plain: Measured, matched: Measured) -> list[str]:
    """The categories of the plain measure, but that of instructions without a draw is one that no instruction has: so
    their pairs are in means of a row and column of their own, which `_Aligned` drops."""
    outside = "(not drawn)"
    while outside in plain.categories:
        outside = f"({outside})"
    both = _in_both(plain, matched).tolist()
    return [name if drawn else outside for name, drawn in zip(plain.categories, both, strict=True)]


@dataclass(frozen=True, slots=True)
class _Pairs:
    """The values of all pairs of the plain measure, and of the one with T matched."""

    plain: PairMatrix
    matched: PairMatrix

    def named(self, names: Sequence[str]) -> PairMatrix:
        """The plain values with other names of categories."""
        return PairMatrix(names, self.plain.values)

    def intervals(self, both: NDArray[np.bool_], draws: Draws) -> _Ends:
        """Intervals over the instructions in both; both: bool (instruction,) of the plain measure."""
        same = PairMatrix(self.matched.categories, self.plain.values[np.ix_(both, both)])
        return difference_intervals(same, self.matched, draws(self.matched.categories))


def _pair(
    plain: Measured,
    matched: Measured,
    names: Sequence[str],
    alone: NDArray[np.float64],
    drawn: NDArray[np.float64],
    ends: _Ends | None,
    version: Literal["with_self", "without_self"],
) -> MatrixPair:
    """One version of a measure under all labels: `alone` by the categories `names`, `drawn` by those of `matched`."""
    own, its = _Aligned(plain, names), _Aligned(plain, matched.categories)
    intervals = None
    if ends is not None:
        found: list[Interval] = [getattr(one, version) for one in ends]
        intervals = MatrixPairIntervals(*(Interval(its.matrix(one.low), its.matrix(one.high)) for one in found))
    return MatrixPair(own.labels, own.matrix(alone), its.matrix(drawn), intervals)


class _Aligned:
    """Puts matrices over some categories into the order and under the labels of all categories of a measure."""

    def __init__(self, measured: Measured, categories: Sequence[str]) -> None:
        """
        Args:
            measured: whose labels.
            categories: of each instruction, as the matrices were computed.
        """
        place = {name: at for at, name in enumerate(dict.fromkeys(measured.categories))}
        self.labels = category_labels(measured.categories)
        distinct = list(dict.fromkeys(categories))
        self._from = [at for at, name in enumerate(distinct) if name in place]
        self._to = [place[name] for name in distinct if name in place]

    def matrix(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """float64 (c, c): NaN where `values` has no such category; those that are none are dropped."""
        aligned = np.full((len(self.labels), len(self.labels)), np.nan)
        aligned[np.ix_(self._to, self._to)] = values[np.ix_(self._from, self._from)]
        return aligned
