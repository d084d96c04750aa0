"""Instruction files in each format: JSON Lines, a JSON array or CSV, from a path or standard input."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparcom_data.errors import InvalidInputError
from sparcom_data.instructions.files import STDIN, default_dataset_name, read_instructions

LINES: list[dict[str, Any]] = [
    {"id": "a", "text": 'Say "hi",\nthen go: 1;2', "category": "GEN", "source": "mine"},
    {"id": "b", "messages": [{"role": "user", "content": "Grüße\u2028!"}], "category": "QA"},
    {"id": "c", "token_ids": [1, 2, 3], "metadata": {"k": [None, 1]}},
]
COLUMNS = ("id", "text", "messages", "token_ids", "category", "source", "metadata")
JSON = ("messages", "token_ids", "metadata")


def as_csv(lines: list[dict[str, Any]], delimiter: str = ",", end: str = "\r\n") -> bytes:
    """Return the CSV that a spreadsheet would write."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, COLUMNS, delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    for line in lines:
        writer.writerow({name: json.dumps(value) if name in JSON else value for name, value in line.items()})
    return out.getvalue().encode()


FORMS: dict[str, tuple[str, bytes]] = {
    "JSON lines": ("in.jsonl", "\n\n".join(json.dumps(line) for line in LINES).encode()),
    "JSON lines, another name": ("in.txt", "\r\n".join(json.dumps(line) for line in LINES).encode()),
    "JSON lines called JSON": ("in.json", "\n".join(json.dumps(line) for line in LINES).encode()),
    "JSON array": ("in.json", json.dumps(LINES, indent=2).encode()),
    "JSON array, no suffix": ("in", b"\n " + json.dumps(LINES, ensure_ascii=False).encode()),
    "CSV": ("in.csv", as_csv(LINES)),
    "CSV, another name": ("in.txt", as_csv(LINES, end="\n")),
    "CSV with semicolons": ("in.CSV", as_csv(LINES, ";")),
    "CSV with tabs": ("in.csv", as_csv(LINES, "\t")),
    "CSV with empty rows": ("in.csv", as_csv(LINES) + b"\r\n,,,,,,\r\n\r\n"),
}


def problems(path: Path) -> list[str]:
    with pytest.raises(InvalidInputError) as caught:
        read_instructions(path)
    return caught.value.problems


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "byte order mark"])
@pytest.mark.parametrize("form", FORMS)
def test_every_format_gives_the_same_instructions(tmp_path: Path, form: str, mark: bytes) -> None:
    """Each format gives the same instructions in order, under any name and with a byte-order mark."""
    name, content = FORMS[form]
    (tmp_path / name).write_bytes(mark + content)
    read = read_instructions(tmp_path / name)
    assert [item.model_dump(mode="json", exclude_defaults=True) for item in read] == LINES


