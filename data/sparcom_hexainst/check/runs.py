"""Word runs (n-grams): the overlap of two texts.

A run is n consecutive words, ignoring case and punctuation. Two texts are near-duplicates if they share at least half
of the 4-word runs of the shorter one. `RunIndex` finds every such pair without comparing all pairs. A text that shares
`m` of its `r` runs with another must share one of any `r - m + 1` of them. So only its rarest runs are looked up.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

NEAR = 0.5
RUN = 4
LONG_RUN = 13  # the length that the GPT-3 paper uses for contamination (Brown et al. 2020, appendix C)
# Han, kana and Hangul count by character: written without spaces, a sentence would otherwise be one long word.
_WORD = re.compile(r"[぀-ヿ㐀-䶿一-鿿가-힯]|[^\W_぀-ヿ㐀-䶿一-鿿가-힯]+")

Runs = frozenset[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Pair:
    """Positions of two texts, and the share of the shorter one's runs that the other contains."""

    first: int
    second: int
    share: float


def words(text: str) -> list[str]:
    """Return the words of a text, case-folded: letters and digits, separated by signs and underscores."""
    return _WORD.findall(text.casefold())


def word_runs(text: str, length: int = RUN) -> Runs:
    """Return the runs of `length` words; for a shorter text, one run of all its words or, without words, its signs."""
    found = words(text) or [text.strip()]
    return frozenset(tuple(found[i : i + length]) for i in range(max(1, len(found) - length + 1)))


def near_duplicates(texts: Sequence[str], near: float = NEAR) -> list[Pair]:
    """Return every pair that shares at least `near` of the shorter one's runs, in the order of the texts."""
    index = RunIndex(near)
    runs = [word_runs(text) for text in texts]
    for found in runs:
        index.add(found)
    pairs = {
        (min(position, other), max(position, other)): share
        for position, found in enumerate(runs)
        for other, share in index.similar(found)
        if other != position
    }
    return [Pair(first, second, share) for (first, second), share in sorted(pairs.items())]


class RunIndex:
    """Index of texts by their runs."""

    def __init__(self, near: float = NEAR) -> None:
        if not 0 < near <= 1:
            raise ValueError(f"the share of common runs must be above 0 and at most 1; got {near}")
        self._near = near
        self._texts: list[Runs] = []
        self._holders: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)

    def add(self, runs: Runs) -> None:
        """Add the runs of one text."""
        for run in runs:
            self._holders[run].append(len(self._texts))
        self._texts.append(runs)

    def similar(self, runs: Runs) -> Iterator[tuple[int, float]]:
        """Yield the positions of indexed near-duplicates of a text with these runs, each with its share."""
        for position in sorted(self._longer(runs) | self._shorter(runs)):
            other = self._texts[position]
            share = len(runs & other) / min(len(runs), len(other))
            if share >= self._near:
                yield position, share

    def _longer(self, runs: Runs) -> set[int]:
        """Return candidates with at least as many runs: each contains one of the rarest of `runs`."""
        needed = math.ceil(self._near * len(runs))
        needed -= (needed - 1) / len(runs) >= self._near  # 0.55 · 100 rounds to more than 55
        rarest = sorted(runs, key=lambda run: len(self._holders.get(run, ())))[: len(runs) - needed + 1]
        return {
            position
            for run in rarest
            for position in self._holders.get(run, ())
            if len(self._texts[position]) >= len(runs)
        }

    def _shorter(self, runs: Runs) -> set[int]:
        """Return candidates with fewer runs that share enough of them."""
        shared: defaultdict[int, int] = defaultdict(int)
        for run in runs:
            for position in self._holders.get(run, ()):
                if len(self._texts[position]) < len(runs):
                    shared[position] += 1
        return {position for position, count in shared.items() if count / len(self._texts[position]) >= self._near}
