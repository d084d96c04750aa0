"""Every rule fires only where it is broken, and nothing in a file stops the check."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparcom_data.errors import InvalidInputError
from sparcom_data.extras import install_command
from sparcom_data.instructions import text_sha256
from sparcom_hexainst.check.check import CheckOptions, check_files
from sparcom_hexainst.check.findings import RULES, Report

pytest.importorskip("py3langid", reason="the extra `dataset` is not installed")

CLS = [
    "Is a whale a fish or a mammal?",
    "Sort these into fruit and vegetables: plum, leek, pear, carrot.",
    "Does the review below praise the hotel? The beds were hard.",
    "Decide whether seven is odd or even.",
    "Which of the two is a metal, copper or chalk?",
    "Mark this message as urgent or not: the roof leaks.",
    "Tell me if the tone is angry: you broke my bike!",
    "Label the sentence as fact or opinion: tea is nicer than coffee.",
    "Choose the season that fits: leaves fall and geese fly south.",
    "Spam or not? You have won a boat, reply at once.",
]
QA = [
    "Who painted the ceiling of the Sistine Chapel?",
    "Where do emperor penguins raise their young?",
    "What makes bread dough rise before it is baked?",
    "How many strings does an ordinary violin have?",
    "Why do the tides turn twice a day?",
    "When did people first walk on the moon?",
    "Name the longest river of South America.",
    "From which plant is linen made?",
    "In what city does the Danube meet the Sava?",
    "Explain briefly why iron rusts in damp air.",
]
SHORT = ["Odd or even?", "Fish or bird?", "Fact or fable?", "Calm or angry?", "Fruit or root?", "Old or new?"]
SHORT += ["Verb or noun?", "Spam or not?", "Warm or cold?", "Prose or verse?"]
LONG = (  # 13 consecutive words are 10 runs of four, out of 27 in each of the two texts
    "the keeper of the old lighthouse wrote down every single ship that passed",
    "Give a title to a story in which {} although nobody had asked him for such a list.",
    "Rewrite for a child of six, with one picture, the sentence that {} before she went to bed.",
)
Line = dict[str, Any]


def item(id_: str, text: str, category: str = "", **more: object) -> Line:
    return {"id": id_, "text": text, "category": category, "sha256": text_sha256(text), **more}


def sound() -> list[Line]:
    """Twenty instructions that keep every rule."""
    texts = {"CLS": CLS, "QA": QA}
    return [item(f"{name}-{i}", text, name) for name in texts for i, text in enumerate(texts[name])]


def write(path: Path, lines: list[Any]) -> Path:
    """Write values as JSON lines, bytes unchanged."""
    encoded = (line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    path.write_bytes(b"".join(line + b"\n" for line in encoded))
    return path


@pytest.fixture
def checked(tmp_path: Path) -> Callable[..., Report]:
    """Return `checked(lines, **options)`, which gives the report on a file of these lines."""

    def check(lines: list[Any], **options: Any) -> Report:
        return check_files([write(tmp_path / "set.jsonl", lines)], CheckOptions(**options))

    return check


def reworded(position: int, text: str) -> Callable[[list[Line]], None]:
    def edit(lines: list[Line]) -> None:
        lines[position].update(text=text, sha256=text_sha256(text))

    return edit


def halves(natural: Callable[[int], bool], *edits: Callable[[list[Line]], None]) -> Callable[[list[Line]], None]:
    """Set the half of each line by its number within its category."""

    def edit(lines: list[Line]) -> None:
        for number, line in enumerate(lines):
            line["half"] = "natural" if natural(number % 10) else "synthetic"
        for further in edits:
            further(lines)

    return edit


def without_category(lines: list[Line]) -> None:
    del lines[3]["category"], lines[13]["category"]


def no_half_named(lines: list[Line]) -> None:
    for line in lines:
        line["half"] = line["half"].replace("synthetic", "")


def many_alike(lines: list[Line]) -> None:
    for position in range(5):
        reworded(position, f"Please tell me: {lines[position]['text']}")(lines)


def only_short(lines: list[Line]) -> None:
    for position, text in enumerate(SHORT):
        reworded(position, text)(lines)


def two_long(lines: list[Line]) -> None:
    reworded(0, LONG[1].format(LONG[0]))(lines)
    reworded(15, LONG[2].format(LONG[0]))(lines)


NEARLY = "Decide whether seven is odd or a prime."  # shares 3 of its 5 runs with another text
# Edits of the valid set, and the rules that they break.
BREAKS: dict[str, tuple[Callable[[list[Any]], object], set[str]]] = {
    "a line": (lambda lines: lines.append({"id": "x"}), {"line"}),
    "an id twice": (lambda lines: lines[4].update(id="QA-4"), {"id"}),
    "another text's hash": (lambda lines: lines[4].update(text="Is copper a metal or is chalk one?"), {"hash"}),
    "the same text": (reworded(4, "  DECIDE whether seven  is odd\nor even."), {"duplicate", "slip"}),
    "half of the runs": (reworded(4, NEARLY), {"near-duplicate"}),
    "half of the runs, one half": (halves(lambda _: False, reworded(4, NEARLY)), {"near-duplicate"}),
    "an unknown half": (lambda lines: [line.update(half="natral") for line in lines], {"half"}),
    "a source's template": (halves(lambda _: True, reworded(4, NEARLY)), {"template"}),
    "half of the runs, two halves": (halves(lambda number: number % 2 == 0, reworded(4, NEARLY)), {"contamination"}),
    "the same text, two halves": (
        halves(lambda number: number % 2 == 0, reworded(4, CLS[3])),
        {"contamination", "duplicate"},
    ),
    "half of the runs, natural and no half": (
        halves(lambda number: number % 2 == 0, reworded(4, NEARLY), no_half_named),
        {"contamination"},
    ),
    "13 words, two halves": (halves(lambda number: number % 2 == 0, two_long), {"overlap"}),
    "no category": (without_category, {"category", "balance"}),
    "one too few": (lambda lines: lines.pop(), {"balance"}),
    "a category of one half": (
        lambda lines: [line.update(half="natural" if line["category"] == "QA" else "synthetic") for line in lines],
        {"balance"},
    ),
    "lengths": (only_short, {"length"}),
    "openings": (many_alike, {"openings"}),
    "a language": (reworded(12, "Warum geht der Teig auf, bevor das Brot gebacken wird?"), {"language"}),
    "a misspelling": (reworded(12, "Where does a ship recieve its name?"), {"spelling"}),
    "a slip": (reworded(12, "Where does a ship get get its name?"), {"slip"}),
}
KEEPS: dict[str, Callable[[list[Any]], object]] = {
    "the valid set": lambda _: None,
    "no hash": lambda lines: lines[4].pop("sha256"),
    "fewer than half of the runs": reworded(4, "Decide whether seven is prime, and say why."),
    "13 words, one half": two_long,
    "13 words, natural half": halves(lambda _: True, two_long),
    "12 words, two halves": halves(
        lambda number: number % 2 == 0,
        two_long,
        reworded(15, LONG[2].format(LONG[0].replace("passed", "came"))),
    ),
    "both halves in full": halves(lambda number: number % 2 == 0),
    "three beginnings alike": lambda lines: [reworded(i, f"Please tell me: {CLS[i]}")(lines) for i in range(4)],
    "a name of another language": reworded(12, "Who wrote the long story called Die Verwandlung?"),
    "British and American": reworded(12, "Which colour is the harbor, and what color is the harbour?"),
}


@pytest.mark.parametrize("case", BREAKS)
def test_a_broken_rule_is_reported(case: str, checked: Callable[..., Report]) -> None:
    """One change to a valid set breaks exactly the expected rules."""
    edit, rules = BREAKS[case]
    lines: list[Any] = sound()
    edit(lines)
    report = checked(lines)
    assert {finding.rule for finding in report.findings} == rules
    assert all(finding.message for finding in report.findings)


@pytest.mark.parametrize("case", KEEPS)
def test_valid_sets_have_no_findings(case: str, checked: Callable[..., Report]) -> None:
    """Changes within the rules are not reported."""
    lines: list[Any] = sound()
    KEEPS[case](lines)
    report = checked(lines)
    assert report.findings == []
    assert report.skipped == []
    assert report.instructions == 20


def test_every_rule_has_a_case() -> None:
    """Every rule has a case that breaks it."""
    assert set.union(*(rules for _, rules in BREAKS.values())) == set(RULES)


def test_damaged_lines_are_reported_and_the_rest_is_checked(checked: Callable[..., Report]) -> None:
    """Six unreadable lines are six findings; a misspelling, a copy and the groups of the others are still reported."""
    broken = [
        b'{"id": "a", "text": ',
        {"id": "b", "txt": "t", "text": "t"},
        {"id": "c", "text": "t", "token_ids": [1]},
        {"id": "d", "text": " \n"},
        b'{"id": "e", "text": "\xff"}',
        b"[]",
    ]
    report = checked([*broken, *sound(), b"", item("y", "We recieve it.", "QA"), item("z", CLS[0], "CLS")])
    found = [(finding.where, finding.message) for finding in report.of("line")]
    expected = ["not JSON", "unknown field", "exactly one of text", "must not be empty", "not UTF-8", "dictionary"]
    assert [where for where, _ in found] == [f"set.jsonl, line {number}" for number in range(1, 7)]
    for (_, message), part in zip(found, expected, strict=True):
        assert part in message
    assert found[1][1].startswith("txt: ")
    assert [(finding.where, finding.id) for finding in report.of("spelling")] == [("set.jsonl, line 28", "y")]
    assert [(finding.where, finding.id) for finding in report.of("duplicate")] == [("set.jsonl, line 29", "z")]
    assert report.instructions == 22
    assert [group.instructions for group in report.groups] == [11, 11]


def test_a_file_of_broken_lines_alone_fails(checked: Callable[..., Report]) -> None:
    """Without any readable line, the report lists the faults; without any line, there is an error."""
    report = checked([b"{", b"}"])
    assert (report.instructions, report.count("error"), report.groups) == (0, 2, [])
    with pytest.raises(InvalidInputError, match=r"nothing to check: .*set\.jsonl"):
        checked([])


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A missing file is an error with its path."""
    with pytest.raises(InvalidInputError, match=r"cannot read .*gone\.jsonl"):
        check_files([tmp_path / "gone.jsonl"])


