"""`sparcom dataset check`: exit status, printed findings, and safety against hostile texts."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparcom_cli.main import main
from sparcom_data.extras import install_command
from sparcom_data.instructions.files import read_instructions
from sparcom_hexainst.build.synthetic import synthetic_instructions
from sparcom_hexainst.categories import CATEGORIES
from sparcom_hexainst.check.findings import Report

pytest.importorskip("py3langid", reason="the extra `dataset` is not installed")

GOOD = [
    {"id": "a", "text": "Is a whale a fish or a mammal?", "category": "CLS", "half": "synthetic"},
    {"id": "b", "text": "Who painted the ceiling of the Sistine Chapel?", "category": "QA", "half": "synthetic"},
]
WARNED = [*GOOD[:1], {"id": "b", "text": "Who did recieve the the first prize?", "category": "QA", "half": "synthetic"}]
WRONG = [*GOOD, {"id": "c", "text": "is a whale a fish, or a mammal", "category": "CLS"}]


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[Any, str, str]]:
    """Return `run(lines, *arguments)`: it checks lines (None: no file) and returns exit status, output and errors."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(lines: list[Any] | None, *arguments: object) -> tuple[Any, str, str]:
        file = tmp_path / "set.jsonl"
        if lines is not None:
            file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        given = [str(argument) for argument in ([] if lines is None else [file]) + list(arguments)]
        monkeypatch.setattr(sys, "argv", ["sparcom", "dataset", "check", *given])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return run


def test_a_sound_set_passes_with_its_numbers(run: Callable[..., tuple[Any, str, str]]) -> None:
    """Status 0, one row of numbers per category and half, and the verdict."""
    status, said, _ = run(GOOD)
    assert status == 0
    rows = [line.split() for line in said.splitlines()]
    assert rows[0] == ["category", "half", "instructions", "words", "tokens", "openings"]
    for row, category in ((rows[1], "CLS"), (rows[2], "QA")):
        assert " ".join(row) == f"{category} synthetic 1 8 / 8 / 8 - 1"
    assert said.endswith("2 instructions: passes, 0 errors, 0 warnings\n")


