"""The commands `sparcom dataset annotate` and `agreement`: files read, files written, and printed output."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from sparcom_cli.dataset.agreement import agreement
from sparcom_cli.dataset.annotate import annotate
from sparcom_data.errors import InvalidInputError
from sparcom_hexainst.agreement.disputes import make_adjudication
from sparcom_hexainst.agreement.schema import AgreementReport
from sparcom_hexainst.annotation.make import make_form, read_data
from sparcom_hexainst.annotation.schema import Answers
from sparcom_hexainst.annotation.testing import filled


def run(command: click.Command, *arguments: object) -> Result:
    result = CliRunner(env={"COLUMNS": "100"}).invoke(command, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with two instruction files."""
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("QA", "CLS"):
        lines = [{"id": f"{name}-{n}", "category": name, "text": f"{name} {n}?"} for n in range(3)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def save(path: Path, answers: Answers) -> Path:
    path.write_text(answers.model_dump_json())
    return path


def test_a_form_is_written_once(folder: Path, tmp_path: Path) -> None:
    """The same form may be written again. A different form is refused, since the file may hold answers."""
    form = tmp_path / "form.csv"
    result = run(annotate, folder, "--output", form, "--sample", 2)
    assert result.exit_code == 0, result.output
    assert "4 items (2 CLS, 2 QA), in an order shuffled by seed 0" in result.output
    assert form.read_bytes().startswith(b"\xef\xbb\xbfnumber,")
    assert run(annotate, folder, "--output", form, "--sample", 2).exit_code == 0
    refused = run(annotate, folder, "--output", form, "--sample", 2, "--seed", 1)
    assert refused.exit_code == 2
    assert "already exists" in refused.output
    assert "must end in .csv" in run(annotate, folder, "--output", "form.html", "--format", "csv").output
    (tmp_path / "empty").mkdir()
    assert "holds no *.jsonl" in run(annotate, tmp_path / "empty", "--output", "f.html").output


def test_a_study_from_form_to_accepted_lines(folder: Path, tmp_path: Path) -> None:
    """From form to two answers, disputes, decisions and the passed lines; comments cannot style the terminal."""
    page = tmp_path / "form.html"
    assert run(annotate, folder, "--output", page).exit_code == 0
    data = read_data(sorted(folder.glob("*.jsonl")))
    form = make_form(data)
    assert form.sha256 in page.read_text()
    right = {id_: {"category": item.category} for id_, item in data.by_id.items()}
    odd = right | {"QA-1": {"category": "none of these"}, "CLS-0": {"category": "CLS", "grammar": "faulty"}}
    first = filled(form, "[red]Ada\x1b[31m", by_id=right, comment="see [bold]this\x1b[2J")
    second = filled(form, "Ben", by_id=odd)
    files = [save(tmp_path / "ada.json", first), save(tmp_path / "ben.json", second)]
    third = tmp_path / "third.html"
    accepted, report = tmp_path / "accepted.jsonl", tmp_path / "agreement.json"

    result = run(agreement, *files, "--data", folder, "--adjudicate", third)
    assert result.exit_code == 0, result.output
    assert "2 of 6 items are disputed" in result.output
    assert "[red]Ada" in result.output
    assert "\x1b" not in result.output
    assert "clarity: both gave one and the same value throughout" in result.output
    decisions = make_adjudication(data, first, second)
    assert decisions.sha256 in third.read_text()

    with pytest.raises(InvalidInputError, match="2 items are disputed"):
        run(agreement, *files, "--data", folder, "--accepted", accepted)
    assert not accepted.exists()

    cleo = save(tmp_path / "cleo.json", filled(decisions, "Cleo", category="QA", grammar="faulty"))
    last = run(agreement, *files, "--data", folder, "--adjudicated", cleo, "--accepted", accepted, "--output", report)
    assert last.exit_code == 0, last.output
    assert "5 of 6 items passed; correct or drop these:" in last.output
    assert "(CLS-0): grammar faulty, not correct “see [bold]this [2J”" in last.output
    assert "5 of 6 judged items passed" in last.output
    lines = [line for path in data.paths for line in path.read_bytes().splitlines(keepends=True)]
    assert accepted.read_bytes() == b"".join(line for line in lines if b"CLS-0" not in line)
    read = AgreementReport.model_validate_json(report.read_text())
    assert read.adjudicator == "Cleo"
    assert read.verdicts is not None
    assert "NaN" not in report.read_text()


def test_a_table_and_a_page_are_compared(folder: Path, tmp_path: Path) -> None:
    """One annotator may fill in the page and the other the table of the same form."""
    table = tmp_path / "ben.csv"
    run(annotate, folder, "--output", table)
    text = table.read_bytes().decode("utf-8-sig").replace("write your name over these words", "Ben")
    text = text.replace("?,,,,,,", "?,correct,none,QA,clear,,")
    table.write_text(text, encoding="utf-8", newline="")
    page = save(tmp_path / "ada.json", filled(make_form(read_data(sorted(folder.glob("*.jsonl")))), "Ada"))
    result = run(agreement, page, table)
    assert result.exit_code == 0, result.output
    assert "6 of 6 items passed" in result.output
    assert "categories were not compared with the data;" in result.output


def test_inputs_are_never_overwritten(folder: Path, tmp_path: Path) -> None:
    """Answers and data are never overwritten; errors of options that need the data name --data."""
    form = make_form(read_data(sorted(folder.glob("*.jsonl"))))
    files = [save(tmp_path / f"{name}.json", filled(form, name)) for name in ("Ada", "Ben")]
    for option, path in (("--output", files[0]), ("--accepted", folder / "QA.jsonl"), ("--adjudicate", files[1])):
        result = run(agreement, *files, "--data", folder, option, path)
        assert result.exit_code == 2
        assert "choose another name" in result.output
    assert "give their files with --data" in run(agreement, *files, "--accepted", tmp_path / "a.jsonl").output
