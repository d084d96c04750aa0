"""Pairs of instructions that have too much in common: the same text, near-duplicates, contamination.

Contamination is what two parts share that must not know each other: the synthetic and the natural half of a set, or
the checked files and files that they are held against (the sources of the natural half, training data of a model).
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sparcom_data.instructions import Instruction
from sparcom_hexainst.check.findings import Finding
from sparcom_hexainst.check.runs import LONG_RUN, Pair, Runs, near_duplicates, word_runs, words

_SHOWN = 60
NATURAL = "natural"


@dataclass(frozen=True, slots=True)
class Member:
    """An instruction of the set, and the place where it stands (`file, line n`)."""

    where: str
    instruction: Instruction

    @property
    def id(self) -> str:
        return self.instruction.id

    @property
    def text(self) -> str:
        return self.instruction.readable

    @property
    def half(self) -> str:
        return self.instruction.half

    def finding(self, rule: str, message: str) -> Finding:
        """A finding about this instruction."""
        return Finding(rule=rule, where=self.where, id=self.id, message=message)

    def __str__(self) -> str:
        return f"{self.id} ({self.where})"


def same_texts(members: Sequence[Member]) -> Iterator[Finding]:
    """A finding for each instruction whose text, case and white space aside, an earlier one has."""
    first: dict[str, Member] = {}
    for member in members:
        if not member.text:
            continue
        earlier = first.setdefault(_plain(member.text), member)
        if earlier is not member:
            yield member.finding("duplicate", f"the text of {earlier}; remove one of the two")


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def similar_texts(members: Sequence[Member]) -> Iterator[Finding]:
    """A finding for each pair of near-duplicates; equal texts and pairs across the halves have rules of their own."""
    for pair, first, second in _similar(members):
        if _across(first, second) or _plain(first.text) == _plain(second.text):
            continue
        rule = "template" if first.half == second.half == NATURAL else "near-duplicate"
        yield second.finding(rule, f"shares {pair.share:.0%} of its 4-word runs with {first}; reword or remove one")


def contamination(members: Sequence[Member], others: Sequence[Member] = ()) -> Iterator[Finding]:
    """What the set's halves have in common, and the set with texts that it is held against."""
    texts = [member for member in members if member.text]
    synthetic = [member for member in texts if member.half != NATURAL]
    natural = [member for member in texts if member.half == NATURAL]
    yield from _common(synthetic, natural)
    yield from _common(texts, [other for other in others if other.text])


def _common(own: Sequence[Member], others: Sequence[Member]) -> Iterator[Finding]:
    """Near-duplicates of the second part in the first, and longer runs of words that stand in both."""
    reported = set()
    for pair, first, second in _similar([*own, *others]):
        if pair.first < len(own) <= pair.second:
            reported.add((pair.first, pair.second - len(own)))
            yield first.finding(
                "contamination", f"shares {pair.share:.0%} of the shorter one's 4-word runs with {second}; reword it"
            )
    holders: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for position, other in enumerate(others):
        for run in _long_runs(other.text):
            holders[run].append(position)
    for position, member in enumerate(own):
        shared: dict[int, str] = {}
        for run in sorted(_long_runs(member.text)):
            shared |= {holder: " ".join(run) for holder in holders.get(run, ())}
        for holder, text in sorted(shared.items()):
            if (position, holder) not in reported:
                yield member.finding("overlap", f"has {LONG_RUN} words of {others[holder]}: {text[:_SHOWN]!r}…")


def _long_runs(text: str) -> Runs:
    return word_runs(text, LONG_RUN) if len(words(text)) >= LONG_RUN else frozenset()


def _similar(members: Sequence[Member]) -> Iterator[tuple[Pair, Member, Member]]:
    """Near-duplicates among those that have a text, the earlier one first."""
    readable = [member for member in members if member.text]
    for pair in near_duplicates([member.text for member in readable]):
        yield pair, readable[pair.first], readable[pair.second]


def _across(first: Member, second: Member) -> bool:
    """One of the natural half, the other not."""
    return (first.half == NATURAL) != (second.half == NATURAL)
