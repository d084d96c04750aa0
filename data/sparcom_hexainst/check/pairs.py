"""Find pairs of instructions with too much in common: same texts, near-duplicates, contamination.

Contamination is overlap of two parts that must be independent: the synthetic and natural halves of a set, or the
checked files and files to compare with (sources of the natural half, training data of a model).
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
    """An instruction of the set and its location (`file, line n`)."""

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
        """Return a finding about this instruction."""
        return Finding(rule=rule, where=self.where, id=self.id, message=message)

    def __str__(self) -> str:
        return f"{self.id} ({self.where})"


def same_texts(members: Sequence[Member]) -> Iterator[Finding]:
    """Yield one finding per instruction that repeats an earlier text, ignoring case and white space."""
    first: dict[str, Member] = {}
    for member in members:
        if not member.text:
            continue
        earlier = first.setdefault(_plain(member.text), member)
        if earlier is not member:
            yield member.finding("duplicate", f"same text as {earlier}; remove one of the two")


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def similar_texts(members: Sequence[Member]) -> Iterator[Finding]:
    """Yield one finding per pair of near-duplicates; equal texts and pairs across halves have rules of their own."""
    for pair, first, second in _similar(members):
        if _across(first, second) or _plain(first.text) == _plain(second.text):
            continue
        rule = "template" if first.half == second.half == NATURAL else "near-duplicate"
        yield second.finding(rule, f"shares {pair.share:.0%} of its 4-word runs with {first}; reword or remove one")


def contamination(members: Sequence[Member], others: Sequence[Member] = ()) -> Iterator[Finding]:
    """Yield findings on overlap between the set's halves, and between the set and `others`."""
    texts = [member for member in members if member.text]
    synthetic = [member for member in texts if member.half != NATURAL]
    natural = [member for member in texts if member.half == NATURAL]
    yield from _common(synthetic, natural)
    yield from _common(texts, [other for other in others if other.text])


def _common(own: Sequence[Member], others: Sequence[Member]) -> Iterator[Finding]:
    """Yield near-duplicates between the two parts, and longer word runs that occur in both."""
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
                yield member.finding("overlap", f"shares {LONG_RUN} words with {others[holder]}: {text[:_SHOWN]!r}…")


def _long_runs(text: str) -> Runs:
    return word_runs(text, LONG_RUN) if len(words(text)) >= LONG_RUN else frozenset()


def _similar(members: Sequence[Member]) -> Iterator[tuple[Pair, Member, Member]]:
    """Yield near-duplicates among members with a text, the earlier one first."""
    readable = [member for member in members if member.text]
    for pair in near_duplicates([member.text for member in readable]):
        yield pair, readable[pair.first], readable[pair.second]


def _across(first: Member, second: Member) -> bool:
    """Return whether exactly one of the two is of the natural half."""
    return (first.half == NATURAL) != (second.half == NATURAL)
