"""Disputes between two annotators: find them, make the adjudicator's form, and read its decisions.

The form asks only disputed criteria and shows both answers without names. Seed, item and name determine their order per
item. So neither the order of the files nor a habit of the adjudicator favours one person.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sparcom_data.errors import InvalidInputError
from sparcom_hexainst.annotation.criteria import criteria_for
from sparcom_hexainst.annotation.make import DataSet, draw, form_item
from sparcom_hexainst.annotation.read import Pair, read_answers, same_person
from sparcom_hexainst.annotation.schema import Answers, Form, FormItem, PriorAnswers, Reference, shown_text


def disputes(first: Answers, second: Answers) -> dict[str, tuple[str, ...]]:
    """Return the disputed criteria of each disputed item, keyed by id, in the order of the form."""
    found = {}
    for item in sorted(first.items, key=lambda item: item.number):
        other = second.by_id[item.id].answers
        if asked := tuple(name for name, value in item.answers.items() if other[name] != value):
            found[item.id] = asked
    return found


def make_adjudication(data: DataSet, first: Answers, second: Answers, *, seed: int = 0) -> Form:
    """Make the adjudicator's form. Items keep the numbers that the annotators saw, since comments may cite them.

    Raises:
        InvalidInputError: the two agree on everything.
    """
    asked = disputes(first, second)
    if not asked:
        raise InvalidInputError("the two agree on everything: there is nothing to adjudicate. Omit --adjudicate")
    order = sorted(asked, key=lambda id_: draw(seed, "adjudication", first.by_id[id_].sha256))
    items = [_disputed(data, id_, asked[id_], (first, second), seed) for id_ in order]
    used = {name for names in asked.values() for name in names}
    return Form(
        kind="adjudication",
        dataset=first.dataset,
        criteria=tuple(criterion for criterion in criteria_for(data.categories) if criterion.name in used),
        items=tuple(items),
        reference=tuple(_reference(data, first, asked)) if "redundancy" in used else (),
    )


def _disputed(data: DataSet, id_: str, asked: tuple[str, ...], people: tuple[Answers, Answers], seed: int) -> FormItem:
    item = form_item(people[0].by_id[id_].number, data.by_id[id_], asked)
    shuffled = sorted(people, key=lambda person: draw(seed, f"said {person.annotator}", item.sha256))
    return item.model_copy(update={"said": tuple(_prior_answers(person, id_, asked) for person in shuffled)})


def _prior_answers(person: Answers, id_: str, asked: tuple[str, ...]) -> PriorAnswers:
    item = person.by_id[id_]
    return PriorAnswers(answers={name: item.answers[name] or "" for name in asked}, comment=item.comment)


def _reference(data: DataSet, answers: Answers, asked: dict[str, tuple[str, ...]]) -> Iterator[Reference]:
    """Yield the other items: redundancy cannot be judged without them."""
    for item in sorted(answers.items, key=lambda item: item.number):
        if item.id not in asked:
            yield Reference(number=item.number, text=shown_text(data.by_id[item.id]))


def read_adjudication(path: Path, pair: Pair) -> Answers:
    """Read the adjudicator's decisions: exactly one per disputed criterion.

    Raises:
        InvalidInputError: lists every rule that the file breaks.
    """
    answers = read_answers(path, "adjudication")
    problems = [f"{path.name}: {problem}" for problem in _problems(answers, pair)]
    if problems:
        raise InvalidInputError(problems)
    return answers


def _problems(answers: Answers, pair: Pair) -> Iterator[str]:
    again = "write a new form with --adjudicate"
    if answers.dataset != pair.first.dataset:
        yield "dataset: these decisions are about another data set than the annotators' answers. Give matching files"
    for person in (pair.first, pair.second):
        if same_person(answers.annotator, person.annotator):
            yield f"annotator: a third person must decide; {answers.annotator!r} is one of the two who disagree"
    asked = disputes(pair.first, pair.second)
    numbers = {item.id: item.number for item in pair.first.items}
    for id_, names in asked.items():
        found = answers.by_id.get(id_)
        if lacking := [name for name in names if found is None or name not in found.answers]:
            yield f"item {numbers[id_]} ({id_}): {' and '.join(lacking)} must be decided: {again}"
    for item in answers.items:
        where = f"item {item.number} ({item.id})"
        if item.id not in numbers:
            yield f"{where}: id is not in the annotators' answers. Give matching decisions"
        elif item.sha256 != pair.first.by_id[item.id].sha256:
            yield f"{where}: sha256 differs: another text was judged; {again}"
        elif more := [name for name in item.answers if name not in asked.get(item.id, ())]:
            yield f"{where}: {' and '.join(more)} is not disputed between these two; {again}"
