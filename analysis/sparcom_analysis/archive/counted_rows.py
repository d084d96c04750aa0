"""Chooses the rows that count: first by position, then by origin, then without special tokens, then by a draw."""

from __future__ import annotations

import operator

from sparcom_analysis.archive.excluded_tokens import content_alone, without_special
from sparcom_analysis.archive.rows import RowSpans, row_spans
from sparcom_analysis.archive.token_draw import TokenDraw, draw_tokens
from sparcom_analysis.options import Options
from sparcom_data.archive import Archive
from sparcom_data.describe import describe_states
from sparcom_data.errors import IncompleteArchiveError, InvalidInputError
from sparcom_data.schema import State


def counted_rows(archive: Archive, options: Options, draw: TokenDraw | None = None, least: int = 1) -> RowSpans:
    """Return the rows of every complete instruction, and which of them count.

    Args:
        options: `positions`, `counted_tokens`, `special_tokens`, `special_token_ids`.
        draw: count this many drawn tokens per instruction.
        least: the fewest instructions to accept.

    Raises:
        IncompleteArchiveError: too few instructions, or positions that the archive does not hold.
        UnsupportedArchiveError: the archive holds counts, or does not record which tokens to leave out.
        DamagedArchiveError: lengths or token ids contradict each other.
    """
    spans = _kept(archive, row_spans(archive, options.positions), options)
    if draw is not None:
        spans = draw_tokens(archive, spans, draw)
    check_enough(archive, spans, least)
    return spans


def instruction_rows(archive: Archive, instruction: str | int, options: Options) -> RowSpans:
    """Return the rows of one complete instruction, given its id or its index in `archive.instructions`.

    Raises:
        InvalidInputError: there is no such instruction.
        IncompleteArchiveError: it has no rows that count.
    """
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
    """Return the index of an instruction in `archive.instructions`, given its id or the index itself.

    Raises:
        InvalidInputError: there is no such instruction.
    """
    ids = archive.instructions.id
    if isinstance(instruction, str):
        if instruction in ids:
            return ids.index(instruction)
        raise InvalidInputError(f"{archive.path} has no instruction {instruction!r}; ids look like {ids[:3]}")
    index = operator.index(instruction)
    if not 0 <= index < len(ids):
        raise InvalidInputError(f"the index of an instruction must be 0 to {len(ids) - 1}; it is {index}")
    return index


def _kept(archive: Archive, spans: RowSpans, options: Options) -> RowSpans:
    if options.counted_tokens == "content":
        spans = content_alone(archive, spans)
    if options.special_tokens == "leave_out":
        spans = without_special(archive, spans, options.special_token_ids)
    return spans


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
