"""The form as a table: tolerated and refused effects of spreadsheet programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sparcom_data.errors import InvalidInputError
from sparcom_hexainst.annotation.make import make_form, read_data
from sparcom_hexainst.annotation.read import read_answers
from sparcom_hexainst.annotation.schema import Answers, Form
from sparcom_hexainst.annotation.table import neutralize, render_table, restore

Rows = list[list[str]]
ITEMS: list[dict[str, Any]] = [
    {"id": "cls-1", "category": "CLS", "text": '=HYPERLINK("http://x", "click")'},
    {"id": "qa-1", "category": "QA", "text": "Name the capital of Peru,\nthen “quote” it; \tslowly."},
    {"id": "Ünï", "category": "QA", "messages": [{"role": "user", "content": "Why, 'tis so?"}]},
]


@pytest.fixture
def form(tmp_path: Path) -> Form:
    path = tmp_path / "i.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    return make_form(read_data([path]))


def cells(form: Form) -> Rows:
    return list(csv.reader(io.StringIO(render_table(form).decode("utf-8-sig"), newline="")))


def fill(rows: Rows) -> Rows:
    """Answer every question as a person would type it, and give a name."""
    head = rows[0]
    for row in rows[1:]:
        if row[0] == "annotator":
            row[1] = "Ada"
        elif row[0].isdigit():
            for name, value in {
                "grammar": "Correct",
                "redundancy": "none ",
                "category": "qa",
                "clarity": "clear",
            }.items():
                row[head.index(name)] = value
    return rows


def save(path: Path, rows: Rows, delimiter: str = ",", encoding: str = "utf-8-sig", end: str = "\r\n") -> Path:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter, lineterminator=end).writerows(rows)
    path.write_bytes(out.getvalue().encode(encoding))
    return path


def read(path: Path) -> Answers:
    return read_answers(path, "annotation")


def problems(path: Path) -> list[str]:
    with pytest.raises(InvalidInputError) as caught:
        read(path)
    return caught.value.problems


def test_a_table_is_for_spreadsheet_programs(form: Form) -> None:
    """The table has a byte-order mark, one row per item, the allowed values, no formula and no readable id."""
    data = render_table(form)
    assert data.startswith(b"\xef\xbb\xbfnumber,text,grammar,redundancy,category,clarity,comment,key\r\n")
    rows = cells(form)
    assert rows[1][2:6] == ["correct / faulty", "none / padded / same", "CLS / QA / none of these", "clear / unclear"]
    assert len(rows) == 4 + len(ITEMS)
    assert not [cell for row in rows for cell in row if cell[:1] in tuple("=+-@\t\r")]
    assert "cls-1" not in data.decode()


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_a_filled_table_is_read(form: Form, tmp_path: Path, delimiter: str, end: str) -> None:
    """Any separator, capitals and spaces: the answers equal those that the page would save."""
    rows = fill(cells(form))
    rows[4][6] = "'=1+1 was typed"
    found = read(save(tmp_path / "ada.csv", rows, delimiter, end=end))
    assert found.items[0].answers == {"grammar": "correct", "redundancy": "none", "category": "QA", "clarity": "clear"}
    assert found.items[0].comment == "=1+1 was typed"
    assert [(item.number, item.id, item.sha256) for item in found.items] == [
        (item.number, item.id, item.sha256) for item in form.items
    ]
    assert (found.annotator, found.form, found.dataset) == ("Ada", form.sha256, form.dataset)
    assert found.complete


def test_rows_may_be_sorted_and_emptied(form: Form, tmp_path: Path) -> None:
    """Sorted whole rows, trailing empty rows and columns, and other line ends in cells do no harm."""
    rows = fill(cells(form))
    mixed = [rows[0] + [""], *([*row, ""] for row in reversed(rows[1:])), [""] * 9]
    mixed = [[cell.replace("\n", "\r\n") for cell in row] for row in mixed]
    assert len(read(save(tmp_path / "ada.csv", mixed, encoding="utf-8")).items) == len(ITEMS)


def sort_texts_alone(rows: Rows) -> None:
    rows[4][1], rows[5][1] = rows[5][1], rows[4][1]


def drop_name(rows: Rows) -> None:
    rows[2][1] = "write your name over these words"


def drop_form(rows: Rows) -> None:
    del rows[3]


def damage_form(rows: Rows) -> None:
    rows[3][-1] = "{"


def damage_key(rows: Rows) -> None:
    rows[4][-1] = "k.aa"


def wrong_value(rows: Rows) -> None:
    rows[4][2] = "good"


def no_value(rows: Rows) -> None:
    rows[4][2] = ""


def new_column(rows: Rows) -> None:
    rows[0].append("notes")


def lost_column(rows: Rows) -> None:
    for row in rows:
        del row[2]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (sort_texts_alone, "text and key of its row do not belong together"),
        (drop_name, "annotator must not be empty"),
        (drop_form, "the line that starts with “form” is missing"),
        (damage_form, "line 4: the line that starts with “form” was changed"),
        (damage_key, "number or key was changed"),
        (wrong_value, "grammar: must be one of correct, faulty; it is 'good'"),
        (no_value, "grammar must be answered"),
        (new_column, "column 'notes' does not belong to the form"),
        (lost_column, "column 'grammar' is missing"),
    ],
)
def test_a_damaged_table_is_refused(damage: Callable[[Rows], None], message: str, form: Form, tmp_path: Path) -> None:
    """Damage that would lose answers or attach them to another text is reported with its line."""
    rows = fill(cells(form))
    damage(rows)
    assert message in problems(save(tmp_path / "ada.csv", rows))[0]


def test_other_encodings_and_files_are_refused(form: Form, tmp_path: Path) -> None:
    """A table in Latin-1 or UTF-16, and a file that is no table, give a remedy."""
    rows = fill(cells(form))
    for row in rows:
        row[1] = row[1].replace("“", "ü").replace("”", "ü")
    for encoding in ("latin-1", "utf-16"):
        assert "CSV UTF-8" in problems(save(tmp_path / "ada.csv", rows, encoding=encoding))[0]
    (tmp_path / "ada.csv").write_text("a,b\n1,2\n")
    assert "first line must hold the column names" in problems(tmp_path / "ada.csv")[0]


def test_a_text_that_a_cell_cannot_hold_is_refused(tmp_path: Path) -> None:
    """Excel would silently truncate the text; the page has no such limit."""
    path = tmp_path / "i.jsonl"
    path.write_text(json.dumps({"id": "long", "text": "a" * 40_000}) + "\n")
    with pytest.raises(InvalidInputError, match=r"'long' has 40,000: write the form as HTML"):
        render_table(make_form(read_data([path])))


@given(st.text(alphabet="'=+-@\t\r\n ＝a1"))
@example("'=1")
@example("\t=1")
@example("＝1")
def test_no_text_becomes_a_formula(text: str) -> None:
    """A cell never starts a formula, and its text is restored unchanged."""
    cell = neutralize(text)
    assert cell.lstrip()[:1] not in set("=+-@＝＋－＠") - {""}
    assert cell[:1] not in {"\t", "\r", "\n"}
    assert restore(cell) == text
