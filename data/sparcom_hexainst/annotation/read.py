"""Read answers and refuse files that break a rule; report every problem of every file at once.

1. Each file alone, JSON from the page or a filled table: types, then values, missing answers and repeated items.
2. Two files together: one form, the same items, two people. 3. Against the data, if given.
Each problem names the file, item, field, rule and remedy.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sparcom_data.errors import InvalidInputError
from sparcom_data.instructions import describe_validation_error
from sparcom_hexainst.annotation.criteria import criteria_for
from sparcom_hexainst.annotation.make import DataSet
from sparcom_hexainst.annotation.schema import ANSWERS_FORMAT, VERSION, Answers, ItemAnswers, Kind, item_sha256
from sparcom_hexainst.annotation.table import read_table

AGAIN = "load the file into the form, answer, and save it as complete"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two people's complete answers to one form."""

    first: Answers
    second: Answers


def read_answers(path: Path, kind: Kind) -> Answers:
    """Read one person's complete answers from JSON or, if the name ends in .csv, from a table.

    Raises:
        InvalidInputError: lists every rule that the file breaks.
    """
    content, problems = _load(path)
    try:
        answers = Answers.model_validate(content)
        problems += _rules(answers, kind)
    except ValidationError as error:
        if not problems:
            problems += [f"{problem}. Save the form again" for problem in describe_validation_error(error, "")]
    except InvalidInputError as error:
        problems += error.problems
    if problems:
        raise InvalidInputError([f"{path.name}: {problem.removeprefix(': ')}" for problem in problems])
    return answers


def read_pair(first: Path, second: Path, data: DataSet | None = None) -> Pair:
    """Read two annotators' complete answers to one form, and check them against the data, if given.

    Raises:
        InvalidInputError: lists every rule that the files break, alone or together.
    """
    one, other = collect([lambda: read_answers(first, "annotation"), lambda: read_answers(second, "annotation")])
    problems = [f"{first.name} and {second.name}: {problem}" for problem in _apart(one, other)]
    if data is not None:
        for path, answers in ((first, one), (second, other)):
            problems += [f"{path.name}: {problem}" for problem in data_problems(answers, data)]
    if problems:
        raise InvalidInputError(problems)
    return Pair(one, other)


def collect(readers: list[Callable[[], Answers]]) -> list[Answers]:
    """Call all readers and return their answers; if any fails, raise the problems of all."""
    found, problems = [], []
    for reader in readers:
        try:
            found.append(reader())
        except InvalidInputError as error:
            problems += error.problems
    if problems:
        raise InvalidInputError(problems)
    return found


def same_person(one: str, other: str) -> bool:
    """Return whether two names are equal, ignoring case and spaces."""
    return one.split() == other.split() or one.casefold().split() == other.casefold().split()


def data_problems(answers: Answers, data: DataSet) -> Iterator[str]:
    """Yield reasons why answers cannot be about these instructions."""
    if answers.dataset != data.sha256:
        names = ", ".join(path.name for path in data.paths)
        yield (
            f"dataset: these answers are about another data set (SHA-256 {answers.dataset[:12]}…) than {names} "
            f"({data.sha256[:12]}…). Give the files that the form was made from, unchanged"
        )
    elif set(answers.categories) != set(data.categories):
        yield "categories: these must be the categories of the data and are not. Save the form again"
    for item in answers.items:
        known = data.by_id.get(item.id)
        if known is None:
            yield f"{_name(item)}: id is in none of the data's files. Give the files that the form was made from"
        elif item_sha256(known) != item.sha256:
            yield f"{_name(item)}: sha256 differs from the data's: the text has changed. Have it judged again"


def _load(path: Path) -> tuple[Any, list[str]]:
    """Return a file's unchecked content, and the reasons why it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return None, [f"cannot be read: {error.strerror}"]
    if path.suffix.lower() == ".csv":
        return read_table(data)
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        return None, [f"must be JSON and is not ({error}). Save the form again, or name a table FILE.csv"]
    return content, _foreign(content)


def _foreign(content: Any) -> list[str]:
    """Return a problem if JSON does not hold answers that this release knows."""
    if not isinstance(content, dict) or content.get("format") != ANSWERS_FORMAT:
        return [f"format must be {ANSWERS_FORMAT!r}: this is not a file of answers. Give the file that the form saved"]
    if content.get("version") != VERSION:
        return [f"version must be {VERSION} and is {content.get('version')!r}: read it with the release that wrote it"]
    return []


def _rules(answers: Answers, kind: Kind) -> Iterator[str]:
    """Yield the rules that a well-formed file breaks."""
    if answers.kind != kind:
        yield f"kind must be {kind!r} and is {answers.kind!r}: give a file of that kind"
    if not answers.annotator.strip():
        yield "annotator must not be empty: give your name in the form"
    if not answers.items:
        yield "items must not be empty: give the file that the form saved"
    for field in ("id", "number"):
        for value, count in Counter(getattr(item, field) for item in answers.items).items():
            if count > 1:
                yield f"{field} {value!r} must occur once and occurs {count} times: save the form again"
    values = {criterion.name: criterion.values for criterion in criteria_for(answers.categories)}
    for item in answers.items:
        yield from _item_rules(item, values, whole=kind == "annotation")
    if not answers.complete and not any(item.missing for item in answers.items):
        yield f"complete must be true and is false: {AGAIN}"


def _item_rules(item: ItemAnswers, values: dict[str, tuple[str, ...]], *, whole: bool) -> Iterator[str]:
    missing = [*item.missing, *(name for name in values if whole and name not in item.answers)]
    if missing or not item.answers:
        yield f"{_name(item)}: {' and '.join(missing) or 'each question'} must be answered: {AGAIN}"
    for name, value in item.answers.items():
        if name not in values:
            yield f"{_name(item)}, {name}: there is no such question. Save the form again"
        elif value is not None and value not in values[name]:
            yield f"{_name(item)}, {name}: must be one of {', '.join(values[name])}; it is {value!r}. Choose one"


def _apart(one: Answers, other: Answers) -> Iterator[str]:
    """Yield reasons why two files are not two people's answers to one form."""
    if one.dataset != other.dataset:
        yield "dataset: they are about two data sets. Compare answers to one form"
    elif one.form != other.form:
        yield "form: they answer two forms. Compare answers to one form"
    if same_person(one.annotator, other.annotator):
        yield f"annotator: two people must judge; both files are by {one.annotator!r}. Correct the name if it is wrong"
    for item in {**one.by_id, **other.by_id}.values():
        mine, theirs = one.by_id.get(item.id), other.by_id.get(item.id)
        if mine is None or theirs is None:
            which = "first" if theirs is None else "second"
            yield f"{_name(item)}: only the {which} has it. Compare answers to one form"
        elif mine.sha256 != theirs.sha256:
            yield f"{_name(item)}: sha256 differs: the two read different texts. Compare answers to one form"


def _name(item: ItemAnswers) -> str:
    return f"item {item.number} ({item.id})"
