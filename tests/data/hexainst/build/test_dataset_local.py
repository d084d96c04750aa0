"""Natural instructions from a folder: every published format is read; missing or broken files are named."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparcom_data.errors import InvalidInputError
from sparcom_data.instructions import text_sha256
from sparcom_hexainst.build.local import Found, find_sources
from sparcom_hexainst.build.records import is_readable, read_records

RECORDS: list[dict[str, Any]] = [{"question": f"Who was number {n}?", "question_id": f"q{n}"} for n in range(3)]


def json_lines(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record) + "\n\n" for record in records).encode()


def write_parquet(path: Path, records: list[dict[str, Any]]) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `dataset` is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(records), path, row_group_size=2)


FORMS: dict[str, Callable[[Path], object]] = {
    "x.jsonl": lambda path: path.write_bytes(json_lines(RECORDS)),
    "x.JSONL": lambda path: path.write_bytes(b"\xef\xbb\xbf" + json_lines(RECORDS).replace(b"\n", b"\r\n")),
    "x.json": lambda path: path.write_text(json.dumps(RECORDS)),
    "data.json": lambda path: path.write_text(json.dumps({"Data": RECORDS, "Version": 1.0, "VerifyEval": False})),
    "x.jsonl.gz": lambda path: path.write_bytes(gzip.compress(json_lines(RECORDS))),
    "x.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps({"Data": RECORDS}).encode())),
    "x.parquet": lambda path: write_parquet(path, RECORDS),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_format_gives_the_same_records(name: str, tmp_path: Path) -> None:
    """JSON Lines, a list, an object that holds one, gzip and Parquet give the same records in the same order."""
    FORMS[name](tmp_path / name)
    assert is_readable(tmp_path / name)
    assert list(read_records(tmp_path / name)) == [{**record, "task": name.partition(".")[0]} for record in RECORDS]


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("sst2_10templates_test.jsonl", "sst2"),
        ("paws_wiki_10templates_validation_0_10000.jsonl", "paws_wiki"),
        ("ag_news_subset-train-00000-of-00001.json", "ag_news_subset"),
        ("cb_dev.jsonl", "cb"),
        ("testimony.jsonl", "testimony"),
    ],
)
def test_a_record_without_a_task_has_its_files_name(name: str, task: str, tmp_path: Path) -> None:
    """The split in a file's name is not part of the task; a record's own task takes precedence."""
    (tmp_path / name).write_text('[{"inputs": "a"}, {"inputs": "b", "task": "own"}]'.replace("}, {", "},{"))
    if name.endswith("l"):
        (tmp_path / name).write_text('{"inputs": "a"}\n{"inputs": "b", "task": "own"}')
    assert [record["task"] for record in read_records(tmp_path / name)] == [task, "own"]


def damaged_gzip() -> bytes:
    data = bytearray(gzip.compress(json_lines(RECORDS * 50)))
    data[40:60] = b"\xff" * 20
    return bytes(data)


def damaged_parquet(path: Path) -> None:
    write_parquet(path, RECORDS * 50)
    data = bytearray(path.read_bytes())
    data[10:200] = b"\xff" * 190
    path.write_bytes(data)


BROKEN: dict[str, tuple[str, Callable[[Path], object]]] = {
    "not JSON": ("x.jsonl", lambda path: path.write_bytes(json_lines(RECORDS) + b"{")),
    "not an object": ("x.jsonl", lambda path: path.write_bytes(b"{}\n[1]")),
    "not a list": ("x.json", lambda path: path.write_text('{"a": 1}')),
    "two lists": ("x.json", lambda path: path.write_text('{"a": [], "b": []}')),
    "a list of lists": ("x.json", lambda path: path.write_text("[[1]]")),
    "a number": ("x.json", lambda path: path.write_text("7")),
    "deep nesting": ("x.json", lambda path: path.write_bytes(b"[" * 100_000)),
    "not UTF-8": ("x.jsonl", lambda path: path.write_bytes(b'{"a": "\xff"}')),
    "not gzip": ("x.jsonl.gz", lambda path: path.write_bytes(json_lines(RECORDS))),
    "a truncated gzip": ("x.jsonl.gz", lambda path: path.write_bytes(gzip.compress(json_lines(RECORDS))[:-12])),
    "a damaged gzip": ("x.jsonl.gz", lambda path: path.write_bytes(damaged_gzip())),
    "not Parquet": ("x.parquet", lambda path: path.write_bytes(json_lines(RECORDS))),
    "an empty Parquet": ("x.parquet", lambda path: path.touch()),
    "a truncated Parquet": (
        "x.parquet",
        lambda path: (write_parquet(path, RECORDS), path.write_bytes(path.read_bytes()[:-9])),
    ),
    "a damaged Parquet": ("x.parquet", damaged_parquet),
    "nothing": ("x.jsonl", lambda _: None),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named_with_a_remedy(case: str, tmp_path: Path) -> None:
    """Any fault within a file is one error with its path and the remedy."""
    name, write = BROKEN[case]
    write(tmp_path / name)
    with pytest.raises(InvalidInputError) as caught:
        list(read_records(tmp_path / name))
    (problem,) = caught.value.problems
    assert problem.startswith(f"{tmp_path / name} cannot be read (")
    assert problem.endswith("): fetch it again, or remove it")


def fill(folder: Path) -> None:
    """Write all six categories, each in a possible form on disk."""
    (folder / "FLAN").mkdir()
    (folder / "FLAN" / "test").mkdir()
    (folder / "FLAN" / "README.md").write_text("Two tasks.")
    (folder / "FLAN" / "test" / "sst2_10templates_test.jsonl").write_text('{"inputs": "Good or bad? Fine."}')
    (folder / "FLAN" / "xsum_10templates_test.jsonl").write_text('{"inputs": "Summarize: rain fell."}')
    (folder / "HumanEval.jsonl.gz").write_bytes(gzip.compress(b'{"task_id": "HumanEval/1", "prompt": "def f(): pass"}'))
    (folder / "wikipedia-dev.json").write_text('{"Data": [{"Question": "Who sings?", "QuestionId": "q"}]}')
    (folder / "alpaca_data.json").write_text('[{"instruction": "Write a poem.", "input": "", "output": ""}]')
    (folder / "MATH-500.jsonl").write_text('{"problem": "What is 2+2?", "unique_id": "u", "subject": "Algebra"}')


def by_category(found: list[Found]) -> dict[str, list[str]]:
    return {item.category: [candidate.text for candidate in item.candidates()] for item in found}


TEXTS = {
    "CLS": ["Good or bad? Fine."],
    "CODE": ["def f(): pass"],
    "QA": ["Who sings?"],
    "GEN": ["Write a poem."],
    "MATH": ["What is 2+2?"],
    "SUM": ["Summarize: rain fell."],
}


def test_sources_are_found_by_their_names(tmp_path: Path) -> None:
    """Files and folders named by the authors or the hub are found in any case; each category gets its own records."""
    fill(tmp_path)
    assert by_category(find_sources(tmp_path)) == TEXTS


def test_a_prepared_file_goes_before_its_source(tmp_path: Path) -> None:
    """Prepared lines are taken unchanged, with their own id, source, licence and metadata."""
    fill(tmp_path)
    line = {"id": "mine", "text": " Odd? ", "source": "here:1", "license": "MIT", "metadata": {"page": 3}}
    (tmp_path / "Cls.jsonl").write_text(json.dumps(line) + "\n" + json.dumps({"id": "b", "text": "Even?"}))
    found = find_sources(tmp_path)
    assert by_category(found) == {**TEXTS, "CLS": [" Odd? ", "Even?"]}
    first, second = found[0].candidates()
    assert (first.id, first.source, first.license, first.metadata) == ("mine", "here:1", "MIT", {"page": 3})
    assert (second.source, second.license, second.metadata) == ("Cls.jsonl:b", "unknown", None)


def test_all_missing_sources_are_named_at_once(tmp_path: Path) -> None:
    """Each category without a source gets one sentence: expected names, folder and remedies."""
    (tmp_path / "qa.jsonl").write_text('{"id": "a", "text": "Who sings?"}')
    (tmp_path / "alpaca.txt").write_text("of no format that is read")
    with pytest.raises(InvalidInputError) as caught:
        find_sources(tmp_path)
    problems = dict(problem.split(": ", 1) for problem in caught.value.problems)
    assert list(problems) == ["CLS", "CODE", "GEN", "MATH", "SUM"]
    for category, name, dataset in [
        ("CLS", "'flan'", "Muennighoff/flan"),
        ("CODE", "'humaneval' or 'openai_humaneval'", "openai/openai_humaneval"),
        ("GEN", "'alpaca'", "tatsu-lab/alpaca"),
        ("MATH", "'math500' or 'math-500'", "HuggingFaceH4/MATH-500"),
        ("SUM", "'flan'", "Muennighoff/flan"),
    ]:
        assert f"{tmp_path} has neither {category.lower()}.jsonl" in problems[category]
        assert f"begins with {name}" in problems[category]
        assert ".jsonl, .json, .jsonl.gz, .json.gz, .parquet). Put it there, or omit --natural" in problems[category]
        assert f"({dataset})" in problems[category]


@pytest.mark.parametrize("name", ["gone", "file"])
def test_a_path_that_is_not_a_folder_is_refused(name: str, tmp_path: Path) -> None:
    """A missing folder and a file are refused with the path."""
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInputError, match=f"{tmp_path / name} is not one. Give another path"):
        find_sources(tmp_path / name)


def test_faults_of_a_prepared_file_are_reported_together(tmp_path: Path) -> None:
    """Token ids, another category, another half and another text's hash give one sentence each, with file and id."""
    fill(tmp_path)
    lines = [
        {"id": "good", "text": "Odd?", "category": "CLS", "half": "natural", "sha256": text_sha256("Odd?")},
        {"id": "tokens", "token_ids": [1, 2]},
        {"id": "other", "text": "Even?", "category": "MATH"},
        {"id": "ours", "text": "Prime?", "half": "synthetic"},
        {"id": "cut", "text": "Squ", "sha256": text_sha256("Square?")},
    ]
    (tmp_path / "cls.jsonl").write_bytes(json_lines(lines))
    with pytest.raises(InvalidInputError) as caught:
        list(find_sources(tmp_path)[0].candidates())
    assert [problem.split(": ")[:2] for problem in caught.value.problems] == [
        ["cls.jsonl", name] for name in ("tokens", "other", "ours", "cut")
    ]
    for problem, part in zip(
        caught.value.problems, ["must have `text`", "'MATH'", "'synthetic'", "changed or cut"], strict=True
    ):
        assert part in problem
