"""A form as a table for spreadsheet programs, and the filled table read back.

Rows: the columns' names; the allowed values; the annotator's name; the form that it is; then one an item. All but the
first are known by their first cell, so that sorting does no harm. UTF-8 with a byte-order mark and CRLF, without which
Excel takes the text for another encoding. The last column, `key`, carries id, hash, and a checksum of the text beside
it: where a column alone was sorted or a text was changed, reading refuses. Text that a program would run as a formula
gets an apostrophe in front, which reading takes away. Knows nothing of the rules that answers follow.
"""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from sparcom_data.errors import InvalidInputError
from sparcom_hexainst.annotation.criteria import CATEGORY, CRITERIA, NONE_OF_THESE, SOUND, criteria_for
from sparcom_hexainst.annotation.schema import ANSWERS_FORMAT, Form, FormItem, canonical_json

ALLOWED, ANNOTATOR, FORM = "allowed values", "annotator", "form"
NAME_HERE = "write your name over these words"
LEAVE = "leave this line and the column key as they are"
LONGEST_CELL = 32_767  # Excel cuts what is longer
# What makes a cell a formula (OWASP, CSV injection), also after spaces and in full-width spelling.
_FORMULA = re.compile(r"'*\s*[=+\-@\t\r\n＝＋－＠]")
_HEADER = re.compile(r'"?number"?([,;\t])')


def render_table(form: Form) -> bytes:
    """The form as CSV.

    Raises:
        InvalidInputError: a text is longer than a cell may be.
    """
    rows = [_row(item, len(form.criteria)) for item in form.items]
    if problems := [
        f"item {item.id!r} has {len(row[1]):,} characters and a cell of a table may have {LONGEST_CELL:,}: "
        "write the form as HTML"
        for item, row in zip(form.items, rows, strict=True)
        if len(row[1]) > LONGEST_CELL
    ]:
        raise InvalidInputError(problems)
    names = [criterion.name for criterion in form.criteria]
    blank = [""] * len(names)
    meta = {"format": ANSWERS_FORMAT, "version": form.version, "kind": form.kind, "dataset": form.dataset}
    head = [
        ["number", "text", *names, "comment", "key"],
        [ALLOWED, "", *(" / ".join(criterion.values) for criterion in form.criteria), "anything", ""],
        [ANNOTATOR, NAME_HERE, *blank, "", ""],
        [FORM, LEAVE, *blank, "", canonical_json(meta | {"form": form.sha256, "categories": form.categories})],
    ]
    out = io.StringIO(newline="")
    csv.writer(out).writerows([*head, *rows])
    return out.getvalue().encode("utf-8-sig")


def _row(item: FormItem, criteria: int) -> list[str]:
    text = item.text if item.text is not None else _conversation(item)
    return [str(item.number), neutralise(text), *[""] * criteria, "", _key(item, text)]


def _conversation(item: FormItem) -> str:
    return "\n\n".join(f"{message.role}: {message.content}" for message in item.messages or ())


def neutralise(text: str) -> str:
    """Text that no spreadsheet program takes for a formula; `restore` undoes it."""
    return f"'{text}" if _FORMULA.match(text) else text


def restore(text: str) -> str:
    """Take the apostrophe of `neutralise` away; other text stays as it is."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def _key(item: FormItem, text: str) -> str:
    """Base 32 hides the id, which may tell the category, and is no number to a spreadsheet program."""
    return f"k.{base64.b32encode(item.id.encode()).decode().rstrip('=').lower()}.{item.sha256}.{_checksum(text)}"


def _checksum(text: str) -> str:
    """Of the words alone: programs change line ends and trailing spaces."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]


