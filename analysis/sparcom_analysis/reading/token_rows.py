"""Which rows of an archive count: those asked for, less what a template wrote, less special tokens, less what was not
drawn. In that order, so that m tokens are drawn of those that count."""

from __future__ import annotations

from collections.abc import Sequence

from sparcom_analysis.reading.content_tokens import content_alone
from sparcom_analysis.reading.matched_tokens import TokenDraw, draw_tokens
from sparcom_analysis.reading.rows import CountedTokens, Rows, RowSpans, SpecialTokens, row_spans
from sparcom_analysis.reading.special_tokens import without_special
from sparcom_data.archive import Archive


def counted_rows(
    archive: Archive,
    rows: Rows,
    *,
    special_tokens: SpecialTokens = "count",
    special_token_ids: Sequence[int] | None = None,
    counted_tokens: CountedTokens = "all",
    tokens: TokenDraw | None = None,
) -> RowSpans:
    """Rows of every complete instruction, and which of them count; see `row_spans`, `kept_rows`, `draw_tokens`.

    Args:
        rows: what `choose_rows` chose.
        special_tokens, special_token_ids: whether special tokens count; which they are, if the archive does not know.
        counted_tokens: whether tokens that a chat template or the tokenizer wrote count.
        tokens: count m drawn tokens of each instruction alone.
    """
    spans = kept_rows(archive, row_spans(archive, rows), special_tokens, special_token_ids, counted_tokens)
    return spans if tokens is None else draw_tokens(archive, spans, tokens)


def kept_rows(
    archive: Archive,
    spans: RowSpans,
    special_tokens: SpecialTokens,
    special_token_ids: Sequence[int] | None,
    counted_tokens: CountedTokens,
) -> RowSpans:
    """The spans without rows that do not count; see `content_alone` and `without_special`."""
    spans = content_alone(archive, spans, counted_tokens)
    return without_special(archive, spans, special_tokens, special_token_ids)