def test_token_ids_are_counted_and_reported_as_unchecked(checked: Callable[..., Report]) -> None:
    """Instructions without text match nothing; the report states how many were not checked."""
    tokens = [{"id": f"t{i}", "token_ids": [1, 2, 3], "category": "QA", "sha256": "00"} for i in range(2)]
    report = checked(tokens)
    assert report.findings == []
    assert report.skipped == ["2 instructions given as token ids: checks of texts do not apply to them"]
    (group,) = report.groups
    assert (group.instructions, group.words, group.tokens, group.openings) == (2, None, None, 0)


def test_conversations_are_checked_by_their_turns(checked: Callable[..., Report]) -> None:
    """The turns of a conversation are its text: hash, copies and misspellings refer to it."""
    turns = ["Please be brief.", "Where does a ship recieve its name?"]
    messages = [{"role": role, "content": text} for role, text in zip(("system", "user"), turns, strict=True)]
    text = "\n\n".join(turns)
    talk = {"id": "m", "messages": messages, "category": "QA", "sha256": text_sha256(text)}
    report = checked([talk, item("t", text, "QA")])
    assert {(finding.rule, finding.id) for finding in report.findings} == {
        ("duplicate", "t"),
        ("spelling", "m"),
        ("spelling", "t"),
    }


