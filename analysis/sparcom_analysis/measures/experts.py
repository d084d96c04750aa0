"""How often the routers choose each expert: equations 11 and 12, and the most chosen ones of table 6.

f_ej(I) = c_ej(I) / T, where c is the number of tokens of instruction I at which expert e of layer j is among the chosen
ones and T are all its tokens; c is kept as a whole number. Of a category: the mean of f over its instructions, each
counting the same whatever its length. Over a layer f adds up to the experts that a token chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.measures.frequencies import Progress, span_of
from sparcom_analysis.measures.selection import check_enough
from sparcom_analysis.reading.blocks import DEFAULT_BLOCK_BYTES
from sparcom_analysis.reading.categories import category_codes, category_labels
from sparcom_analysis.reading.matched_tokens import TokenDraw
from sparcom_analysis.reading.routes import iterate_choice_counts, require_router
from sparcom_analysis.reading.rows import ALL_TOKENS, CountedTokens, Rows, SpecialTokens, TokenFacts, choose_rows
from sparcom_analysis.reading.token_rows import counted_rows
from sparcom_data.archive import Archive

TOP = 5
TIE_DIGITS = 12  # means that agree to so many digits are ties: sums of floats differ in the sixteenth


@dataclass(frozen=True, slots=True)
class InstructionExperts:
    """Which experts n instructions use, in submission order.

    rows: whose tokens were counted. instruction: int64 (n,), index into the instruction table. ids, categories: n
    strings. tokens: int64 (n,), T. counts: uint32 (n, layer, expert), T · f. layer_ids: the model's number of each
    layer. choices: experts that a token chooses in a layer. without_rows: complete instructions without a row of this
    kind. token_facts: which tokens of these rows did not count.
    """

    rows: Rows
    instruction: NDArray[np.int64]
    ids: Sequence[str]
    categories: Sequence[str]
    tokens: NDArray[np.int64]
    counts: NDArray[np.uint32]
    layer_ids: Sequence[int]
    choices: int
    without_rows: int
    token_facts: TokenFacts = ALL_TOKENS

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def experts(self) -> int:
        """Experts of a layer."""
        return int(self.counts.shape[2])

    def frequencies(self, k: int) -> NDArray[np.float64]:
        """f of equation 11 for instruction k: float64 (layer, expert), 0 to 1."""
        frequencies: NDArray[np.float64] = self.counts[k] / np.float64(self.tokens[k])
        return frequencies


@dataclass(frozen=True, slots=True)
class CategoryExperts:
    """Mean expert frequencies, equation 12.

    categories: c names, in order of first appearance. layer_ids: the model's number of each layer.
    mean: float64 (c, layer, expert), over the instructions of the category. overall: float64 (layer, expert), over all.
    """

    categories: Sequence[str]
    layer_ids: Sequence[int]
    mean: NDArray[np.float64]
    overall: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TopExperts:
    """The most chosen experts of each layer, table 6: the most frequent first, ties by lower id.

    categories: c names, in order of first appearance. layer_ids: the model's number of each layer.
    expert: intp (c, layer, rank); frequency: float64, likewise. overall_expert, overall_frequency: (layer, rank).
    """

    categories: Sequence[str]
    layer_ids: Sequence[int]
    expert: NDArray[np.intp]
    frequency: NDArray[np.float64]
    overall_expert: NDArray[np.intp]
    overall_frequency: NDArray[np.float64]


def expert_frequencies(
    archive: Archive,
    index: int,
    rows: Rows | None = None,
    *,
    special_tokens: SpecialTokens = "count",
    special_token_ids: Sequence[int] | None = None,
    counted_tokens: CountedTokens = "all",
) -> NDArray[np.float64]:
    """f of equation 11 of one instruction: float64 (layer, expert). Arguments as for `activation_counts`."""
    moe = require_router(archive)
    spans = span_of(archive, index, rows, special_tokens, special_token_ids, counted_tokens)
    _, counts = next(iterate_choice_counts(archive, spans, moe))
    return counts / np.float64(spans.tokens[0])


def instruction_experts(
    archive: Archive,
    *,
    rows: Rows | None = None,
    progress: Progress | None = None,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    least: int = 2,
    special_tokens: SpecialTokens = "count",
    special_token_ids: Sequence[int] | None = None,
    counted_tokens: CountedTokens = "all",
    tokens: TokenDraw | None = None,
) -> InstructionExperts:
    """How often each complete instruction uses each expert, in one pass over the router's choices.

    Args:
        rows, progress, block_bytes, special_tokens, special_token_ids, counted_tokens, tokens: as for
            `instruction_specific_neurons`.
        least: instructions that there must be, 1 or 2.

    Raises:
        UnsupportedArchiveError: the archive holds no router choices, or cannot tell which tokens to leave out.
        IncompleteArchiveError: too few complete instructions, or not the rows that were asked for.
        DamagedArchiveError: a row of a complete instruction lacks its choices.
    """
    moe = require_router(archive)
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
    counts = np.zeros((len(spans), len(moe.layer_ids), moe.experts), dtype=np.uint32)
    for k, found in iterate_choice_counts(archive, spans, moe, progress=progress, block_bytes=block_bytes):
        counts[k] = found
    table = archive.instructions
    return InstructionExperts(
        rows=chosen,
        instruction=spans.instruction,
        ids=[table.id[i] for i in spans.instruction],
        categories=[table.category[i] for i in spans.instruction],
        tokens=spans.tokens,
        counts=counts,
        layer_ids=list(moe.layer_ids),
        choices=moe.experts_per_token,
        without_rows=spans.without_rows,
        token_facts=spans.facts,
    )


def category_experts(experts: InstructionExperts) -> CategoryExperts:
    """Mean frequency of each expert over the instructions of each category, and over all."""
    labels, codes = category_labels(experts.categories), category_codes(experts.categories)
    sums = np.zeros((len(labels), *experts.counts.shape[1:]))
    for k, code in enumerate(codes.tolist()):
        sums[code] += experts.frequencies(k)
    members = np.bincount(codes, minlength=len(labels))[:, None, None]
    return CategoryExperts(labels, list(experts.layer_ids), sums / members, sums.sum(axis=0) / len(experts))


def top_experts(means: CategoryExperts, count: int = TOP) -> TopExperts:
    """The `count` most chosen experts of each layer, or all where a layer has fewer."""
    expert, frequency = _top(means.mean, count)
    overall_expert, overall_frequency = _top(means.overall, count)
    return TopExperts(means.categories, means.layer_ids, expert, frequency, overall_expert, overall_frequency)


def top_shares(experts: InstructionExperts, top: TopExperts) -> NDArray[np.float64]:
    """Of each instruction's choices, the share that goes to the top experts of its category: float64 (n, layer).

    Their mean over a category is the sum of `top.frequency` over ranks, divided by the choices of a token.
    """
    chosen = top.expert[category_codes(experts.categories)]
    taken = np.take_along_axis(experts.counts, chosen, axis=2).sum(axis=2, dtype=np.int64)
    shares: NDArray[np.float64] = taken / (experts.tokens[:, None] * np.float64(experts.choices))
    return shares


def _top(frequency: NDArray[np.float64], count: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    order = np.argsort(-frequency.round(TIE_DIGITS), axis=-1, kind="stable")[..., :count]
    return order, np.take_along_axis(frequency, order, axis=-1)
