"""What an analysis is asked for beside its archives. All of it is checked before the first row is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparcom_analysis.components.general_unique import DEFAULT_SHARE
from sparcom_analysis.components.lape import LapeRates
from sparcom_analysis.measures.selection import Selection, check_enough, make_selection
from sparcom_analysis.reading.matched_tokens import TokenDraw, draw_tokens
from sparcom_analysis.reading.rows import CountedTokens, Rows, RowSpans, SpecialTokens, choose_rows
from sparcom_analysis.reading.special_tokens import special_ids
from sparcom_analysis.reading.token_rows import counted_rows
from sparcom_analysis.statistics.bootstrap import CONFIDENCE, RESAMPLES
from sparcom_analysis.statistics.permutation import PERMUTATIONS
from sparcom_analysis.tuned.twins import check_instructions
from sparcom_data.archive import Archive
from sparcom_data.errors import InvalidInputError, UnsupportedArchiveError


@dataclass(frozen=True, slots=True)
class Options:
    """See `pipeline.analyze`, whose arguments these are.

    match_tokens: None: where the archive holds masks, and where it can be done.
    """

    epsilon: float | None = None
    threshold: float | None = None
    rows: Rows | None = None
    exclude_self_pairs: bool = False
    special_tokens: SpecialTokens = "count"
    special_token_ids: Sequence[int] | None = None
    counted_tokens: CountedTokens = "all"
    match_tokens: bool | None = None
    matched_tokens: int | None = None
    resamples: int = RESAMPLES
    permutations: int = PERMUTATIONS
    confidence: float = CONFIDENCE
    seed: int = 0
    share: float = DEFAULT_SHARE
    lape_rates: LapeRates | None = None
    instructions: Sequence[str] | None = None

    def __post_init__(self) -> None:
        wrong = {
            f"resamples must be 0 (no intervals) or at least 2; they are {self.resamples}": (
                self.resamples < 2 and self.resamples != 0
            ),
            f"permutations must be 0 (no tests) or more; they are {self.permutations}": self.permutations < 0,
            f"confidence must be above 0 and below 1; it is {self.confidence}": not 0 < self.confidence < 1,
            f"the seed must be 0 or more; it is {self.seed}": self.seed < 0,
            f"the share of a category's instructions must be above 0 and at most 1; it is {self.share}": not (
                0 < self.share <= 1
            ),
            "matched tokens are drawn only where tokens are matched; give a number or "
            "--no-match-tokens (match_tokens=False), not both": (
                self.matched_tokens is not None and self.match_tokens is False
            ),
        }
        if problems := [problem for problem, is_so in wrong.items() if is_so]:
            raise InvalidInputError(problems)
        make_selection(self.epsilon, self.threshold)
        TokenDraw(self.matched_tokens, self.seed)

    @property
    def selection(self) -> Selection:
        """The rule of equation 7."""
        return make_selection(self.epsilon, self.threshold)

    @property
    def draw(self) -> TokenDraw:
        """Which tokens stand for an instruction where T is matched."""
        return TokenDraw(self.matched_tokens, self.seed)

    @property
    def must_match(self) -> bool:
        """Whether matching was asked for by name, so that it may not be left out in silence."""
        return bool(self.match_tokens) or self.matched_tokens is not None

    def check(self, base: Archive, tuned: Archive | None) -> None:
        """Refuse what these archives cannot give.

        Raises:
            InvalidInputError: instructions to show without a tuned archive, or that are not complete in both.
            UnsupportedArchiveError: of counts no token can be left out or drawn; an archive does not know which tokens
                to leave out; the archives hold other rows.
            IncompleteArchiveError: too few instructions have the rows or tokens, or none is in both archives.
        """
        if self.special_tokens == "leave_out":
            for archive in (base, tuned):
                if archive is not None:
                    special_ids(archive, self.special_token_ids)
        if self.must_match and base.granularity == "count":
            raise UnsupportedArchiveError(
                f"matching T needs masks of single tokens; {base.path} holds counts over all tokens of an instruction. "
                "Leave --match-tokens and --matched-tokens out, or extract again with granularity='token'"
            )
        self._check_instructions(base, tuned)
        self._check_rows(base, tuned)

    def _check_rows(self, base: Archive, tuned: Archive | None) -> None:
        """Refuse what the tables of instructions and the token ids alone show to be impossible."""
        rows, spans = self._counted(base)
        check_enough(base, spans, rows)
        if self.must_match:
            check_enough(base, draw_tokens(base, spans, self.draw), rows)
        if tuned is not None:
            other_rows, others = self._counted(tuned)
            check_instructions(base, tuned, (rows, other_rows), (spans, others))

    def _counted(self, archive: Archive) -> tuple[Rows, RowSpans]:
        """Which kind of rows, and which of them count."""
        rows = choose_rows(archive, self.rows)
        spans = counted_rows(
            archive,
            rows,
            special_tokens=self.special_tokens,
            special_token_ids=self.special_token_ids,
            counted_tokens=self.counted_tokens,
        )
        return rows, spans

    def _check_instructions(self, base: Archive, tuned: Archive | None) -> None:
        if self.instructions is None:
            return
        if tuned is None:
            raise InvalidInputError(
                "instructions to show are compared with a tuned archive; there is none. Give --tuned, or none of them"
            )
        complete = [{a.instructions.id[i] for i in a.instructions.complete.tolist()} for a in (base, tuned)]
        if problems := [
            f"an instruction to show must be complete in both archives; {name!r} is not. Give ids of instruction/id"
            for name in self.instructions
            if not all(name in ids for ids in complete)
        ]:
            raise InvalidInputError(problems)
