"""Natural instructions from a local folder.

For each category, a prepared file is used (`cls.jsonl`, …: curated instructions with text, source and licence).
Otherwise the category's source is used, as its authors or the hub publish it; its file name identifies it.
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
    """The origin of a category's instructions: a prepared file, or the files of a source."""

    category: str
    source: Source
    prepared: Path | None
    files: tuple[Path, ...]

    def candidates(self) -> Iterator[Candidate]:
        """Yield the candidates of this category."""
        if self.prepared is not None:
            yield from prepared_candidates(self.prepared, self.category)
            return
        yield from source_candidates(self.source, self.files, self.category)


def source_candidates(source: Source, files: tuple[Path, ...], category: str) -> Iterator[Candidate]:
    """Yield the candidates for one category in the files of a source."""
    for path in files:
        for record in read_records(path):
            candidate = source.extract(record)
            if candidate is not None and candidate.category == category:
                yield candidate


def find_sources(folder: Path) -> list[Found]:
    """Return the files in the folder for each category, in the order of categories.

    Raises:
        InvalidInputError: the path is no folder, or lacks sources; lists every missing one.
    """
    if not folder.is_dir():
        raise InvalidInputError(f"--natural must name a folder; {folder} is not one. Give another path")
    found = [_find(folder, category) for category in CATEGORIES]
    problems = [
        f"{item.category}: {folder} has neither {item.category.lower()}.jsonl (prepared instructions) nor "
        f"{item.source.title} (a file or folder whose name begins with {' or '.join(map(repr, item.source.local))}, of "
        f"{', '.join(ENDINGS)}). Put it there, or omit --natural to draw from the Hugging Face hub "
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
    """Yield the instructions of a prepared file.

    Raises:
        InvalidInputError: lines are no instructions, have no text, name another category or half, or have a hash of
            another text; lists them all.
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
        return f"{item.id}: an instruction of the natural half must have `text`; give it"
    if item.category not in ("", category):
        return f"{item.id}: category must be {category} in this file; it is {item.category!r}. Move or correct the line"
    if item.half not in ("", "natural"):
        return f"{item.id}: half must be 'natural' in this file; it is {item.half!r}. Move or correct the line"
    if item.sha256 not in ("", text_sha256(item.text)):
        return f"{item.id}: sha256 must be that of the text, which was changed or cut; copy it from its source again"
    return ""