def read_table(data: bytes) -> tuple[dict[str, Any], list[str]]:
    """A filled table as the JSON of answers would be, and what is wrong with it as a table.

    What is wrong is told with its row; the content is to be checked as any answers are.
    """
    problems: list[str] = []
    try:
        rows = list(_rows(data.decode("utf-8-sig")))
    except UnicodeDecodeError:
        return {}, ["the table must be UTF-8 and is not: save it again as “CSV UTF-8”"]
    except (csv.Error, ValueError) as error:
        return {}, [f"the table cannot be read as CSV ({error}): save it again as “CSV UTF-8”"]
    header = [name.strip() for name in rows[0][1]]
    problems += _header_problems(header)
    if problems:
        return {}, problems
    content: dict[str, Any] = {"annotator": "", "items": []}
    for line, cells in rows[1:]:
        row = dict(zip(header, [*cells, *[""] * len(header)], strict=False))
        problems += [f"line {line}: {problem}" for problem in _take(row, content)]
    if "form" not in content and not problems:
        problems.append("the form's own line is missing: copy it from the form as it was written")
    content["complete"] = all(value is not None for item in content["items"] for value in item["answers"].values())
    _spell_as_allowed(content)
    return content, problems


def _rows(text: str) -> Iterable[tuple[int, list[str]]]:
    """Rows that hold anything, with the line that each ends at; programs separate cells as the country does."""
    found = _HEADER.match(text)
    if found is None:
        raise ValueError("its first line must hold the names of the columns, from “number” on")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=found[1], strict=True)
    return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]


def _header_problems(header: Sequence[str]) -> list[str]:
    known = {"number", "text", "comment", "key", *CRITERIA}
    needed = {"number", "text", "comment", "key", *SOUND}
    twice = {name for name in header if name and header.count(name) > 1}
    return [
        *(f"column {name!r} is missing: fill in the form as it was written" for name in sorted(needed - set(header))),
        *(
            f"column {name!r} is not one of the form's: put remarks into comment and take it out"
            for name in sorted(set(header) - known - {""})
        ),
        *(f"column {name!r} is there twice: take one out" for name in sorted(twice)),
    ]


def _take(row: dict[str, str], content: dict[str, Any]) -> list[str]:
    """Add what a row says to the content; what is wrong with it."""
    first, text = row["number"].strip(), row["text"]
    if first == ALLOWED:
        return []
    if first == ANNOTATOR:
        content["annotator"] = "" if text.strip() == NAME_HERE else restore(text).strip()
        return []
    if first == FORM:
        try:
            content.update(json.loads(row["key"]))
        except (ValueError, TypeError):
            return ["the form's own line was changed: copy it from the form as it was written"]
        return []
    try:
        id_, sha256, checksum = _parse_key(row["key"])
        number = int(first)
    except ValueError:
        return ["number or key was changed: copy both from the form as it was written"]
    answers = {name: row[name].strip() or None for name in CRITERIA if name in row}
    comment = restore(row["comment"]).strip()
    content["items"].append({"number": number, "id": id_, "sha256": sha256, "answers": answers, "comment": comment})
    if checksum == _checksum(restore(text)):
        return []
    return [
        f"item {number}: the text is not the one that the key in its row belongs to, so that its answers may be "
        "another's too. Sort whole rows only and change no text; fill in a new form"
    ]


def _parse_key(key: str) -> tuple[str, str, str]:
    mark, id_, sha256, checksum = key.strip().split(".")
    if mark != "k":
        raise ValueError(mark)
    try:
        return base64.b32decode(id_.upper() + "=" * (-len(id_) % 8)).decode(), sha256, checksum
    except binascii.Error as error:
        raise ValueError(key) from error


def _spell_as_allowed(content: dict[str, Any]) -> None:
    """Answers in capitals or with spaces around are those that the form names."""
    categories = content.get("categories")
    names = [name for name in categories if isinstance(name, str)] if isinstance(categories, list) else []
    criteria = criteria_for([name for name in names if name != NONE_OF_THESE])
    spelling = {
        criterion.name: {value.casefold(): value for value in criterion.values}
        for criterion in criteria
        if criterion.name != CATEGORY or len({name.casefold() for name in names}) == len(names)
    }
    for item in content["items"]:
        for name, value in item["answers"].items():
            if value is not None:
                item["answers"][name] = spelling.get(name, {}).get(value.casefold(), value)
