"""Natural instructions from a folder of the user's.

For each category: a prepared file (`cls.jsonl`, … lines of instructions with text, source and licence, chosen by
somebody already), else the category's source as its authors or the hub publish it, found by the beginning of its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sparcom_data.errors import InvalidInputError
from sparcom_data.instructions import Instruction, read_jsonl, text_sha256
from sparcom_hexainst.build.records import ENDINGS, is_readable, read_records
from sparcom_hexainst.build.sources import SOURCES, Candidate, Source
from sparcom_hexainst.categories import CATEGORIES

UNKNOWN_LICENCE = "unknown"


@dataclass(frozen=True, slots=True)
class Found:
    """Where a category's instructions come from: a prepared file, or the files of a source."""

    category: str
    source: Source
    prepared: Path | None
    files: tuple[Path, ...]

    def candidates(self) -> Iterator[Candidate]:
        """The candidates of this category."""
        if self.prepared is not None:
            yield from prepared_candidates(self.prepared, self.category)
            return
        yield from source_candidates(self.source, self.files, self.category)


def source_candidates(source: Source, files: tuple[Path, ...], category: str) -> Iterator[Candidate]:
    """What the files of a source offer for one category."""
    for path in files:
        for record in read_records(path):
            candidate = source.extract(record)
            if candidate is not None and candidate.category == category:
                yield candidate


def find_sources(folder: Path) -> list[Found]:
    """What is in the folder for each category, in their order.

    Raises:
        InvalidInputError: the folder is none, or lacks a source; every one that it lacks is named.
    """
    if not folder.is_dir():
        raise InvalidInputError(f"natural instructions are read from a folder; {folder} is none. Name another.")
    found = [_find(folder, category) for category in CATEGORIES]
    problems = [
        f"{item.category}: {folder} has neither {item.category.lower()}.jsonl (prepared instructions) nor "
        f"{item.source.title} (a file or folder whose name begins with {' or '.join(map(repr, item.source.local))}, of "
        f"{', '.join(ENDINGS)}). Put it there, or leave --natural out to draw from the Hugging Face hub "
        f"({item.source.hub.dataset})"
        for item in found
        if item.prepared is None and not item.files
    ]
    if problems:
        raise InvalidInputError(problems)
    return found


def _find(folder: Path, category: str) -> Found:
    (source,) = [source for source in SOURCES if category in source.categories]
    entries = sorted(folder.iterdir())
    prepared = next((path for path in entries if path.name.lower() == f"{category.lower()}.jsonl"), None)
    files = [
        file
        for entry in entries
        if entry.name.lower().startswith(source.local)
        for file in (sorted(entry.rglob("*")) if entry.is_dir() else [entry])
        if is_readable(file)
    ]
    return Found(category, source, prepared, tuple(files))


def prepared_candidates(path: Path, category: str) -> Iterator[Candidate]:
    """The instructions of a prepared file.

    Raises:
        InvalidInputError: lines that are no instructions, have no text, are of another category or half, or whose
            hash is another text's; all are named.
    """
    instructions = read_jsonl(path)
    problems = [problem for item in instructions if (problem := _problem(item, category))]
    if problems:
        raise InvalidInputError([f"{path.name}: {problem}" for problem in problems])
    for item in instructions:
        source = item.source or f"{path.name}:{item.id}"
        yield Candidate(
            category, source, item.license or UNKNOWN_LICENCE, item.text or "", id=item.id, metadata=item.metadata
        )


def _problem(item: Instruction, category: str) -> str:
    if item.text is None:
        return f"{item.id}: an instruction of the natural half is a text; give `text`"
    if item.category not in ("", category):
        return f"{item.id}: the file is for {category}, the line says {item.category!r}; move it, or mend the category"
    if item.half not in ("", "natural"):
        return f"{item.id}: the file is for the natural half, the line says {item.half!r}; move it, or mend the half"
    if item.sha256 not in ("", text_sha256(item.text)):
        return f"{item.id}: sha256 must be that of the text, which was changed or cut; take it from its source again"
    return ""
