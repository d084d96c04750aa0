"""The parameters of an analysis: one object for notebooks, `analyze` and the command line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from fractions import Fraction
from typing import Any, Literal, get_args

from sparcom_data.errors import InvalidInputError
from sparcom_data.schema.metadata import Positions

SpecialTokens = Literal["count", "leave_out"]
CountedTokens = Literal["all", "content"]
Grouping = Literal["category", "source", "half"]

DEFAULT_TOP = 0.05
LARGEST_TOKEN_ID = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to count, how to select, and how to resample. Every function of this package takes one, or its fields.

    Attributes:
        top: fraction of a population's neurons that are ISNs, (0, 1]: the ⌈top · N⌉ most frequent and all that tie
            with the last. The paper's text (SPARCOM, eq. 7) selects so but names no value; 0.05 is ours.
        min_frequency: select every neuron with p ≥ min_frequency, (0, 1], instead: equation 7 to the letter.
        positions: tokens that count: prompt, response or all. None: the prompt's if the archive holds them.
        counted_tokens: `content` leaves out tokens that a chat template or the tokenizer wrote.
        special_tokens, special_token_ids: whether special tokens (BOS, template markers) count, and their ids if not
            those that the archive lists.
        group_by: what groups instructions: `category`, `source`, `half` (HexaInst: synthetic or natural), or several.
        self_pairs: whether figures and sentences show means with the pair of an instruction with itself, as equations
            10 and 14 have it. Both versions are always computed.
        equal_length: repeat the measures with the same number of tokens per instruction. None: where that can be done.
        equal_length_tokens: tokens per instruction; None: those of the shortest instruction with at least 8.
        n_resamples, confidence_level: of bootstrap intervals; 0 for none.
        n_permutations: label permutations per test; 0 for none.
        seed: of every draw.
        min_share: fraction of a category's instructions that must have a neuron for it to be the category's.
        top_experts: k of "most used experts", which is ours; the paper's ISEs are all activated experts.
        lape_top, lape_filter, lape_bar: LAPE's fraction of neurons and its two quantiles.
        instructions: ids shown in figure 6; None: the most typical one per category.

    Raises:
        InvalidInputError: with every value that is out of range.
    """

    top: float | None = None
    min_frequency: float | None = None
    positions: Positions | None = None
    counted_tokens: CountedTokens = "all"
    special_tokens: SpecialTokens = "count"
    special_token_ids: Sequence[int] | None = None
    group_by: Sequence[Grouping] = ("category",)
    self_pairs: bool = True
    equal_length: bool | None = None
    equal_length_tokens: int | None = None
    n_resamples: int = 1000
    confidence_level: float = 0.95
    n_permutations: int = 9999
    seed: int = 0
    min_share: float = 0.5
    top_experts: int = 5
    lape_top: float = 0.01
    lape_filter: float = 0.95
    lape_bar: float = 0.95
    instructions: Sequence[str] | None = field(default=None)

    def __post_init__(self) -> None:
        if self.top is None and self.min_frequency is None:
            object.__setattr__(self, "top", DEFAULT_TOP)
        if problems := [problem for problem, holds in self._problems().items() if holds]:
            raise InvalidInputError(problems)

    def _problems(self) -> dict[str, bool]:
        shares = ("top", "min_frequency", "min_share", "lape_top", "lape_filter", "lape_bar")
        given = {name: getattr(self, name) for name in shares}
        found = {
            f"{name} must be above 0 and at most 1; it is {value}": value is not None and not 0 < value <= 1
            for name, value in given.items()
        }
        ids = self.special_token_ids
        return found | {
            "top and min_frequency are two rules of selection; give one of them": (
                self.top is not None and self.min_frequency is not None
            ),
            f"n_resamples must be 0 (no intervals) or at least 2; it is {self.n_resamples}": (
                self.n_resamples < 2 and self.n_resamples != 0
            ),
            f"n_permutations must be 0 (no tests) or more; it is {self.n_permutations}": self.n_permutations < 0,
            f"confidence_level must be above 0 and below 1; it is {self.confidence_level}": (
                not 0 < self.confidence_level < 1
            ),
            f"seed must be 0 or more; it is {self.seed}": self.seed < 0,
            f"top_experts must be at least 1; it is {self.top_experts}": self.top_experts < 1,
            f"positions must be prompt, response or all; they are {self.positions!r}": (
                self.positions is not None and self.positions not in get_args(Positions)
            ),
            f"counted_tokens must be all or content; it is {self.counted_tokens!r}": (
                self.counted_tokens not in get_args(CountedTokens)
            ),
            f"special_tokens must be count or leave_out; it is {self.special_tokens!r}": (
                self.special_tokens not in get_args(SpecialTokens)
            ),
            f"special_token_ids must be one or more token ids, 0 to {LARGEST_TOKEN_ID}; they are {ids}": (
                ids is not None and (not len(ids) or min(ids) < 0 or max(ids) > LARGEST_TOKEN_ID)
            ),
            "special_token_ids name tokens to leave out; add special_tokens='leave_out' "
            "(--special-tokens leave-out)": ids is not None and self.special_tokens == "count",
            f"group_by must be one or more of category, source and half; it is {self.group_by!r}": (
                not self.group_by
                or len(set(self.group_by)) < len(self.group_by)
                or not set(self.group_by) <= set(get_args(Grouping))
            ),
            f"equal_length_tokens must be at least 1; it is {self.equal_length_tokens}": (
                self.equal_length_tokens is not None and self.equal_length_tokens < 1
            ),
            "equal_length_tokens needs equal lengths; leave it out or drop equal_length=False (--no-equal-length)": (
                self.equal_length_tokens is not None and self.equal_length is False
            ),
        }

    @classmethod
    def of(cls, options: Options | None = None, **changes: Any) -> Options:
        """Return `options`, or the defaults, with some fields changed.

        Raises:
            InvalidInputError: there is no option of that name, or a value is out of range.
        """
        known = [one.name for one in fields(cls)]
        if unknown := [name for name in changes if name not in known]:
            near = [f"; did you mean {close[0]}?" if (close := get_close_matches(n, known, 1)) else "" for n in unknown]
            raise InvalidInputError(
                [f"there is no option {name!r}{hint}" for name, hint in zip(unknown, near, strict=True)]
            )
        if changes.get("min_frequency") is not None:
            changes = {"top": None} | changes
        return replace(cls() if options is None else options, **changes)

    @property
    def must_match_lengths(self) -> bool:
        """Whether equal lengths were asked for, so that leaving them out is an error."""
        return bool(self.equal_length) or self.equal_length_tokens is not None

    @property
    def rule(self) -> str:
        """The rule of selection, in words for sentences and tables."""
        return f"top {self.top:.4g}" if self.min_frequency is None else f"p ≥ {self.min_frequency:.4g}"

    def wanted(self, neurons: int) -> int | None:
        """k = ⌈top · N⌉ of `neurons`; None with `min_frequency`."""
        return None if self.top is None else ceil_of(self.top, neurons)


def exact(value: float) -> Fraction:
    """Return the decimal number that was written: 0.07 of 100 is 7, not the 8 of its binary neighbour."""
    return Fraction(repr(float(value)))


def ceil_of(share: float, total: int) -> int:
    """Return ⌈share · total⌉ of the decimal number that was written."""
    return math.ceil(exact(share) * total)
