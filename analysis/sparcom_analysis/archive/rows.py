"""Find the rows of the token axis that belong to each instruction, and those that count.

An instruction is used if its state is complete and it has at least one row at the requested positions. An archive of
counts holds no token rows; only their number is used.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.options import CountedTokens, SpecialTokens
from sparcom_data.archive import Archive
from sparcom_data.errors import DamagedArchiveError, IncompleteArchiveError
from sparcom_data.schema.metadata import Positions


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """Tokens at the chosen positions that do not count.

    Attributes:
        special_tokens, special_ids, special_rows: treatment of special tokens; their ids and rows if left out.
        drawn, seed, too_short: tokens drawn per instruction (None: all), the seed, and instructions with fewer tokens.
        counted_tokens, template_rows: treatment of template tokens; their rows if left out.
        unknown_origin: instructions left out because the origin of a token is unknown.
    """

    special_tokens: SpecialTokens = "count"
    special_ids: tuple[int, ...] = ()
    special_rows: int = 0
    drawn: int | None = None
    seed: int = 0
    too_short: int = 0
    counted_tokens: CountedTokens = "all"
    template_rows: int = 0
    unknown_origin: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class RowSpans:
    """Contiguous rows of n instructions, in submission order.

    Attributes:
        positions: prompt, response or all.
        instruction: int64 (n,), index in the instruction table.
        start, stop: int64 (n,), rows [start, stop) on the token axis.
        position: int64 (n,), sequence position of the first row.
        without_rows: complete instructions without rows at these positions.
        kept: bool (row,), rows that count, grouped by instruction; None: all.
        token_facts: reasons why rows do not count.
    """

    positions: Positions
    instruction: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    position: NDArray[np.int64]
    without_rows: int = 0
    kept: NDArray[np.bool_] | None = None
    token_facts: TokenFacts = field(default_factory=TokenFacts)

    def __len__(self) -> int:
        return len(self.instruction)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Rows per instruction, at least 1, including rows that do not count: int64 (n,)."""
        return self.stop - self.start

    @property
    def first(self) -> NDArray[np.int64]:
        """Index in `kept` of each instruction's first row: int64 (n,)."""
        first: NDArray[np.int64] = self.lengths.cumsum() - self.lengths
        return first

    @property
    def tokens(self) -> NDArray[np.int64]:
        """T of equation 6, the number of rows that count per instruction: int64 (n,)."""
        if self.kept is None:
            return self.lengths
        tokens: NDArray[np.int64] = np.add.reduceat(self.kept, self.first, dtype=np.int64)
        return tokens

    def counting(self, kept: NDArray[np.bool_], facts: TokenFacts) -> RowSpans:
        """Restrict the rows that count to `kept`: bool (row,).

        Instructions without such rows are left out and added to `without_rows`.
        """
        spans = replace(self, kept=kept if self.kept is None else self.kept & kept, token_facts=facts)
        some = spans.tokens > 0
        return replace(spans.only(some), without_rows=self.without_rows + int((~some).sum()))

    def only(self, some: NDArray[np.bool_]) -> RowSpans:
        """Return the spans of the selected instructions: bool (n,)."""
        return replace(
            self,
            instruction=self.instruction[some],
            start=self.start[some],
            stop=self.stop[some],
            position=self.position[some],
            kept=None if self.kept is None else self.kept[np.repeat(some, self.lengths)],
        )


def choose_positions(archive: Archive, requested: Positions | None) -> Positions:
    """Return the requested positions (default: the prompt, as in equation 6, or else all captured positions).

    Counts are sums over all captured positions and cannot be split.
    """
    captured = archive.attributes.capture.positions
    counted = archive.granularity == "count"
    held: tuple[Positions, ...] = ("prompt", "response", "all") if captured == "all" and not counted else (captured,)
    if requested is None:
        return held[0]
    if requested in held:
        return requested
    what = "counts over" if counted else "masks of"
    choice = " or ".join(map(repr, held))
    again = "granularity='token'" if counted and captured == "all" else "positions='all'"
    raise IncompleteArchiveError(
        f"positions {requested!r} need an archive that holds them; {archive.path} holds {what} positions {captured!r}"
        f"{', which cannot be split' if counted else ''}. Choose positions {choice}, or extract again with {again}"
    )


def row_spans(archive: Archive, requested: Positions | None = None) -> RowSpans:
    """Return the rows of every complete instruction; check that rows do not overlap and prompts are complete."""
    chosen = choose_positions(archive, requested)
    table, captured = archive.instructions, archive.attributes.capture.positions
    index = table.complete
    columns = (table.token_start, table.token_length, table.prompt_length)
    begin, length, before = (column[index].astype(np.int64) for column in columns)
    prompt = np.zeros_like(length) if captured == "response" else before  # prompt rows that the archive holds
    bad = (prompt > length) if captured != "prompt" else (prompt != length)
    if bad.any():
        where = int(index[bad][0])
        raise DamagedArchiveError(
            f"a complete instruction must have all its {int(table.prompt_length[where])} prompt rows; "
            f"{table.id[where]!r} in {archive.path} has {int(table.token_length[where])} rows. "
            "Run `sparcom verify`, then extract it again"
        )
    first = prompt if chosen == "response" else np.zeros_like(prompt)
    last = prompt if chosen == "prompt" else length
    some = last > first
    spans = RowSpans(
        positions=chosen,
        instruction=index[some].astype(np.int64),
        start=(begin + first)[some],
        stop=(begin + last)[some],
        position=(before if captured == "response" else first)[some],
        without_rows=int((~some).sum()),
    )
    order = np.argsort(spans.start, kind="stable")
    overlap = np.flatnonzero(spans.start[order][1:] < spans.stop[order][:-1])
    if len(overlap):
        pair = [table.id[int(spans.instruction[order[overlap[0] + step]])] for step in (0, 1)]
        raise DamagedArchiveError(
            f"rows of two instructions must not overlap; those of {pair[0]!r} and {pair[1]!r} in {archive.path} do. "
            "Run `sparcom verify`, then extract the archive again"
        )
    return spans
