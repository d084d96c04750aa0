"""The parameters of an analysis: one object for notebooks, `analyze` and the command line."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from fractions import Fraction
from types import NoneType
from typing import Any, Literal, get_args

from sparcom_data.errors import InvalidInputError
from sparcom_data.schema.metadata import Positions

SpecialTokens = Literal["count", "leave_out"]
CountedTokens = Literal["all", "content"]
Grouping = Literal["category", "source", "half"]

DEFAULT_TOP = 0.05
RENAMED = {  # names of earlier releases
    "epsilon": "top",
    "threshold": "min_frequency",
    "rows": "positions",
    "exclude_self_pairs": "self_pairs",
    "match_tokens": "equal_length",
    "matched_tokens": "equal_length_tokens",
    "resamples": "n_resamples",
    "permutations": "n_permutations",
    "confidence": "confidence_level",
    "share": "min_share",
}
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
        group_by: what groups instructions: `category`, `source`, `half` (of HexaInst: synthetic or natural), or more.
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
    instructions: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.top is None and self.min_frequency is None:
            object.__setattr__(self, "top", DEFAULT_TOP)
        if problems := [*self._out_of_range(), *self._contradictions()]:
            raise InvalidInputError(problems)

    def _out_of_range(self) -> Iterator[str]:
        for name in ("top", "min_frequency", "min_share", "lape_top", "lape_filter", "lape_bar"):
            if (value := getattr(self, name)) is not None and not 0 < value <= 1:
                yield f"{name} must be above 0 and at most 1; it is {value}"
        for name, least in {"n_permutations": 0, "seed": 0, "top_experts": 1, "equal_length_tokens": 1}.items():
            if (value := getattr(self, name)) is not None and value < least:
                yield f"{name} must be at least {least}; it is {value}"
        for name, kind in {"counted_tokens": CountedTokens, "special_tokens": SpecialTokens}.items():
            if (value := getattr(self, name)) not in get_args(kind):
                yield f"{name} must be {' or '.join(get_args(kind))}; it is {value!r}"
        if self.positions not in (None, *get_args(Positions)):
            yield f"positions must be prompt, response or all; they are {self.positions!r}"
        if self.n_resamples < 0 or self.n_resamples == 1:
            yield f"n_resamples must be 0 (no intervals) or at least 2; it is {self.n_resamples}"
        if not 0 < self.confidence_level < 1:
            yield f"confidence_level must be above 0 and below 1; it is {self.confidence_level}"
        ids, groups = self.special_token_ids, self.group_by
        if ids is not None and (not len(ids) or min(ids) < 0 or max(ids) > LARGEST_TOKEN_ID):
            yield f"special_token_ids must be one or more token ids, 0 to {LARGEST_TOKEN_ID}; they are {ids}"
        if not groups or len(set(groups)) < len(groups) or not set(groups) <= set(get_args(Grouping)):
            yield f"group_by must be one or more of category, source and half; it is {groups!r}"

    def _contradictions(self) -> Iterator[str]:
        if self.top is not None and self.min_frequency is not None:
            yield "top and min_frequency are two rules of selection; give one of them"
        if self.special_token_ids is not None and self.special_tokens == "count":
            yield "special_token_ids name tokens to omit; add special_tokens='leave_out' (--special-tokens leave-out)"
        if self.equal_length_tokens is not None and self.equal_length is False:
            yield "equal_length_tokens needs equal lengths; omit it or drop equal_length=False (--no-equal-length)"

    @classmethod
    def of(cls, options: Options | None = None, **changes: Any) -> Options:
        """Return `options`, or the defaults, with some fields changed.

        Raises:
            InvalidInputError: `options` is no Options, there is no option of that name, or a value is out of range.
        """
        if not isinstance(options, (Options, NoneType)):
            raise InvalidInputError(
                f"options must be an Options object; it is {options!r}. Name single options: positions='all', top=0.05"
            )
        known, unknown = [one.name for one in fields(cls)], []
        for name in changes:
            if name not in known:
                close = [RENAMED[name]] if name in RENAMED else get_close_matches(name, known, 1)
                unknown.append(f"there is no option {name!r}" + (f"; did you mean {close[0]}?" if close else ""))
        if unknown:
            raise InvalidInputError(unknown)
        for rule, other in (("min_frequency", "top"), ("top", "min_frequency")):
            if changes.get(rule) is not None:
                changes = {other: None} | changes
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
