"""Statistics of groups of instructions (a category within a half): numbers, lengths and openings."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from sparcom_hexainst.build.lengths import count_tokens
from sparcom_hexainst.check.findings import Finding, Group, Quantiles
from sparcom_hexainst.check.pairs import Member

OPENING_WORDS = 3
OPENINGS = 0.7
LENGTH_RATIO = 2.0
_FEWEST = 10  # smaller groups have no meaningful median or variety


def describe_groups(members: Sequence[Member], tokenizer: Path | None) -> list[Group]:
    """Return the statistics of every group, in the order of the set."""
    texts = [member.text for member in members]
    tokens = count_tokens(texts, tokenizer).tolist() if tokenizer else [0] * len(texts)
    positions: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for position, member in enumerate(members):
        positions[member.instruction.category, member.half].append(position)
    groups = []
    for (category, half), found in positions.items():
        readable = [position for position in found if texts[position]]
        groups.append(
            Group(
                category=category,
                half=half,
                instructions=len(found),
                words=_quantiles([len(texts[position].split()) for position in readable]),
                tokens=_quantiles([tokens[position] for position in readable]) if tokenizer else None,
                openings=len({opening(texts[position]) for position in readable}),
            )
        )
    return groups


def opening(text: str) -> str:
    """Return the first three words of a text, ignoring case."""
    return " ".join(text.casefold().split()[:OPENING_WORDS])


def _quantiles(lengths: Sequence[int]) -> Quantiles | None:
    if not lengths:
        return None
    return Quantiles(shortest=min(lengths), median=statistics.median(lengths), longest=max(lengths))


def balance(groups: Sequence[Group]) -> Iterator[Finding]:
    """Yield one finding per half in which categories differ in number or are missing."""
    categories = dict.fromkeys(group.category for group in groups)
    for half, found in _halves(groups).items():
        counts = dict.fromkeys(categories, 0) | {group.category: group.instructions for group in found}
        if len(set(counts.values())) > 1:
            numbers = ", ".join(f"{category or 'none'} {count}" for category, count in counts.items())
            yield _about(half, "balance", f"{numbers}; remove some, or add to the others")


def group_findings(groups: Sequence[Group]) -> Iterator[Finding]:
    """Yield findings on lengths and openings."""
    for half, found in _halves(groups).items():
        yield from _lengths(half, found)
    for group in groups:
        if group.instructions >= _FEWEST and 0 < group.openings < OPENINGS * group.instructions:
            message = f"{group.openings} distinct first three words in {group.instructions} instructions; reword some"
            yield Finding(rule="openings", where=group.name, message=message)


def _lengths(half: str, groups: Sequence[Group]) -> Iterator[Finding]:
    for unit in ("words", "tokens"):
        medians = {
            group.category: lengths.median
            for group in groups
            if group.instructions >= _FEWEST and (lengths := getattr(group, unit)) is not None
        }
        if len(medians) > 1 and max(medians.values()) > LENGTH_RATIO * min(medians.values()):
            low, high = min(medians, key=medians.__getitem__), max(medians, key=medians.__getitem__)
            yield _about(
                half,
                "length",
                f"medians from {medians[low]:g} {unit} ({low}) to {medians[high]:g} ({high}), so length confounds "
                "category; `sparcom dataset build --match-length` picks items of equal length",
            )


def _halves(groups: Sequence[Group]) -> dict[str, list[Group]]:
    halves: defaultdict[str, list[Group]] = defaultdict(list)
    for group in groups:
        halves[group.half].append(group)
    return halves


def _about(half: str, rule: str, message: str) -> Finding:
    return Finding(rule=rule, where=f"{half} half" if half else "all categories", message=message)
