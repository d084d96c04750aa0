"""Instruction files: all problems at once, each with its location, and a hash that identifies the batch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparcom_data.errors import InvalidInputError
from sparcom_data.instructions import Instruction, check_batch, dataset_sha256, read_jsonl

GOOD = b'{"id": "good", "text": "t"}'

# A line that breaks a rule, and parts of the expected problem besides the location.
BROKEN_LINES: dict[str, tuple[bytes, list[str]]] = {
    "not JSON": (b'{"id": "a", "text": }', ["not JSON", "column 21"]),
    "not UTF-8": (b'{"id": "a", "text": "\xff"}', ["not UTF-8", "byte 22"]),
    "not an object": (b"[1, 2]", ["dictionary"]),
    "null": (b"null", ["dictionary"]),
    "no id": (b'{"text": "t"}', ["id: Field required"]),
    "empty id": (b'{"id": "", "text": "t"}', ["id:", "at least 1 character"]),
    "id of 513 characters": (b'{"id": "' + b"x" * 513 + b'", "text": "t"}', ["id:", "at most 512"]),
    "id is a number": (b'{"id": 7, "text": "t"}', ["id:", "string", "got 7"]),
    "unknown field": (b'{"id": "a", "txt": "t", "text": "t"}', ["txt: unknown field", "mean 'text'?"]),
    "field of no meaning": (b'{"id": "a", "zzz": "t", "text": "t"}', ["zzz: unknown field; check its spelling"]),
    "field of a message": (
        b'{"id": "a", "messages": [{"role": "user", "content": "c", "txt": 1}]}',
        ["messages.0.txt: unknown field; check its spelling"],
    ),
    "no content": (b'{"id": "a"}', ["exactly one of text, messages and token_ids", "found none"]),
    "text and token_ids": (b'{"id": "a", "text": "t", "token_ids": [1]}', ["exactly one", "text and token_ids"]),
    "empty text": (b'{"id": "a", "text": ""}', ["text must not be empty"]),
    "text of spaces": (b'{"id": "a", "text": " \\n "}', ["text must not be empty"]),
    "no messages": (b'{"id": "a", "messages": []}', ["messages must not be empty"]),
    "unknown role": (b'{"id": "a", "messages": [{"role": "bot", "content": "c"}]}', ["messages.0.role:", "'system'"]),
    "empty message": (b'{"id": "a", "messages": [{"role": "user", "content": ""}]}', ["messages.0.content:"]),
    "no token ids": (b'{"id": "a", "token_ids": []}', ["token_ids must not be empty"]),
    "token id below 0": (b'{"id": "a", "token_ids": [4, -1]}', ["token_ids.1:", "greater than or equal to 0", "-1"]),
    "token id above int32": (b'{"id": "a", "token_ids": [2147483648]}', ["token_ids.0:", "2147483647"]),
    "token id is true": (b'{"id": "a", "token_ids": [true]}', ["token_ids.0:", "integer"]),
    "half a surrogate pair": (b'{"id": "a", "text": "ab\\ud800"}', ["text:", "character 3", "U+D800"]),
    "half a pair in metadata": (b'{"id": "a", "text": "t", "metadata": {"k": "\\udfff"}}', ["metadata:", "U+DFFF"]),
    "a very long number": (b'{"id": "a", "metadata": {"n": ' + b"9" * 5000 + b"}}", ["cannot be read", "4300"]),
    "deep nesting": (b"[" * 100_000, ["cannot be read", "recursion"]),
}


def problems(path: Path) -> list[str]:
    """Return the problems that read_jsonl reports."""
    with pytest.raises(InvalidInputError) as caught:
        read_jsonl(path)
    return caught.value.problems


@pytest.mark.parametrize("case", BROKEN_LINES)
def test_a_broken_line_is_named_with_its_field(tmp_path: Path, case: str) -> None:
    """The only problem of a line is reported with file, line, field and rule; other lines do not matter."""
    line, expected = BROKEN_LINES[case]
    file = tmp_path / "in.jsonl"
    file.write_bytes(b'{"id": "first", "text": "t"}\n\n' + line + b"\n" + GOOD)
    (found,) = problems(file)
    assert found.startswith("in.jsonl, line 3: ")
    for part in expected:
        assert part in found


def test_every_problem_of_a_file_is_reported_at_once(tmp_path: Path) -> None:
    """A file in which each line breaks another rule reports all problems, in line order."""
    file = tmp_path / "in.jsonl"
    file.write_bytes(b"\n".join(line for line, _ in BROKEN_LINES.values()) + b"\n")
    found = problems(file)
    assert [text.split(":")[0] for text in found] == [f"in.jsonl, line {n + 1}" for n in range(len(BROKEN_LINES))]


def test_two_problems_of_one_line_are_both_reported(tmp_path: Path) -> None:
    """Two wrong fields of one line give two problems."""
    file = tmp_path / "in.jsonl"
    file.write_bytes(b'{"id": "", "text": "t", "colour": "red"}')
    assert sorted(text.split(": ")[1] for text in problems(file)) == ["colour", "id"]


@pytest.mark.parametrize("name", ["prompt", "Prompt", "instruction", "question", "content"])
def test_other_names_of_text_are_understood(tmp_path: Path, name: str) -> None:
    """Field names of other data sets get a suggestion."""
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps({"id": "a", name: "What is 2 + 2?"}))
    (found,) = problems(file)
    assert found.startswith(f"in.jsonl, line 1: {name}: unknown field; did you mean 'text'?")


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    """The byte-order mark of Windows editors is ignored."""
    file = tmp_path / "in.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + GOOD)
    assert [item.id for item in read_jsonl(file)] == ["good"]


def test_ids_that_occur_twice_are_named(tmp_path: Path) -> None:
    """Each id that occurs more than once is named with its count; unique ids are not."""
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps({"id": id_, "text": "t"}) + "\n" for id_ in "abcabb"))
    found = problems(file)
    assert [("'a'" in text, "'b'" in text) for text in found] == [(True, False), (False, True)]
    assert ["2 times" in found[0], "3 times" in found[1]] == [True, True]


@pytest.mark.parametrize("content", [b"", b"\n  \n\n"])
def test_a_file_without_instructions_is_refused(tmp_path: Path, content: bytes) -> None:
    """An empty file, or one of blank lines, is an error rather than an empty batch."""
    file = tmp_path / "in.jsonl"
    file.write_bytes(content)
    assert "holds no instruction" in problems(file)[0]


def test_an_unreadable_path_is_named(tmp_path: Path) -> None:
    """A missing file and a folder are errors that name the path and the reason."""
    assert problems(tmp_path / "none.jsonl") == [f"cannot read {tmp_path / 'none.jsonl'}: No such file or directory"]
    assert problems(tmp_path) == [f"cannot read {tmp_path}: Is a directory"]


def test_an_empty_batch_is_refused() -> None:
    """check_batch refuses an empty batch and repeated ids."""
    with pytest.raises(InvalidInputError, match="must not be empty"):
        check_batch([])
    with pytest.raises(InvalidInputError, match="'a' occurs 2 times"):
        check_batch([Instruction(id="a", text="t"), Instruction(id="a", text="u")])


LINES = st.builds(
    lambda id_, content, category: {"id": id_, "category": category} | content,
    st.text(min_size=1, max_size=40),
    st.one_of(
        st.text(min_size=1).filter(str.strip).map(lambda text: {"text": text}),
        st.lists(st.integers(0, 2**31 - 1), min_size=1).map(lambda ids: {"token_ids": ids}),
        st.text(min_size=1).map(lambda text: {"messages": [{"role": "user", "content": text}]}),
    ),
    st.text(max_size=10),
)


@given(st.lists(LINES, min_size=1, unique_by=lambda line: line["id"]), st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_any_instruction_survives_json_lines(
    tmp_path_factory: pytest.TempPathFactory, lines: list[dict[str, Any]], end: str
) -> None:
    """Any instruction, with any Unicode and line ends, is read as written, in order."""
    file = tmp_path_factory.getbasetemp() / "round.jsonl"
    file.write_bytes("".join(json.dumps(line, ensure_ascii=False) + end for line in lines).encode())
    read = read_jsonl(file)
    assert [item.model_dump(mode="json", exclude_defaults=True) for item in read] == [
        {key: value for key, value in line.items() if value != ""} for line in lines
    ]


def test_the_dataset_hash_is_the_one_of_version_1() -> None:
    """The hash is over canonical JSON lines and must never change: archives store it."""
    batch = [
        Instruction(id="a", text="Grüße", category="QA"),
        Instruction(id="b", token_ids=(1, 2)),
        Instruction(id="c", messages=({"role": "user", "content": "x"},), metadata={"k": [1, None]}),  # type: ignore[arg-type]
    ]
    canonical = (
        '{"id":"a","text":"Grüße","category":"QA"}\n'
        '{"id":"b","token_ids":[1,2]}\n'
        '{"id":"c","messages":[{"role":"user","content":"x"}],"metadata":{"k":[1,null]}}\n'
    )
    assert dataset_sha256(batch) == hashlib.sha256(canonical.encode()).hexdigest()


def test_the_dataset_hash_sees_every_change(tmp_path: Path) -> None:
    """Spacing and defaults in the file do not change the hash; content and order do."""
    batch = [Instruction(id="a", text="one"), Instruction(id="b", text="two")]
    file = tmp_path / "in.jsonl"
    file.write_text('{"text" :"one",  "id":"a", "category": ""}\n\n{"id":"b","text":"two"}')
    same = dataset_sha256(read_jsonl(file))
    assert same == dataset_sha256(batch)
    changed = [batch[::-1], batch[:1], [batch[0], Instruction(id="b", text="twO")], [*batch, batch[0]]]
    assert same not in {dataset_sha256(other) for other in changed}
