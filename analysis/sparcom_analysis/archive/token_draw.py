"""Draws the same number m of tokens from every instruction, without replacement.

p of equations 6, 8 and 11 takes only T + 1 values. Short instructions therefore tie more and get larger sets, and
instructions of similar length look alike. With m tokens each, p takes the same m + 1 values for all.

    m            as given, otherwise T of the shortest instruction with at least 8 tokens
    left out     instructions with fewer than m tokens that count; `TokenFacts.too_short` is their number
    the draw     a random 64-bit number per token that counts, in order, from PCG64 seeded by the seed and the SHA-256
                 of the instruction's id; the m tokens with the least numbers, in the order of their rows

A draw depends on seed, id and T alone. So a base and a tuned model are represented by the same tokens, and a draw of
fewer tokens is part of a draw of more. NumPy promises to keep raw PCG64 output, unlike that of `Generator.choice`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.archive.rows import RowSpans
from sparcom_data.archive import Archive
from sparcom_data.errors import IncompleteArchiveError, InvalidInputError, UnsupportedArchiveError

LEAST_TOKENS = 8  # with fewer, p takes too few values to tell neurons apart


@dataclass(frozen=True, slots=True)
class TokenDraw:
    """How many tokens to draw per instruction.

    Attributes:
        tokens: m, at least 1; None: T of the shortest instruction with at least 8.
        seed: whole number, at least 0.
    """

    tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        few = self.tokens is not None and self.tokens < 1
        problems = [f"tokens to draw must be at least 1; it is {self.tokens}"] if few else []
        if problems := problems + ([f"seed must be at least 0; it is {self.seed}"] if self.seed < 0 else []):
            raise InvalidInputError(problems)


def draw_tokens(archive: Archive, spans: RowSpans, draw: TokenDraw) -> RowSpans:
    """Return the spans in which only m drawn rows per instruction count, without instructions that have fewer.

    Raises:
        UnsupportedArchiveError: the archive holds counts.
        IncompleteArchiveError: m is not given, and no instruction has 8 tokens.
    """
    if archive.granularity == "count":
        raise UnsupportedArchiveError(
            f"drawing tokens needs masks of single tokens; {archive.path} holds counts over all tokens of an "
            "instruction. Extract again with granularity='token'"
        )
    tokens = spans.tokens
    m = draw.tokens if draw.tokens is not None else _shortest(archive, tokens)
    long_enough = tokens >= m
    spans = spans.only(long_enough)
    kept = np.zeros(int(spans.lengths.sum()), dtype=np.bool_)
    for k, (first, length) in enumerate(zip(spans.first.tolist(), spans.lengths.tolist(), strict=True)):
        counting = np.arange(length) if spans.kept is None else np.flatnonzero(spans.kept[first : first + length])
        name = archive.instructions.id[int(spans.instruction[k])]
        kept[first + counting[drawn_places(name, len(counting), m, draw.seed)]] = True
    facts = replace(spans.token_facts, drawn=m, seed=draw.seed, too_short=int((~long_enough).sum()))
    return replace(spans, kept=kept, token_facts=facts)


def _shortest(archive: Archive, tokens: NDArray[np.int64]) -> int:
    enough = tokens[tokens >= LEAST_TOKENS]
    if not len(enough):
        raise IncompleteArchiveError(
            f"drawing as many tokens as the shortest instruction has needs one with at least {LEAST_TOKENS}; the "
            f"longest of {archive.path} has {int(tokens.max(initial=0))}. Say how many tokens to draw"
        )
    return int(enough.min())


def drawn_places(name: str, tokens: int, m: int, seed: int = 0) -> NDArray[np.intp]:
    """Return which m of the tokens 0 to `tokens` - 1 represent the instruction of that id: intp (m,), ascending."""
    words = np.frombuffer(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest(), dtype="<u4")
    numbers = np.random.PCG64(np.random.SeedSequence([seed, *words.tolist()])).random_raw(tokens)
    return np.sort(np.argsort(numbers, kind="stable")[:m])
