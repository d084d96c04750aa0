"""Leaves out tokens of templates and special tokens.

Tokens that a chat template or the tokenizer wrote are the same in every prompt. Of short instructions they are most of
the tokens, and so most active neurons are common to all. `content_alone` leaves them out by `token/origin`; response
tokens stay in.

The activations of a first token (BOS) are unlike those of any other. `without_special` leaves out the ids that the
tokenizer marks as special, or others that the caller gives. Words that a chat template writes between its markers are
ordinary tokens and count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.archive.blocks import plan_reads
from sparcom_analysis.archive.rows import RowSpans
from sparcom_data.archive import Archive
from sparcom_data.errors import DamagedArchiveError, UnsupportedArchiveError
from sparcom_data.schema import TOKEN_ORIGIN, Origin

READ_ROWS = 1 << 20  # rows per read, 4 MiB of token ids


def content_alone(archive: Archive, spans: RowSpans) -> RowSpans:
    """Return the spans without rows that the template or the tokenizer wrote.

    An instruction with a row of unknown origin is left out, and counted in `token_facts.unknown_origin`.

    Args:
        spans: in which all rows still count.

    Raises:
        UnsupportedArchiveError: the archive holds counts, or does not record where tokens come from.
    """
    if archive.granularity == "count":
        raise UnsupportedArchiveError(
            f"counting content alone (--tokens content) needs masks of single tokens; {archive.path} holds counts over "
            "all tokens. Use --tokens all, or extract again with granularity 'token'"
        )
    if not archive.knows_origins:
        raise UnsupportedArchiveError(
            "counting content alone (--tokens content) needs the origin of each token; the archive "
            f"{archive.path} lacks {TOKEN_ORIGIN.name}. Use --tokens all, or extract again with this release"
        )
    origin = read_column(archive, spans, TOKEN_ORIGIN.name)
    unknown = np.concatenate([np.zeros(1, np.int64), (origin == Origin.UNKNOWN).cumsum(dtype=np.int64)])
    known = unknown[spans.first + spans.lengths] == unknown[spans.first]
    origin = origin[np.repeat(known, spans.lengths)]
    kept = (origin == Origin.CONTENT) | (origin == Origin.RESPONSE)
    template, unsure = int((~kept).sum()), int((~known).sum())
    facts = replace(spans.token_facts, counted_tokens="content", template_rows=template, unknown_origin=unsure)
    return spans.only(known).counting(kept, facts)


def without_special(archive: Archive, spans: RowSpans, given: Sequence[int] | None = None) -> RowSpans:
    """Return the spans without rows of special tokens; rows that do not count already stay out.

    Args:
        given: ids of special tokens; None: those that the archive lists.

    Raises:
        UnsupportedArchiveError: the archive holds counts, or does not list its special tokens.
        DamagedArchiveError: a row of a complete instruction has no token id.
    """
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


def special_ids(archive: Archive, given: Sequence[int] | None = None) -> list[int]:
    """Return the ids of special tokens, ascending: those given, otherwise those that the archive lists.

    Raises:
        UnsupportedArchiveError: the archive holds counts, or lists none and none are given.
    """
    if archive.granularity == "count":
        raise UnsupportedArchiveError(
            f"leaving special tokens out needs masks of single tokens; {archive.path} holds counts over all tokens. "
            "Count special tokens too, or extract again with granularity='token'"
        )
    if given is not None:
        return sorted({int(index) for index in given})
    if (prompts := archive.attributes.prompts) is None:
        raise UnsupportedArchiveError(
            f"leaving special tokens out needs their ids; {archive.path} does not list them (an older release wrote "
            "it, or its tokenizer does not tell). Give --special-token-id (special_token_ids), count them, or extract "
            "again"
        )
    return list(prompts.special_token_ids)


def read_column(archive: Archive, spans: RowSpans, name: str) -> NDArray[Any]:
    """Return the rows of the spans in a column of the token axis, such as `token/id`; each chunk is read once.

    Returns:
        (row,), the rows of one instruction after the other, as in `RowSpans.kept`.
    """
    array = archive.array(name)
    column = np.empty(int(spans.lengths.sum()), dtype=array.dtype)
    order = np.argsort(spans.start, kind="stable")
    starts, stops, first = spans.start[order], spans.stop[order], spans.first
    for begin, end in plan_reads(spans.start, spans.stop, int(array.chunks[0]), READ_ROWS):
        values = archive.read_rows(name, begin, end)
        touched = slice(int(np.searchsorted(stops, begin, side="right")), int(np.searchsorted(starts, end)))
        for k in order[touched].tolist():
            start, stop = max(int(spans.start[k]), begin), min(int(spans.stop[k]), end)
            offset = int(first[k] - spans.start[k])
            column[offset + start : offset + stop] = values[start - begin : stop - begin]
    return column
