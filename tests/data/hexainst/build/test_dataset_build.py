"""Building gives the same bytes each time, records source and hash of every item, and writes files atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sparcom_data.errors import InvalidInputError, StorageError
from sparcom_data.instructions import Instruction, read_jsonl, text_sha256
from sparcom_hexainst.build.build import Matching, NaturalHalf, as_lines, matched, natural_instructions, write_new
from sparcom_hexainst.build.local import Found, find_sources
from sparcom_hexainst.build.sources import SOURCES
from sparcom_hexainst.categories import CATEGORIES

FIELDS = {
    "flan": "inputs",
    "humaneval": "prompt",
    "triviaqa": "question",
    "alpaca": "instruction",
    "math500": "problem",
}
TASKS = {"CLS": "sst2", "SUM": "xsum"}


def text_of(category: str, number: int) -> str:
    """Return a text of the category that shares no four words with another."""
    start = {"GEN": "Write about", "SUM": "Summarize:"}.get(category, "Answer this:")
    return f"{start} {category}{number} a{number} b{number} c{number}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Local copies of the five sources, 12 records per category."""
    place = tmp_path / "sources"
    place.mkdir()
    for source in SOURCES:
        records = [
            {FIELDS[source.name]: text_of(category, number), "task": TASKS.get(category, "")}
            for category in source.categories
            for number in range(12)
        ]
        write(place / f"{source.name}.jsonl", records)
    return place


