"""Write a form as a table for spreadsheet programs, and read the filled table back.

Rows: column names; allowed values; the annotator's name; the form's metadata; then one row per item. All but the first
are identified by their first cell, so sorting rows is harmless. The byte-order mark makes Excel read the file as
UTF-8; lines end in CRLF. The last column, `key`, holds the id, a hash, and a checksum of the text in its row: reading
refuses a table in which a single column was sorted or a text was changed. Text that a program would run as a formula
gets a leading apostrophe, which reading removes.
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
LONGEST_CELL = 32_767  # Excel truncates longer cells
# Starts of a formula (OWASP, CSV injection), also after spaces and in full-width characters.
_FORMULA = re.compile(r"'*\s*[=+\-@\t\r\n＝＋－＠]")
_HEADER = re.compile(r'"?number"?([,;\t])')


def render_table(form: Form) -> bytes:
    """Return the form as CSV.

    Raises:
        InvalidInputError: a text exceeds the maximum length of a cell.
    """
    rows = [_row(item, len(form.criteria)) for item in form.items]
    if problems := [
        f"a cell of a table may have {LONGEST_CELL:,} characters; item {item.id!r} has {len(row[1]):,}: "
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
    return [str(item.number), neutralize(text), *[""] * criteria, "", _key(item, text)]


def _conversation(item: FormItem) -> str:
    return "\n\n".join(f"{message.role}: {message.content}" for message in item.messages or ())


def neutralize(text: str) -> str:
    """Return text that no spreadsheet program runs as a formula; `restore` undoes it."""
    return f"'{text}" if _FORMULA.match(text) else text


def restore(text: str) -> str:
    """Remove the apostrophe that `neutralize` added; return other text unchanged."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def _key(item: FormItem, text: str) -> str:
    """Return the key of an item. Base 32 hides the id, which may reveal the category, and never looks like a number."""
    return f"k.{base64.b32encode(item.id.encode()).decode().rstrip('=').lower()}.{item.sha256}.{_checksum(text)}"


def _checksum(text: str) -> str:
    """Return a checksum of the words only: programs change line ends and trailing spaces."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]


def read_table(data: bytes) -> tuple[dict[str, Any], list[str]]:
    """Return a filled table in the form of JSON answers, and its problems as a table, with their lines.

    The caller checks the content like any other answers.
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
        problems.append("the line that starts with “form” is missing: copy it from the original form")
    content["complete"] = all(value is not None for item in content["items"] for value in item["answers"].values())
    _spell_as_allowed(content)
    return content, problems


def _rows(text: str) -> Iterable[tuple[int, list[str]]]:
    """Return non-empty rows with the line at which each ends; the cell separator depends on the program's locale."""
    found = _HEADER.match(text)
    if found is None:
        raise ValueError("its first line must hold the column names, starting with “number”")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=found[1], strict=True)
    return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]


def _header_problems(header: Sequence[str]) -> list[str]:
    known = {"number", "text", "comment", "key", *CRITERIA}
    needed = {"number", "text", "comment", "key", *SOUND}
    twice = {name for name in header if name and header.count(name) > 1}
    return [
        *(
            f"column {name!r} is missing: fill in the form with all its columns"
            for name in sorted(needed - set(header))
        ),
        *(
            f"column {name!r} does not belong to the form: remove it, and put remarks into comment"
            for name in sorted(set(header) - known - {""})
        ),
        *(f"column {name!r} occurs twice: remove one" for name in sorted(twice)),
    ]


def _take(row: dict[str, str], content: dict[str, Any]) -> list[str]:
    """Add a row to the content; return its problems."""
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
            return ["the line that starts with “form” was changed: copy it from the original form"]
        return []
    try:
        id_, sha256, checksum = _parse_key(row["key"])
        number = int(first)
    except ValueError:
        return ["number or key was changed: copy both from the original form"]
    answers = {name: row[name].strip() or None for name in CRITERIA if name in row}
    comment = restore(row["comment"]).strip()
    content["items"].append({"number": number, "id": id_, "sha256": sha256, "answers": answers, "comment": comment})
    if checksum == _checksum(restore(text)):
        return []
    return [
        f"item {number}: text and key of its row do not belong together, so its answers may be another item's. "
        "Fill in a new form; sort only whole rows and change no text"
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
    """Spell answers as the form does, ignoring case."""
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
