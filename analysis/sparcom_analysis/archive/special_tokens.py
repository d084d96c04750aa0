"""Leaves special tokens (BOS, the marks of a chat template) out of T and of every count.

A first token's activations are unlike any other's, and the marks of a template are the same in every prompt. Which ids
are special the archive knows from the tokenizer (`prompts.special_token_ids`), or the caller says. Words that a chat
template writes between its marks are ordinary tokens and count. Knows token ids; reads no mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.archive.rows import RowSpans
from sparcom_analysis.archive.token_columns import judge_rows
from sparcom_analysis.options import SpecialTokens
from sparcom_data.archive import Archive
from sparcom_data.errors import DamagedArchiveError, InvalidInputError, UnsupportedArchiveError

LARGEST_ID = 2**31 - 1


def without_special(
    archive: Archive, spans: RowSpans, special_tokens: SpecialTokens, special_token_ids: Sequence[int] | None = None
) -> RowSpans:
    """The spans as they are (`count`), or without rows of special tokens (`leave_out`).

    Args:
        archive: of masks, where rows are to be left out.
        spans: rows that do not count already stay out.
        special_token_ids: which ids are special, in place of those that the archive knows.

    Raises:
        InvalidInputError: no such choice, or ids that are none.
        UnsupportedArchiveError: the archive holds counts, or does not know which tokens are special.
        DamagedArchiveError: a row of a complete instruction has no token id.
    """
    if special_tokens not in get_args(SpecialTokens):
        raise InvalidInputError(
            f"special_tokens is one of {', '.join(get_args(SpecialTokens))}; {special_tokens!r} is none"
        )
    if special_tokens == "count":
        if special_token_ids is not None:
            raise InvalidInputError(
                "--special-token-id (special_token_ids) goes with --special-tokens leave-out "
                "(special_tokens='leave_out'); it is 'count'. Leave them out, or give no ids"
            )
        return spans
    wanted = special_ids(archive, special_token_ids)
    special = _special_rows(archive, spans, np.array(wanted, dtype=np.int64))
    if spans.kept is not None:
        special &= spans.kept
    facts = replace(
        spans.facts, special_tokens=special_tokens, special_ids=tuple(wanted), special_rows=int(special.sum())
    )
    return spans.counting(~special, facts)


def special_ids(archive: Archive, given: Sequence[int] | None = None) -> list[int]:
    """The ids that count as special, ascending: those given, otherwise those that the archive knows.

    Raises:
        InvalidInputError: what was given are no token ids.
        UnsupportedArchiveError: the archive holds counts, or knows none where none are given.
    """
    if archive.granularity == "count":
        raise UnsupportedArchiveError(
            f"leaving special tokens out needs masks of single tokens; {archive.path} holds counts over all tokens, "
            "which cannot be parted. Count special tokens too, or extract again with granularity='token'"
        )
    if given is not None:
        if not given or min(given) < 0 or max(given) > LARGEST_ID:
            raise InvalidInputError(
                f"--special-token-id (special_token_ids) must be one or more token ids, 0 to {LARGEST_ID}; they "
                f"are {list(given)}"
            )
        return sorted({int(index) for index in given})
    known = archive.attributes.prompts
    if known is None:
        raise UnsupportedArchiveError(
            f"leaving special tokens out needs to know which they are; {archive.path} does not say (it was extracted "
            "before archives did, or its tokenizer does not tell). Give --special-token-id "
            "(special_token_ids), count them, or extract again"
        )
    return list(known.special_token_ids)


def _special_rows(archive: Archive, spans: RowSpans, wanted: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool (row,), the rows of one instruction after the other: whether the token is one of those."""

    def judge(index: int, start: int, ids: NDArray[np.int32]) -> NDArray[np.uint8]:
        _check_ids(archive, index, start, ids)
        return np.isin(ids, wanted).view(np.uint8)

    return judge_rows(archive, spans, "token/id", judge).view(np.bool_)


def _check_ids(archive: Archive, index: int, start: int, ids: NDArray[np.int32]) -> None:
    if (unknown := np.flatnonzero(ids < 0)).size:
        raise DamagedArchiveError(
            f"every row of a complete instruction must hold a token id; row {start + int(unknown[0])} of instruction "
            f"{archive.instructions.id[index]!r} in {archive.path} holds {int(ids[unknown[0]])}. "
            "Run `sparcom verify`, then extract the archive again"
        )
