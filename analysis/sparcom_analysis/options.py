"""Parameters of an analysis, for notebooks, `analyze` and the command line."""

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
    """Options for counting, selection and resampling. Functions of this package take an `Options` or its fields.

    Attributes:
        top: fraction of a population's neurons that are ISNs, (0, 1]: the ⌈top · N⌉ most frequent and all ties with
            the last. The paper's text uses this rule (SPARCOM, eq. 7) but gives no value; the default 0.05 is ours.
        min_frequency: select every neuron with p ≥ min_frequency, (0, 1], instead: equation 7 verbatim.
        positions: tokens to count: prompt, response or all (default: prompt, if the archive holds it).
        counted_tokens: `all` (default), or `content` to leave out tokens of the chat template and the tokenizer.
        special_tokens, special_token_ids: `count` (default) or `leave_out` special tokens (BOS, template markers), and
            their ids (default: those that the archive lists).
        group_by: one or more of `category` (default), `source`, and `half` (HexaInst: synthetic or natural).
        self_pairs: show means with self pairs in figures and sentences, as in equations 10 and 14 (default: True).
            Both versions are always computed.
        equal_length: repeat measures with equally many tokens per instruction (default: if the archive allows it).
        equal_length_tokens: tokens per instruction (default: those of the shortest instruction with at least 8).
        n_resamples, confidence_level: bootstrap resamples (0 for none) and confidence level of intervals.
        n_permutations: label permutations per test; 0 for none.
        seed: seed of every random draw.
        min_share: fraction of a category's instructions that must have a neuron for it to be a member.
        top_experts: k of the "most used experts", which are ours; the paper's ISEs are all activated experts.
        lape_top, lape_filter, lape_bar: LAPE's fraction of neurons and its two quantiles.
        instructions: ids to show in figure 6 (default: a typical one per category).

    Raises:
        InvalidInputError: a value is out of range; the error lists every such value.
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
            yield "top and min_frequency are alternative rules; pass only one of them"
        if self.special_token_ids is not None and self.special_tokens == "count":
            yield "special_token_ids names tokens to omit; add special_tokens='leave_out' (--special-tokens leave-out)"
        if self.equal_length_tokens is not None and self.equal_length is False:
            yield "equal_length_tokens needs equal lengths; omit it or drop equal_length=False (--no-equal-length)"

    @classmethod
    def of(cls, options: Options | None = None, **changes: Any) -> Options:
        """Return `options`, or the defaults, with some fields changed.

        Raises:
            InvalidInputError: `options` is not an Options, an option does not exist, or a value is out of range.
        """
        if not isinstance(options, (Options, NoneType)):
            raise InvalidInputError(
                f"options must be an Options object; it is {options!r}. Pass single options by name: top=0.05"
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
        """True if equal lengths were requested explicitly, so that omitting them is an error."""
        return bool(self.equal_length) or self.equal_length_tokens is not None

    @property
    def rule(self) -> str:
        """Selection rule as text for sentences and tables."""
        return f"top {self.top:.4g}" if self.min_frequency is None else f"p ≥ {self.min_frequency:.4g}"

    def wanted(self, neurons: int) -> int | None:
        """k = ⌈top · N⌉ of `neurons`; None with `min_frequency`."""
        return None if self.top is None else ceil_of(self.top, neurons)


def exact(value: float) -> Fraction:
    """Return a float as the decimal number in the source: ⌈0.07 · 100⌉ is 7, although the binary product exceeds 7."""
    return Fraction(repr(float(value)))


def ceil_of(fraction: float, total: int) -> int:
    """Return ⌈fraction · total⌉, with `fraction` as an exact decimal number."""
    return math.ceil(exact(fraction) * total)
