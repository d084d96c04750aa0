"""Select the rows that count: by position, then origin, then special tokens, then a random draw.

A chat template or the tokenizer writes the same tokens in every prompt. In short instructions these are most of the
tokens, so most active neurons are common to all instructions. `counted_tokens="content"` leaves them out by
`token/origin`; response tokens still count. The first token (BOS) often has atypical activations.
`special_tokens="leave_out"` leaves out the tokenizer's special ids, or ids from the caller. Other words of a chat
template are ordinary tokens and count.

p of equations 6, 8 and 11 has only T + 1 possible values. Short instructions thus have more ties and larger sets, and
instructions of similar length look similar. A draw of m tokens per instruction, without replacement, gives all of them
m + 1 possible values. The draw depends only on seed, id and T. Base and tuned model therefore use the same tokens, and
a smaller draw is a subset of a larger one.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.archive.blocks import read_column
from sparcom_analysis.archive.rows import RowSpans, row_spans
from sparcom_analysis.options import Options
from sparcom_data.archive import Archive
from sparcom_data.describe import describe_states
from sparcom_data.errors import DamagedArchiveError, IncompleteArchiveError, InvalidInputError, UnsupportedArchiveError
from sparcom_data.schema import TOKEN_ORIGIN, Origin, State

MIN_DRAWN_TOKENS = 8  # with fewer, p has too few possible values to rank neurons


@dataclass(frozen=True, slots=True)
class TokenDraw:
    """Number of tokens to draw per instruction.

    Attributes:
        tokens: m, at least 1; None: T of the shortest instruction with at least 8.
        seed: integer, at least 0.
    """

    tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        Options(equal_length_tokens=self.tokens, seed=self.seed)  # raises InvalidInputError


def counted_rows(archive: Archive, options: Options, draw: TokenDraw | None = None, least: int = 1) -> RowSpans:
    """Return the rows of every complete instruction, with a mask of those that count. Errors are those of `find_isns`.

    Args:
        options: `positions`, `counted_tokens`, `special_tokens`, `special_token_ids`.
        draw: number of tokens to draw per instruction.
        least: minimum number of instructions.
    """
    spans = _kept(archive, row_spans(archive, options.positions), options)
    if draw is not None:
        spans = draw_tokens(archive, spans, draw)
    check_enough(archive, spans, least)
    return spans


def instruction_rows(archive: Archive, instruction: str | int, options: Options) -> RowSpans:
    """Return the rows that count of one complete instruction, given its id or index; it must have at least one."""
    index = instruction_index(archive, instruction)
    spans = row_spans(archive, options.positions)
    spans = spans.only(spans.instruction == index)
    if len(spans):
        spans = _kept(archive, spans, options)
    if not len(spans):
        state = State(int(archive.instructions.state[index])).name.lower()
        raise IncompleteArchiveError(
            f"frequencies need a complete instruction with {spans.positions} tokens that count; "
            f"{archive.instructions.id[index]!r} of {archive.path} is {state} and has none"
        )
    return spans


def instruction_index(archive: Archive, instruction: str | int) -> int:
    """Return the index of an instruction in `archive.instructions`, given its id or index."""
    ids = archive.instructions.id
    if isinstance(instruction, str):
        if instruction in ids:
            return ids.index(instruction)
        raise InvalidInputError(f"{archive.path} has no instruction {instruction!r}; ids look like {ids[:3]}")
    index = operator.index(instruction)
    if not 0 <= index < len(ids):
        raise InvalidInputError(f"the index of an instruction must be 0 to {len(ids) - 1}; it is {index}")
    return index


def check_enough(archive: Archive, spans: RowSpans, least: int = 2) -> None:
    """Raise IncompleteArchiveError if there are fewer than `least` instructions."""
    if len(spans) >= least:
        return
    states = ", ".join(f"{count} {name}" for name, count in describe_states(archive.instructions.state).items())
    found, remedy = f"{len(spans)} ({states})", "Finish the extraction, or run the failed instructions again"
    kind, facts = f"{spans.positions} tokens", spans.token_facts
    if facts.special_tokens == "leave_out":
        kind = f"{kind} that are not special"
    if facts.counted_tokens == "content":
        kind = f"content {kind}"
        found += f"; {facts.unknown_origin} have tokens of unknown origin"
    if (m := facts.drawn) is not None:
        kind = f"at least {m} {kind}"
        found, remedy = f"{found}; {facts.too_short} have fewer", "Draw fewer tokens"
    raise IncompleteArchiveError(
        f"an analysis needs at least {least} complete instructions with {kind}; {archive.path} has {found}. {remedy}"
    )


def special_ids(archive: Archive, given: Sequence[int] | None = None) -> list[int]:
    """Return the special token ids, ascending: `given`, or those that the archive lists."""
    _require_masks(archive, "leaving special tokens out", "Count special tokens too")
    if given is not None:
        return sorted({int(index) for index in given})
    if (prompts := archive.attributes.prompts) is None:
        raise UnsupportedArchiveError(
            f"leaving special tokens out needs their ids; {archive.path} does not list them (an older release wrote "
            "it, or its tokenizer has no list). Pass --special-token-id (special_token_ids), count special tokens, or "
            "extract again"
        )
    return list(prompts.special_token_ids)


def _require_masks(archive: Archive, purpose: str, remedy: str) -> None:
    if archive.granularity == "count":
        raise UnsupportedArchiveError(
            f"{purpose} needs one mask per token; {archive.path} holds one count per instruction. {remedy}, or "
            "extract again with granularity='token'"
        )


def _kept(archive: Archive, spans: RowSpans, options: Options) -> RowSpans:
    if options.counted_tokens == "content":
        spans = _content_only(archive, spans)
    if options.special_tokens == "leave_out":
        spans = _without_special(archive, spans, options.special_token_ids)
    return spans


def _content_only(archive: Archive, spans: RowSpans) -> RowSpans:
    """Leave out template rows and instructions of unknown origin; `spans.kept` must be None."""
    _require_masks(archive, "counting only content (--tokens content)", "Use --tokens all")
    if not archive.knows_origins:
        raise UnsupportedArchiveError(
            "counting only content (--tokens content) needs the origin of each token; the archive "
            f"{archive.path} lacks {TOKEN_ORIGIN.name}. Use --tokens all, or extract again with this release"
        )
    origin = read_column(archive, spans, TOKEN_ORIGIN.name)
    known = ~np.logical_or.reduceat(origin == Origin.UNKNOWN, spans.first)
    origin = origin[np.repeat(known, spans.lengths)]
    kept = (origin == Origin.CONTENT) | (origin == Origin.RESPONSE)
    template, unsure = int((~kept).sum()), int((~known).sum())
    facts = replace(spans.token_facts, counted_tokens="content", template_rows=template, unknown_origin=unsure)
    return spans.only(known).counting(kept, facts)


def _without_special(archive: Archive, spans: RowSpans, given: Sequence[int] | None) -> RowSpans:
    """Leave out rows of special tokens, in addition to rows that do not count already."""
    wanted = special_ids(archive, given)
    ids = read_column(archive, spans, "token/id")
    if (unknown := np.flatnonzero(ids < 0)).size:
        k = int(np.searchsorted(spans.first, unknown[0], side="right")) - 1
        raise DamagedArchiveError(
            "every row of a complete instruction must hold a token id; row "
            f"{spans.start[k] + unknown[0] - spans.first[k]} of instruction "
            f"{archive.instructions.id[int(spans.instruction[k])]!r} in {archive.path} holds {ids[unknown[0]]}. "
            "Run `sparcom verify`, then extract the archive again"
        )
    special = np.isin(ids, wanted)
    if spans.kept is not None:
        special &= spans.kept
    rows = int(special.sum())
    facts = replace(spans.token_facts, special_tokens="leave_out", special_ids=tuple(wanted), special_rows=rows)
    return spans.counting(~special, facts)


def draw_tokens(archive: Archive, spans: RowSpans, draw: TokenDraw) -> RowSpans:
    """Count only m randomly drawn rows per instruction; leave out instructions with fewer rows."""
    _require_masks(archive, "drawing tokens", "Leave equal lengths out")
    tokens = spans.tokens
    enough = tokens[tokens >= MIN_DRAWN_TOKENS]
    if draw.tokens is None and not len(enough):
        raise IncompleteArchiveError(
            f"equal lengths need an instruction with at least {MIN_DRAWN_TOKENS} tokens; the longest of {archive.path} "
            f"has {int(tokens.max(initial=0))}. Pass equal_length_tokens (--equal-length-tokens)"
        )
    m = int(enough.min()) if draw.tokens is None else draw.tokens
    long_enough = tokens >= m
    spans = spans.only(long_enough)
    kept = np.zeros(int(spans.lengths.sum()), dtype=np.bool_)
    for k, (first, length) in enumerate(zip(spans.first.tolist(), spans.lengths.tolist(), strict=True)):
        counting = np.arange(length) if spans.kept is None else np.flatnonzero(spans.kept[first : first + length])
        name = archive.instructions.id[int(spans.instruction[k])]
        kept[first + counting[drawn_places(name, len(counting), m, draw.seed)]] = True
    facts = replace(spans.token_facts, drawn=m, seed=draw.seed, too_short=int((~long_enough).sum()))
    return replace(spans, kept=kept, token_facts=facts)


def drawn_places(name: str, tokens: int, m: int, seed: int = 0) -> NDArray[np.intp]:
    """Draw m of the tokens 0 to `tokens` - 1 for the instruction with id `name`: intp (m,), ascending.

    Each token gets a random 64-bit number from PCG64, seeded with the seed and the SHA-256 of the id. The m smallest
    numbers are drawn. NumPy guarantees stable raw PCG64 output, unlike the output of `Generator.choice`.
    """
    words = np.frombuffer(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest(), dtype="<u4")
    numbers = np.random.PCG64(np.random.SeedSequence([seed, *words.tolist()])).random_raw(tokens)
    return np.sort(np.argsort(numbers, kind="stable")[:m])
