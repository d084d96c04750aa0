"""Names what is largest and what is smallest, ties included: a sentence must not call one the most where several are.

Knows values and names alone. Values that agree to twelve digits are ties, as everywhere in the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CLOSE = 1e-12
MOST_NAMED = 3

Valued = Sequence[tuple[float, str]]


@dataclass(frozen=True, slots=True)
class End:
    """The largest or the smallest value, and all that have it, in their order."""

    value: float
    names: list[str]

    @property
    def single(self) -> bool:
        """Whether one alone has it."""
        return len(self.names) == 1

    def named(self, kind: str) -> str:
        """The names in a row, or how many there are; `kind` is their plural."""
        return in_a_row(self.names) if len(self.names) <= MOST_NAMED else f"{len(self.names)} {kind}"

    @property
    def layers(self) -> str:
        """The names as numbers of layers, in words."""
        if self.single:
            return f"layer {self.names[0]}"
        return f"layers {in_a_row(self.names)}" if len(self.names) <= MOST_NAMED else f"{len(self.names)} layers"


def largest(valued: Valued) -> End:
    """The largest of some values."""
    top = max(value for value, _ in valued)
    return End(top, [name for value, name in valued if value >= top - CLOSE * max(1.0, abs(top))])


def smallest(valued: Valued) -> End:
    """The smallest of some values."""
    low = min(value for value, _ in valued)
    return End(low, [name for value, name in valued if value <= low + CLOSE * max(1.0, abs(low))])


def all_tie(valued: Valued) -> bool:
    """Whether there is no difference among them."""
    return len(largest(valued).names) == len(valued)


def in_a_row(names: Sequence[str]) -> str:
    """ "A", "A and B", "A, B and C"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def most_alike(end: End, least: bool = False) -> str:
    """Which pairs of categories are most (or least) alike, without a capital and a full stop."""
    how = "least" if least else "most"
    if end.single:
        return f"the two {how} alike are {end.names[0]} ({end.value:.3f})"
    if len(end.names) <= MOST_NAMED:
        return f"{how} alike are the pairs {'; '.join(end.names)} ({end.value:.3f} each)"
    return f"{len(end.names)} pairs of categories are {how} alike ({end.value:.3f} each)"


def pair_ends(pairs: Valued) -> str:
    """A sentence with a space before it: the most and the least alike of the pairs; empty of fewer than two."""
    if len(pairs) < 2:
        return ""
    if all_tie(pairs):
        return f" All pairs of categories are equally alike ({pairs[0][0]:.3f})."
    text = most_alike(largest(pairs)).replace("the two most", "the two categories most", 1)
    return f" {text[:1].upper()}{text[1:]}; {most_alike(smallest(pairs), least=True)}."
