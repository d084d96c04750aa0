"""Which rows of an archive count: those asked for, less special tokens, less what was not drawn. In that order, so that
m tokens are drawn of those that count."""

from __future__ import annotations

from collections.abc import Sequence

from sparcom_analysis.reading.matched_tokens import TokenDraw, draw_tokens
from sparcom_analysis.reading.rows import Rows, RowSpans, SpecialTokens, row_spans
from sparcom_analysis.reading.special_tokens import without_special
from sparcom_data.archive import Archive


def counted_rows(
    archive: Archive,
    rows: Rows,
    *,
    special_tokens: SpecialTokens = "count",
    special_token_ids: Sequence[int] | None = None,
    tokens: TokenDraw | None = None,
) -> RowSpans:
    """Rows of every complete instruction, and which of them count; see `row_spans`, `without_special`, `draw_tokens`.

    Args:
        rows: what `choose_rows` chose.
        special_tokens, special_token_ids: whether special tokens count; which they are, if the archive does not know.
        tokens: count m drawn tokens of each instruction alone.
    """
    spans = without_special(archive, row_spans(archive, rows), special_tokens, special_token_ids)
    return spans if tokens is None else draw_tokens(archive, spans, tokens)
