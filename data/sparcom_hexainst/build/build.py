"""Build HexaInst as JSON Lines: the shipped synthetic half, and a natural half drawn from its sources.

The same sources, seed and options give the same bytes. A missing source is an error that names it. The natural half is
omitted only if it was not requested or no source can be reached; a message then reports it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sparcom_data.errors import InvalidInputError, StorageError
from sparcom_data.instructions import Instruction, duplicate_id_problems, text_sha256
from sparcom_data.storage import write_file
from sparcom_hexainst.build.draw import draw, sample
from sparcom_hexainst.build.lengths import count_tokens, match_lengths
from sparcom_hexainst.build.local import Found
from sparcom_hexainst.build.sources import Candidate
from sparcom_hexainst.categories import CATEGORIES, ITEMS
from sparcom_hexainst.check.pairs import Member, contamination, same_texts


@dataclass(frozen=True, slots=True)
class Matching:
    """Options of length matching across categories: tokenizer, tolerance, and whether each half is matched alone."""

    tokenizer: Path
    tolerance: float = 0.0
    within_halves: bool = False


@dataclass(frozen=True, slots=True)
class NaturalHalf:
    """Sources of the natural half: files per category, and the commit of each source that was read on the hub."""

    found: Sequence[Found]
    revisions: Mapping[str, str] = field(default_factory=dict)


def natural_instructions(half: NaturalHalf, seed: int, apart: Sequence[str], items: int = ITEMS) -> list[Instruction]:
    """Return `items` instructions per category.

    Args:
        apart: texts (of the synthetic half); no drawn instruction may be a near-duplicate of one.

    Raises:
        InvalidInputError: sources have too few instructions; lists every such source.
    """
    problems: list[str] = []
    instructions: list[Instruction] = []
    for found in half.found:
        if found.prepared is not None:
            candidates = list(found.candidates())
            drawn, of = sample(candidates, items, seed), f"{len(candidates)} in {found.prepared}"
        else:
            drawn = draw(found.candidates(), items, seed, apart)
            of = f"{len(drawn)} suitable distinct ones in {len(found.files)} files of {found.source.title}"
        if len(drawn) < items:
            problems.append(f"{found.category}: {items} natural instructions are needed; there are {of}. Add more")
        revision = half.revisions.get(found.source.name, "")
        instructions += [_natural(item, number, revision) for number, item in enumerate(drawn, start=1)]
    problems += duplicate_id_problems(item.id for item in instructions)
    problems += _repeated(instructions, apart)
    if problems:
        raise InvalidInputError(problems)
    return instructions


def _repeated(instructions: Sequence[Instruction], apart: Sequence[str]) -> list[str]:
    """Return problems of texts that a prepared file repeats or shares with the synthetic half. A draw skips these."""
    members = [Member(item.source, item) for item in instructions]
    kept_apart = [Member("the synthetic half", Instruction(id=str(n), text=text)) for n, text in enumerate(apart)]
    found = [*same_texts(members), *contamination([*kept_apart, *members])]
    return [f"{finding.id} ({finding.where}): {finding.message}" for finding in found if finding.level == "error"]


def _natural(candidate: Candidate, number: int, revision: str) -> Instruction:
    return Instruction(
        id=candidate.id or f"{candidate.category.lower()}-n-{number:04}",
        text=candidate.text,
        category=candidate.category,
        half="natural",
        source=candidate.source,
        license=candidate.license,
        sha256=text_sha256(candidate.text),
        metadata={**(candidate.metadata or {}), **({"revision": revision} if revision else {})} or None,
    )


def matched(instructions: Sequence[Instruction], matching: Matching) -> list[Instruction]:
    """Return the largest subset in which all categories have the same token counts, in the original order.

    Matching over both halves may fill one category from one half and another category from the other: the categories
    then differ in source instead of length. With `within_halves`, each half is matched alone.

    Raises:
        InvalidInputError: there is no tokenizer, or no length occurs in all categories.
    """
    counts = count_tokens([item.readable for item in instructions], matching.tokenizer).tolist()
    sides = [item.half if matching.within_halves else "" for item in instructions]
    chosen: list[int] = []
    for side in dict.fromkeys(sides):
        positions = {
            name: [
                position
                for position, item in enumerate(instructions)
                if (item.category, sides[position]) == (name, side)
            ]
            for name in CATEGORIES
        }
        lengths = {name: [counts[position] for position in found] for name, found in positions.items()}
        kept = match_lengths(lengths, matching.tolerance)
        chosen += [positions[name][index] for name, indices in kept.items() for index in indices]
    if not chosen:
        raise InvalidInputError(
            f"lengths within {matching.tolerance:.0%} must exist in all categories; none do: give a larger tolerance"
        )
    return [instructions[position] for position in sorted(chosen)]


def as_lines(instructions: Sequence[Instruction]) -> bytes:
    """Return JSON Lines in UTF-8, with fields in the order of the published files and empty fields omitted."""
    order = ("id", "category", "half", "source", "license", "sha256", "metadata", "text", "messages", "token_ids")
    lines = []
    for item in instructions:
        fields = item.model_dump(exclude_defaults=True)
        lines.append(json.dumps({name: fields[name] for name in order if name in fields}, ensure_ascii=False))
    return "".join(f"{line}\n" for line in lines).encode()


def write_new(path: Path, content: bytes, overwrite: bool = False) -> bool:
    """Write a file atomically; return False if it already exists with the same bytes.

    Raises:
        InvalidInputError: the path exists with other contents and may not be overwritten.
        StorageError: the file could not be written.
    """
    try:
        if path.exists() and not overwrite:
            if path.is_file() and path.read_bytes() == content:
                return False
            raise InvalidInputError(
                f"{path} already exists with other contents; choose another --output or --overwrite"
            )
        write_file(path, [content])
    except (OSError, StorageError) as error:
        reason = error.__cause__ or error
        raise StorageError(f"{path} could not be written ({reason}); nothing was left behind") from error
    return True