def named_pairs(report: Report) -> set[tuple[str, frozenset[str]]]:
    """Return rule and both ids of every finding about a pair."""
    pairs = {"duplicate", "near-duplicate", "template", "contamination", "overlap"}
    return {
        (finding.rule, frozenset({finding.id, *re.findall(r"(\S+) \([^()]*, line \d+\)", finding.message)}))
        for finding in report.findings
        if finding.rule in pairs
    }


def test_pairs_do_not_depend_on_the_order_of_files(tmp_path: Path) -> None:
    """The halves in either order, and reversed lines, give the same pairs under the same rules."""
    ours = [
        item(f"s{i}", text, "CLS", half="synthetic") for i, text in enumerate([*CLS, NEARLY, LONG[1].format(LONG[0])])
    ]
    theirs = [
        item(f"n{i}", text, "CLS", half="natural")
        for i, text in enumerate([*QA, f"{QA[0]} And when?", CLS[0], f"{CLS[1]} Why?", LONG[2].format(LONG[0]), QA[5]])
    ]
    reports = []
    for step in (1, -1):
        files = [write(tmp_path / f"a{step}.jsonl", ours[::step]), write(tmp_path / f"b{step}.jsonl", theirs[::step])]
        reports += [check_files(files), check_files(files[::-1])]
    expected = {
        ("near-duplicate", frozenset({"s3", "s10"})),
        ("template", frozenset({"n0", "n10"})),
        ("duplicate", frozenset({"s0", "n11"})),
        ("contamination", frozenset({"s0", "n11"})),
        ("contamination", frozenset({"s1", "n12"})),
        ("overlap", frozenset({"s11", "n13"})),
        ("duplicate", frozenset({"n5", "n14"})),
    }
    assert [named_pairs(report) for report in reports] == [expected] * 4


def test_files_are_compared_with_others(tmp_path: Path, checked: Callable[..., Report]) -> None:
    """A copy of a text of the other file, and 13 shared words, are reported with both locations."""
    lines = sound()
    reworded(3, LONG[1].format(LONG[0]))(lines)
    other = [item("o0", f"Sir, {QA[1]}"), item("o1", LONG[2].format(LONG[0])), item("o2", "Something else entirely.")]
    report = checked(lines, against=(write(tmp_path / "other.jsonl", other),))
    assert named_pairs(report) == {
        ("contamination", frozenset({"QA-1", "o0"})),
        ("overlap", frozenset({"CLS-3", "o1"})),
    }
    (overlap,) = report.of("overlap")
    assert "shares 13 words with o1 (other.jsonl, line 2): 'the keeper of the old" in overlap.message
    assert report.instructions == 20
    assert report.skipped == []