def write(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_every_item_records_its_source(folder: Path) -> None:
    """Items have ids by category and number, half, source, licence and text hash, in the requested number."""
    items = natural_instructions(NaturalHalf(find_sources(folder)), seed=0, apart=[], items=10)
    assert [item.id for item in items] == [f"{name.lower()}-n-{n:04}" for name in CATEGORIES for n in range(1, 11)]
    by_category = {name: source.name for source in SOURCES for name in source.categories}
    for item in items:
        assert item.half == "natural"
        assert item.source.split(":")[0] == by_category[item.category]
        assert item.license
        assert item.sha256 == text_sha256(item.readable)
        assert item.metadata is None


def test_built_lines_are_read_back(folder: Path, tmp_path: Path) -> None:
    """Written lines hold every field in the order of the published files, one JSON object per line."""
    items = natural_instructions(NaturalHalf(find_sources(folder)), seed=0, apart=[], items=10)
    (tmp_path / "a.jsonl").write_bytes(as_lines(items))
    assert read_jsonl(tmp_path / "a.jsonl") == items
    first = json.loads((tmp_path / "a.jsonl").read_bytes().splitlines()[0])
    assert list(first) == ["id", "category", "half", "source", "license", "sha256", "text"]


def test_lines_keep_every_field() -> None:
    """Lines keep every field of an instruction: metadata, conversations, token ids, text in any script."""
    items = [
        Instruction(id="a", text="请\u2028Grüße\n\x00", category="QA", metadata={"revision": "r", "page": [1, None]}),
        Instruction(id="b", token_ids=(1, 2), license="MIT"),
        Instruction.model_validate({"id": "c", "messages": [{"role": "user", "content": "Hi"}], "half": "synthetic"}),
    ]
    lines = as_lines(items).split(b"\n")
    assert lines.pop() == b""
    assert [Instruction.model_validate_json(line) for line in lines] == items
    assert "请" in as_lines(items).decode()


def test_a_draw_is_repeated_and_a_seed_changes_it(folder: Path) -> None:
    """The same sources and seed give the same bytes; another seed gives other items."""
    builds = [as_lines(natural_instructions(NaturalHalf(find_sources(folder)), seed, [], 8)) for seed in (0, 0, 1)]
    assert builds[0] == builds[1] != builds[2]


def test_nothing_near_the_synthetic_half_is_drawn(folder: Path) -> None:
    """A draw skips texts that overlap with the synthetic half."""
    near = text_of("QA", 3) + " and more"
    items = natural_instructions(NaturalHalf(find_sources(folder)), seed=0, apart=[near], items=11)
    assert text_of("QA", 3) not in {item.text for item in items}


def test_prepared_items_keep_their_metadata(folder: Path) -> None:
    """Prepared lines keep id, source, licence and metadata, plus the commit if any.

    A line that repeats a text of the synthetic half is refused.
    """
    lines = [{"id": f"m{n}", "text": text_of("CLS", n), "source": f"here:{n}", "license": "MIT"} for n in range(9)]
    write(folder / "cls.jsonl", [{**line, "metadata": {"page": n}} for n, line in enumerate(lines)])
    half = NaturalHalf(find_sources(folder), {"flan": "f" * 40})
    with pytest.raises(InvalidInputError, match=r"\(the synthetic half\): shares 100% .* with m2 \(here:2\)"):
        natural_instructions(half, seed=0, apart=[text_of("CLS", 2)], items=9)
    items = natural_instructions(half, seed=0, apart=[], items=9)
    assert [(item.id, item.source, item.license, item.metadata) for item in items[:9]] == [
        (f"m{n}", f"here:{n}", "MIT", {"page": n, "revision": "f" * 40}) for n in range(9)
    ]
    assert items[-1].metadata == {"revision": "f" * 40}
    assert items[10].metadata is None


def test_a_prepared_text_may_occur_once(folder: Path) -> None:
    """A draw skips a repeated text; in a prepared file, it is reported by id."""
    lines = [{"id": f"m{n}", "text": text_of("CLS", min(n, 7)), "license": "MIT"} for n in range(9)]
    write(folder / "cls.jsonl", lines)
    with pytest.raises(InvalidInputError, match=r"m8 .*same text as m7"):
        natural_instructions(NaturalHalf(find_sources(folder)), seed=0, apart=[], items=9)


def test_every_category_with_too_few_items_is_reported(folder: Path) -> None:
    """Each source with too few items is reported with their number; no shorter set is built."""
    write(folder / "qa.jsonl", [{"id": f"m{n}", "text": text_of("QA", n)} for n in range(4)])
    write(folder / "math500.jsonl", [{"problem": f"Find {text_of('MATH', 0)} {n}"} for n in range(50)])
    with pytest.raises(InvalidInputError) as caught:
        natural_instructions(NaturalHalf(find_sources(folder)), seed=0, apart=[], items=12)
    qa, math = caught.value.problems
    assert qa == f"QA: 12 natural instructions are needed; there are 4 in {folder / 'qa.jsonl'}. Add more"
    assert math.startswith("MATH: 12 natural instructions are needed; there are 1 suitable distinct ones in 1 files of")


def test_ids_shared_by_prepared_files_are_reported(folder: Path) -> None:
    """Prepared files of two categories may not share an id."""
    for name in ("qa", "gen"):
        write(folder / f"{name}.jsonl", [{"id": f"m{n}", "text": text_of(name.upper(), n)} for n in range(2)])
    with pytest.raises(InvalidInputError, match="'m0' occurs 2 times"):
        natural_instructions(NaturalHalf(find_sources(folder)), seed=0, apart=[], items=2)


def word_tokenizer(folder: Path) -> Path:
    """A tokenizer with one token per word."""
    tokenizers = pytest.importorskip("tokenizers", reason="the extra `dataset` is not installed")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?"))  # noqa: S106
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def of_lengths(category: str, *lengths: int) -> list[Instruction]:
    return [
        Instruction(id=f"{category}{number}", category=category, text=" ".join(["word"] * length))
        for number, length in enumerate(lengths)
    ]


def test_a_length_matched_view_has_the_same_lengths_everywhere(tmp_path: Path) -> None:
    """Kept items have the same token counts in all categories and keep their order."""
    lengths = {name: (4, 7 + rank, 4, 5) for rank, name in enumerate(CATEGORIES)}
    items = [item for name, counts in lengths.items() for item in of_lengths(name, *counts)]
    kept = matched(items, Matching(word_tokenizer(tmp_path)))
    assert [item.id for item in kept] == [f"{name}{number}" for name in CATEGORIES for number in (0, 2, 3)]
    wide = matched(items, Matching(tmp_path, tolerance=0.8))
    assert wide == items


def test_disjoint_lengths_are_an_error(tmp_path: Path) -> None:
    """If a category shares no length with others, an error gives the remedy, and no empty file is written."""
    items = [item for name in CATEGORIES for item in of_lengths(name, 50 if name == "SUM" else 5)]
    with pytest.raises(
        InvalidInputError, match="within 10% must exist in all categories; none do: give a larger tolerance"
    ):
        matched(items, Matching(word_tokenizer(tmp_path), 0.1))


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_file_is_written_once(tmp_path: Path) -> None:
    """New contents are written with their folders, readable for others; equal contents are left alone and reported."""
    path = tmp_path / "deep" / "er" / "a.jsonl"
    assert write_new(path, b"one\n")
    before = path.stat()
    assert not write_new(path, b"one\n")
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert before.st_mode & 0o777 == 0o644
    assert listing(path.parent) == {"a.jsonl": b"one\n"}


def test_another_file_is_not_replaced_unasked(tmp_path: Path) -> None:
    """Other contents, and a folder of that name, are refused and left unchanged unless overwriting is requested."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"mine\n")
    with pytest.raises(InvalidInputError, match=r"a\.jsonl already exists with other contents; .*--overwrite"):
        write_new(path, b"other\n")
    assert listing(tmp_path) == {"a.jsonl": b"mine\n"}
    assert write_new(path, b"other\n", overwrite=True)
    assert listing(tmp_path) == {"a.jsonl": b"other\n"}
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidInputError, match="already exists with other contents"):
        write_new(tmp_path / "folder", b"x")


@dataclass(frozen=True)
class Failure:
    """One way in which a write fails, and the error raised."""

    raised: type[BaseException]
    seen: type[BaseException]


@pytest.mark.parametrize(
    "failure", [Failure(OSError, StorageError), Failure(KeyboardInterrupt, KeyboardInterrupt)], ids=["disk", "stop"]
)
@pytest.mark.parametrize("before", [None, b"mine\n"])
def test_an_interrupted_write_keeps_the_old_file(
    failure: Failure, before: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk or Ctrl-C during a write leaves the old file or none, and nothing beside it."""
    if before is not None:
        (tmp_path / "a.jsonl").write_bytes(before)

    def fail(_: int) -> None:
        raise failure.raised(28, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(failure.seen):
        write_new(tmp_path / "a.jsonl", b"other\n" * 1000, overwrite=True)
    assert listing(tmp_path) == ({} if before is None else {"a.jsonl": before})


def test_an_unwritable_path_is_an_error(tmp_path: Path) -> None:
    """A file in place of a folder is an error with path and reason."""
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/a\.jsonl could not be written .*(Not a directory|File exists)"):
        write_new(tmp_path / "file" / "a.jsonl", b"x")


def test_prepared_files_take_precedence_over_sources(folder: Path) -> None:
    """The six categories come in order; prepared files take precedence over sources."""
    write(folder / "math.jsonl", [{"id": "m", "text": "1+1?"}])
    found: list[Found] = find_sources(folder)
    assert [item.category for item in found] == list(CATEGORIES)
    assert [item.prepared is not None for item in found] == [name == "MATH" for name in CATEGORIES]