def test_numbers_are_not_truncated_on_a_narrow_terminal(
    run: Callable[..., tuple[Any, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 60 columns, long names wrap, and neither names nor numbers are truncated."""
    monkeypatch.setenv("COLUMNS", "60")
    lines = [
        {"id": str(n), "text": "word and " * (1000 + n) + "end", "category": "classification" * 3} for n in range(3)
    ]
    _, said, _ = run(lines)
    assert "2001 / 2003 / 2005" in said
    assert "…" not in said
    assert "classification" * 3 in "".join(line[:32].split("  ")[0].strip() for line in said.splitlines())


def test_warnings_fail_only_a_strict_check(run: Callable[..., tuple[Any, str, str]]) -> None:
    """A set with warnings passes without --strict and fails with it; both show the warnings."""
    for arguments, status in (((), 0), (("--strict",), 1)):
        ended, said, _ = run(WARNED, *arguments)
        assert ended == status
        assert "warning spelling: no word is a known misspelling; 1 found" in said
        assert "  set.jsonl, line 2 (b): recieve (receive)\n" in said
        assert "  set.jsonl, line 2 (b): 'the' twice in a row\n" in said
        assert said.endswith("2 instructions: passes, 0 errors, 2 warnings\n")


def test_an_error_fails(run: Callable[..., tuple[Any, str, str]]) -> None:
    """One broken rule gives status 1, and prints the rule, both locations and the verdict."""
    status, said, _ = run(WRONG)
    assert status == 1
    assert "error near-duplicate: no two share half of the 4-word runs of the shorter one; 1 found" in said
    assert "  set.jsonl, line 3 (c): shares 100% of its 4-word runs with a (set.jsonl, line 1)" in said
    assert "3 instructions: fails, 1 errors" in said


def test_without_files_the_shipped_ones_are_checked(run: Callable[..., tuple[Any, str, str]]) -> None:
    """The 600 synthetic instructions pass, and their numbers are printed."""
    status, said, _ = run(None)
    assert status == 0
    assert "600 instructions: passes, 0 errors" in said
    assert [line.split()[:3] for line in said.splitlines()[1:7]] == [
        [category, "synthetic", "100"] for category in ("CLS", "CODE", "QA", "GEN", "MATH", "SUM")
    ]


HOSTILE = [
    "[red]x[/red]",
    "[/]",
    "[/bold]",
    "[link=http://a.b]c[/link]",
    "a\\[b]\\",
    ":smile:",
    "\x1b[2J\x1b[31m",
    "x\r\ny\u202ez",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_file_contents_are_shown_literally(text: str, run: Callable[..., tuple[Any, str, str]], tmp_path: Path) -> None:
    """Markup, emoji names and control characters in an id, a label or a text are printed literally."""
    shown = text.encode("unicode_escape").decode().replace("\\\\", "\\")
    line = {"id": f"i{text}i", "text": f"{text} recieve", "category": text, "half": f"h{text}"}
    other = {"id": "j", "text": f"{text} mesage {text}", "category": text, "half": f"h{text}", "sha256": f"{text}0"}
    unknown = {"id": "k", "text": "t", f"f{text}": 1}
    against = tmp_path / "other.jsonl"
    against.write_text(
        "\n".join(json.dumps(item) for item in ({f"f{text}": 1}, {"id": f"o{text}", "text": line["text"]}))
    )
    status, said, _ = run([line, other, unknown], "--against", against)
    assert status == 1
    assert [part for part in said.splitlines()[1].split() if not part.isdigit()][:2] == [shown, f"h{shown}"]
    assert f"  set.jsonl, line 1 (i{shown}i): recieve (receive)\n" in said
    assert (
        f"  set.jsonl, line 2 (j): sha256 is {(text + '0')[:12].encode('unicode_escape').decode()}".replace(
            "\\\\", "\\"
        )
        in said
    )
    assert f"  set.jsonl, line 3: f{shown}: unknown field" in said
    assert f"with o{shown} (other.jsonl, line 2)" in said
    assert f"1 records without a text in {against}" in said.split("not checked: ")[1]
    assert set(said) <= {"\n", *(sign for sign in said if sign.isprintable())}


def test_many_findings_are_truncated_unless_all_are_requested(run: Callable[..., tuple[Any, str, str]]) -> None:
    """Eight findings per rule are shown and the rest counted; --all shows all."""
    lines = [{"id": f"i{number}", "text": f"item {number} of a long list", "category": ""} for number in range(20)]
    _, said, _ = run(lines)
    assert said.count(": no category; give one") == 8
    assert "  … and 12 more (--all shows them)\n" in said
    _, said, _ = run(lines, "--all")
    assert said.count(": no category; give one") == 20
    assert "more (--all" not in said


def test_the_report_is_written_as_json(run: Callable[..., tuple[Any, str, str]], tmp_path: Path) -> None:
    """--json writes every finding, group and number, including those that are not printed."""
    run(WRONG, "--json", tmp_path / "report.json")
    report = Report.model_validate_json((tmp_path / "report.json").read_bytes())
    assert report.files == [str(tmp_path / "set.jsonl")]
    assert report.instructions == 3
    assert [(group.name, group.instructions) for group in report.groups] == [
        ("CLS synthetic", 1),
        ("QA synthetic", 1),
        ("CLS", 1),
    ]
    assert [finding.id for finding in report.of("near-duplicate")] == ["c"]
    status, _, err = run(WRONG, "--json", tmp_path / "none" / "report.json")
    assert status == 1
    assert err.startswith("error: the report could not be written")
    assert err.rstrip().endswith("name another file with --json")


def test_skipped_checks_are_reported(run: Callable[..., tuple[Any, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the spelling checker the set passes, and one line names the skipped check."""
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    status, said, _ = run(GOOD)
    assert status == 0
    assert "not checked: spelling: the spelling check needs typos, which is not installed" in said
    assert install_command("dataset") in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gone.jsonl",), "error: cannot read gone.jsonl: No such file or directory"),
        (("--against", "gone.jsonl"), "error: cannot read gone.jsonl"),
        (("--tokenizer", "gone"), "gone has none. Give another path"),
        (("--language", "klingon"), "'klingon' is not known"),
    ],
)
def test_an_unusable_input_is_a_one_line_error(
    arguments: tuple[str, ...], message: str, run: Callable[..., tuple[Any, str, str]]
) -> None:
    """A missing file, tokenizer or language gives status 1 and one sentence."""
    status, _, err = run(GOOD, *arguments)
    assert status == 1
    assert message in err
    assert len(err.splitlines()) == 1


def test_the_help_describes_the_exit_statuses(run: Callable[..., tuple[Any, str, str]]) -> None:
    """--help names every option, the default and both exit statuses."""
    status, said, _ = run(None, "--help")
    assert status == 0
    for part in (
        "[FILES]...",
        "--against",
        "--tokenizer",
        "--language",
        "--strict",
        "--all",
        "--json",
        "600 synthetic instructions",
    ):
        assert part in " ".join(said.split())
    assert (
        "Exit status 1 if there is an error, or with --strict also a warning or a skipped check; otherwise 0."
        in " ".join(said.split())
    )


def test_csv_and_standard_input_are_checked(
    run: Callable[..., tuple[Any, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Locations are table rows or lines of standard input."""
    (tmp_path / "set.csv").write_text("id,text,category\na,Is a whale a fish or a mammal?,CLS\nb,,QA\n")
    status, said, _ = run(None, tmp_path / "set.csv")
    assert status == 1
    assert "set.csv, row 3: exactly one of text" in said
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(map(json.dumps, GOOD)).encode())))
    assert run(None, "-")[0] == 0


def test_the_example_of_the_repository_passes(run: Callable[..., tuple[Any, str, str]]) -> None:
    """examples/instructions.jsonl holds twelve HexaInst instructions, two per category, with their licence."""
    example = Path(__file__).parents[3] / "examples" / "instructions.jsonl"
    status, said, _ = run(None, example, "--strict")
    assert status == 0, said
    items = read_instructions(example)
    assert [item.category for item in items] == [category for category in CATEGORIES for _ in range(2)]
    ours = {item.id: (item.text, item.category, item.license) for item in synthetic_instructions(6)}
    assert all(ours[item.id] == (item.text, item.category, item.license) for item in items)
