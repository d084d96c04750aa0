"""Which rows of the token axis belong to which instruction, for the rows that were asked for.

Knows the archive's layout rules; reads no mask. In an archive of counts they are the rows that were counted, which lie
nowhere any more: how many they are is what matters. An instruction is used when its state is complete and it has at
least one such row. Of these rows some may not count (special tokens, tokens that were not drawn): `RowSpans.kept`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.options import CountedTokens, SpecialTokens
from sparcom_data.archive import Archive
from sparcom_data.errors import DamagedArchiveError, IncompleteArchiveError
from sparcom_data.schema.metadata import Positions

_HELD: dict[str, tuple[Positions, ...]] = {
    "prompt": ("prompt",),
    "response": ("response",),
    "all": ("prompt", "response", "all"),
}
_COUNTED: dict[str, tuple[Positions, ...]] = {"prompt": ("prompt",), "response": ("response",), "all": ("all",)}


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """Which tokens of the rows that were asked for did not count.

    special_tokens: whether special tokens counted. special_ids: which ids they are, where they were left out.
    special_rows: rows left out as special. drawn: m, the tokens drawn of each instruction; None: all count. seed: of
    the draw. too_short: instructions left out, since they have fewer than m tokens.
    counted_tokens: whether tokens of the template and the tokenizer counted. template_rows: rows left out as such.
    unknown_origin: instructions left out, since where their tokens come from is unknown.
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


ALL_TOKENS = TokenFacts()


@dataclass(frozen=True, slots=True)
class RowSpans:
    """Contiguous rows of n instructions, in submission order; one entry an instruction that has rows.

    instruction: int64 (n,), index into the instruction table. start, stop: int64 (n,), rows on the token axis.
    position: int64 (n,), the position within the sequence that the first of these rows must carry.
    without_rows: how many complete instructions have no such row.
    kept: bool (row,), which rows count, those of one instruction after the other; None: all. facts: why.
    """

    positions: Positions
    instruction: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    position: NDArray[np.int64]
    without_rows: int = 0
    kept: NDArray[np.bool_] | None = None
    facts: TokenFacts = ALL_TOKENS

    def __len__(self) -> int:
        return len(self.instruction)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 (n,): rows of each instruction, whether they count or not."""
        return self.stop - self.start

    @property
    def first(self) -> NDArray[np.int64]:
        """int64 (n,): where the rows of each instruction begin in `kept`."""
        lengths = self.lengths
        first: NDArray[np.int64] = lengths.cumsum() - lengths
        return first

    @property
    def tokens(self) -> NDArray[np.int64]:
        """T of equation 6: int64 (n,), rows of each instruction that count."""
        if self.kept is None:
            return self.lengths
        before = np.concatenate([np.zeros(1, dtype=np.int64), self.kept.cumsum(dtype=np.int64)])
        tokens: NDArray[np.int64] = before[self.first + self.lengths] - before[self.first]
        return tokens

    def counting(self, kept: NDArray[np.bool_], facts: TokenFacts) -> RowSpans:
        """The same where of the rows that count these alone do, bool (row,). An instruction of which none does is
        without rows."""
        spans = replace(self, kept=kept if self.kept is None else self.kept & kept, facts=facts)
        some = spans.tokens > 0
        return replace(spans.only(some), without_rows=self.without_rows + int((~some).sum()))

    def only(self, some: NDArray[np.bool_]) -> RowSpans:
        """These instructions alone: bool (n,)."""
        return replace(
            self,
            instruction=self.instruction[some],
            start=self.start[some],
            stop=self.stop[some],
            position=self.position[some],
            kept=None if self.kept is None else self.kept[np.repeat(some, self.lengths)],
        )


def choose_positions(archive: Archive, requested: Positions | None) -> Positions:
    """The rows to use: those requested, otherwise the prompt's (equation 6), otherwise all that the archive holds.

    Counts are sums over what was captured and cannot be parted, so of them there is one choice: with positions `all` it
    is `all`, also where nothing is requested.

    Raises:
        IncompleteArchiveError: the archive does not hold the rows that were requested.
    """
    positions = archive.attributes.capture.positions
    counted = archive.granularity == "count"
    held = _COUNTED[positions] if counted else _HELD[positions]
    if requested is None:
        return held[0]
    if requested not in held and counted:
        raise IncompleteArchiveError(
            f"rows {requested!r} need counts of them alone, or masks; {archive.path} holds counts that were taken with "
            f"positions={positions!r} and cannot be parted. Choose rows {held[0]!r}, or extract again with "
            "granularity='token'"
        )
    if requested not in held:
        raise IncompleteArchiveError(
            f"rows {requested!r} need an archive that was captured with them; {archive.path} was captured with "
            f"positions={positions!r}. Choose rows {' or '.join(map(repr, held))}, or extract again "
            "with positions='all'"
        )
    return requested


def row_spans(archive: Archive, requested: Positions | None = None) -> RowSpans:
    """Rows of every complete instruction.

    Raises:
        DamagedArchiveError: an instruction's lengths contradict what was captured, or two instructions overlap.
    """
    rows = choose_positions(archive, requested)
    table, positions = archive.instructions, archive.attributes.capture.positions
    index = table.complete
    begin = table.token_start[index].astype(np.int64)
    length = table.token_length[index].astype(np.int64)
    prompt = np.zeros_like(length) if positions == "response" else table.prompt_length[index].astype(np.int64)
    bad = (prompt > length) if positions != "prompt" else (prompt != length)
    if bad.any():
        where = int(index[bad][0])
        raise DamagedArchiveError(
            f"a complete instruction must have all its {int(table.prompt_length[where])} prompt rows; "
            f"{table.id[where]!r} in {archive.path} has {int(table.token_length[where])} rows. "
            "Run `sparcom verify`, then extract it again"
        )
    first = prompt if rows == "response" else np.zeros_like(prompt)
    last = prompt if rows == "prompt" else length
    position = first if positions != "response" else table.prompt_length[index].astype(np.int64)
    some = last > first
    spans = RowSpans(
        positions=rows,
        instruction=index[some].astype(np.int64),
        start=(begin + first)[some],
        stop=(begin + last)[some],
        position=position[some],
        without_rows=int((~some).sum()),
    )
    _check_apart(archive, spans)
    return spans


def _check_apart(archive: Archive, spans: RowSpans) -> None:
    order = np.argsort(spans.start, kind="stable")
    overlap = np.flatnonzero(spans.start[order][1:] < spans.stop[order][:-1])
    if len(overlap):
        pair = [archive.instructions.id[int(spans.instruction[order[overlap[0] + step]])] for step in (0, 1)]
        raise DamagedArchiveError(
            f"rows of two instructions must not overlap; those of {pair[0]!r} and {pair[1]!r} in {archive.path} do. "
            "Run `sparcom verify`, then extract the archive again"
        )