@pytest.mark.parametrize("form", FORMS)
def test_standard_input_is_read(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` reads standard input; its first character decides the format."""
    _, content = FORMS[form]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert [item.id for item in read_instructions(STDIN)] == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["in.jsonl", "in.csv"])
def test_custom_id_is_an_id(tmp_path: Path, name: str) -> None:
    """OpenAI's name of the id is accepted in each format, and written as `id`."""
    content = {"in.jsonl": '{"custom_id": "a", "text": "t"}', "in.csv": "custom_id,text\na,t\n"}[name]
    (tmp_path / name).write_text(content)
    (instruction,) = read_instructions(tmp_path / name)
    assert instruction.model_dump_json(exclude_defaults=True) == '{"id":"a","text":"t"}'


def test_problems_of_standard_input_are_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Problems in piped data name standard input."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"id": "a"}\n{')))
    first, second = problems(STDIN)
    assert first.startswith("standard input, line 1: exactly one of text")
    assert second.startswith("standard input, line 2: not JSON")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert problems(STDIN) == ["standard input holds no instruction: give JSON lines, a JSON array or CSV"]


def test_a_data_set_is_named_by_its_file() -> None:
    """The default name is the file's stem; standard input has a name too."""
    assert [default_dataset_name(path) for path in (Path("a/b.csv"), STDIN)] == ["b", "stdin"]


# A file that breaks rules, and how each problem begins.
BROKEN: dict[str, tuple[str, bytes, list[str]]] = {
    "items of an array": (
        "in.json",
        b'[{"id": "a", "text": "t"}, 7, {"id": "b", "prompt": "p"}, {"id": "a", "text": ""}]',
        ["in.json, item 2: Input should be a valid dict",
         "in.json, item 3: prompt: unknown field; did you mean 'text'?",
         "in.json, item 4: text must not be empty"],
    ),
    "ids of an array": ("in.json", b'[{"id": "a", "text": "t"}, {"id": "a", "text": "u"}]', ["ids must be unique"]),
    "custom ids": (
        "in.jsonl",
        b'{"custom_id": "", "text": "t"}\n{"id": "a", "custom_id": "a", "text": "t"}\n'
        b'{"id": "b", "text": "t"}\n{"custom_id": "b", "text": "u"}',
        ["in.jsonl, line 1: custom_id: String should have at least 1",
         "in.jsonl, line 2: the id must be given once; found id and custom_id",
         "ids must be unique within a batch: 'b' occurs 2 times"],
    ),
    "an array that does not end": ("in.json", b'[{"id": "a",\n "text": "t"}', ["in.json: not JSON: Expecting ','"]),
    "an empty array": ("in.json", b"[]", ["{path} holds no instruction"]),
    "an array in bytes": ("in.json", b'["\xff"]', ["in.json: not UTF-8 text: byte 3"]),
    "one object": ("in.json", b'{\n"instructions": []}', ["in.json, item 1: id: F", "in.json, item 1: instructions: "]),
    "an array of lines": ("in.jsonl", b"[1, 2]", ["in.jsonl, line 1: Input should be a valid dict"]),
    "rows": (
        "in.csv",
        b'id,text,token_ids\na,,\n\nb,"t\nu",\n,t,\nc,,[1\nd,,[-1]\ne,t\nf,t,,\nb,x,\n',
        ["in.csv, row 2: exactly one of text, messages and token_ids must be given; found none",
         "in.csv, row 5: id: Field required",
         "in.csv, row 6: token_ids: not JSON",
         "in.csv, row 7: token_ids.0: Input should be greater",
         "in.csv, row 8: a row has one cell for each of the 3 columns; this one has 2",
         "in.csv, row 9: a row has one cell for each of the 3 columns; this one has 4",
         "ids must be unique within a batch: 'b' occurs 2 times"],
    ),
    "columns": (
        "in.csv",
        b"Prompt,colour,colour\nx,y,z\n",
        ["in.csv: column 'colour' occurs 2 times",
         "in.csv: unknown columns: 'Prompt' (did you mean 'text'?), 'colour'. The first row names the columns",
         "in.csv: the column id is missing"],
    ),
    "no content": ("in.csv", b"id,category\na,b\n", ["in.csv: the column text is missing; messages or token_ids"]),
    "a header alone": ("in.csv", b"id,text\n", ["{path} holds no instruction"]),
    "nothing": ("in.csv", b"", ["{path} holds no instruction"]),
    "quotes": ("in.csv", b'id,text\na,t\nb,"open\n', ["in.csv, row 3: not CSV: unexpected end of data"]),
    "bytes": ("in.csv", b"id,text\na,\xe9\n", ["in.csv: not UTF-8 text: byte 11"]),
    "a picture": ("in.png", b"\x89PNG", ["in.png: not UTF-8 text: byte 1"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_every_problem_is_placed(tmp_path: Path, case: str) -> None:
    """All problems are reported at once, in order; array items and CSV rows are numbered, the header being row 1."""
    name, content, expected = BROKEN[case]
    path = tmp_path / name
    path.write_bytes(content)
    found = problems(path)
    assert len(found) == len(expected), found
    for problem, beginning in zip(found, expected, strict=True):
        assert problem.startswith(beginning.replace("{path}", str(path)))


# Text of cells that csv.writer can write so that it can be read again.
CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1).filter(str.strip)


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, unique_by=lambda pair: pair[0]), st.sampled_from(",;\t"))
def test_any_text_survives_csv(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]], delimiter: str
) -> None:
    """Any text, with any quotes, delimiters and Unicode line ends, is read as written."""
    path = tmp_path_factory.getbasetemp() / "round.csv"
    path.write_bytes(as_csv([{"id": id_, "text": text} for id_, text in pairs], delimiter))
    assert [(item.id, item.text) for item in read_instructions(path)] == pairs