def test_a_raw_data_set_is_compared_too(tmp_path: Path, checked: Callable[..., Report]) -> None:
    """Records of benchmarks are read as published, from one file or a folder, with their own field names."""
    (tmp_path / "raw").mkdir()
    write(tmp_path / "raw" / "qa.jsonl", [{"question": QA[0], "answer": "Michelangelo"}])
    (tmp_path / "raw" / "more.json").write_text(json.dumps([{"instruction": "None of ours.", "input": QA[1]}]))
    report = checked(sound(), against=(tmp_path / "raw",))
    assert {finding.id for finding in report.of("contamination")} == {"QA-0", "QA-1"}


def test_records_without_text_are_reported(tmp_path: Path, checked: Callable[..., Report]) -> None:
    """A file without any text is an error, not a silent pass; single records without text are reported."""
    raw = write(tmp_path / "raw.jsonl", [{"id": "t", "token_ids": [1]}])
    with pytest.raises(InvalidInputError, match=r"fields text, prompt, .*raw\.jsonl has none"):
        checked(sound(), against=(raw,))
    with pytest.raises(InvalidInputError, match="no such file"):
        checked(sound(), against=(tmp_path / "gone.jsonl",))
    mixed = write(tmp_path / "mixed.jsonl", [item("o", QA[0]), {"answer": "t"}, {"id": "t", "token_ids": [1]}])
    report = checked(sound(), against=(mixed,))
    assert named_pairs(report) == {("contamination", frozenset({"QA-0", "o"}))}
    (message,) = report.skipped
    assert message.startswith(f"2 records without a text in {mixed}")


def test_a_missing_spelling_checker_is_reported(
    checked: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the spelling checker, the report gives the remedy, and language is still checked."""
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    lines = sound()
    reworded(12, "Warum geht der Teig auf, bevor das Brot gebacken wird?")(lines)
    report = checked(lines)
    assert [finding.rule for finding in report.findings] == ["language"]
    (message,) = report.skipped
    assert f"typos, which is not installed: {install_command('dataset')}" in message


def test_lengths_are_given_in_tokens_too(tmp_path: Path, checked: Callable[..., Report]) -> None:
    """With a tokenizer, groups have quantiles of tokens and of words, and both are compared."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split

    tokenizer = Tokenizer(WordLevel({"?": 0}, unk_token="?"))  # noqa: S106
    tokenizer.pre_tokenizer = Split("", "isolated")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    lines = sound()
    reworded(2, "QQQ")(lines)
    report = checked(lines, tokenizer=tmp_path)
    for group, texts in zip(report.groups, ([*CLS[:2], "QQQ", *CLS[3:]], QA), strict=True):
        assert group.tokens is not None
        assert group.words is not None
        assert (group.tokens.shortest, group.tokens.longest) == (min(map(len, texts)), max(map(len, texts)))
        assert group.words.longest == max(len(text.split()) for text in texts)
    assert report.of("length") == []
    only_short(lines)
    assert [finding.message.split(" (")[0] for finding in checked(lines, tokenizer=tmp_path).of("length")] == [
        "medians from 3 words",
        "medians from 13 tokens",
    ]


def test_lines_may_end_as_on_windows(tmp_path: Path) -> None:
    """CRLF between lines changes nothing."""
    file = tmp_path / "crlf.jsonl"
    file.write_bytes(b"\r\n".join(json.dumps(line).encode() for line in sound()) + b"\r\n")
    assert check_files([file]).findings == []


ANYTHING = st.builds(
    lambda id_, text, labels: {"id": id_, "text": text, "category": labels[0], "half": labels[1]},
    st.text(min_size=1, max_size=20),
    st.text(min_size=1, max_size=60).filter(str.strip),
    st.tuples(st.text(max_size=5), st.sampled_from(["natural", "synthetic", "", "[/]"])),
)


@settings(max_examples=25)
@given(st.lists(ANYTHING, min_size=1, max_size=8))
def test_no_text_stops_the_check(tmp_path_factory: pytest.TempPathFactory, lines: list[Line]) -> None:
    """Any Unicode in text, id, category or half can be checked, and the report survives JSON."""
    report = check_files([write(tmp_path_factory.getbasetemp() / "any.jsonl", lines)])
    assert Report.model_validate_json(report.model_dump_json()) == report
    assert report.instructions == len(lines)
    assert sum(group.instructions for group in report.groups) == len(lines)
