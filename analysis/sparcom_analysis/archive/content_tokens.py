"""Leaves the tokens that a chat template or the tokenizer wrote out of T and of every count.

They are the same in every prompt, so with short instructions most tokens, and most active neurons, are common to all.
`token/origin` of the archive says which they are. Tokens of a response stay in.
"""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np

from sparcom_analysis.archive.rows import RowSpans
from sparcom_analysis.archive.token_columns import judge_rows
from sparcom_analysis.options import CountedTokens
from sparcom_data.archive import Archive
from sparcom_data.errors import InvalidInputError, UnsupportedArchiveError
from sparcom_data.schema import TOKEN_ORIGIN, Origin


def content_alone(archive: Archive, spans: RowSpans, counted_tokens: CountedTokens) -> RowSpans:
    """The spans as they are (`all`), or without rows that the template or the tokenizer wrote (`content`).

    An instruction with a row of unknown origin is left out, and counted in `facts.unknown_origin`.

    Args:
        spans: of which no row was left out yet.

    Raises:
        InvalidInputError: no such choice.
        UnsupportedArchiveError: the archive holds counts, or does not know where tokens come from.
    """
    if counted_tokens not in get_args(CountedTokens):
        raise InvalidInputError(
            f"counted_tokens must be one of {', '.join(get_args(CountedTokens))}; it is {counted_tokens!r}"
        )
    if counted_tokens == "all":
        return spans
    _require_origins(archive)
    origin = judge_rows(archive, spans, TOKEN_ORIGIN.name, lambda _index, _start, values: values)
    unknown = np.concatenate([np.zeros(1, np.int64), (origin == Origin.UNKNOWN).cumsum(dtype=np.int64)])
    known = unknown[spans.first + spans.lengths] == unknown[spans.first]
    origin = origin[np.repeat(known, spans.lengths)]
    kept = (origin == Origin.CONTENT) | (origin == Origin.RESPONSE)
    facts = replace(
        spans.facts,
        counted_tokens=counted_tokens,
        template_rows=int((~kept).sum()),
        unknown_origin=int((~known).sum()),
    )
    return spans.only(known).counting(kept, facts)


def _require_origins(archive: Archive) -> None:
    """Refuse an archive whose tokens cannot be chosen by origin."""
    if archive.granularity == "count":
        raise UnsupportedArchiveError(
            f"counting content alone (--tokens content) needs masks of single tokens; {archive.path} holds counts over "
            "all tokens. Use --tokens all, or extract again with granularity 'token'"
        )
    if not archive.knows_origins:
        raise UnsupportedArchiveError(
            "counting content alone (--tokens content) needs to know where each token comes from; the archive "
            f"{archive.path} lacks {TOKEN_ORIGIN.name}. Use --tokens all, or extract again with this release"
        )
