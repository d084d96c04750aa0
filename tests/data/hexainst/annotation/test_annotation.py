"""Forms, and the checks on answers."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparcom_data.errors import InvalidInputError
from sparcom_hexainst.annotation.criteria import CATEGORY_EXAMPLES, criteria_for
from sparcom_hexainst.annotation.make import DataSet, make_form, read_data
from sparcom_hexainst.annotation.page import page_json, render_page
from sparcom_hexainst.annotation.read import read_answers, read_pair
from sparcom_hexainst.annotation.schema import Form
from sparcom_hexainst.annotation.testing import filled

GUIDE = Path(__file__).parents[4] / "docs" / "annotation.md"


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def items(category: str, count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"{category.lower()}-{n}", "category": category, "source": "hidden", "text": f"Do {category} {n}."}
        for n in range(count)
    ]


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    return read_data([write(tmp_path / "a.jsonl", *items("QA", 5)), write(tmp_path / "b.jsonl", *items("CLS", 4))])


@pytest.fixture
def form(data: DataSet) -> Form:
    return make_form(data)


def save(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def as_json(form: Form, annotator: str = "Ada") -> dict[str, Any]:
    return filled(form, annotator).model_dump(mode="json")


def problems(call: Callable[[], object]) -> list[str]:
    with pytest.raises(InvalidInputError) as caught:
        call()
    return caught.value.problems


def test_a_form_does_not_depend_on_the_order_of_files(data: DataSet) -> None:
    """The same seed gives a byte-identical form; another seed gives another order of the same items."""
    turned = read_data(list(reversed(data.paths)))
    assert render_page(make_form(data, seed=4)) == render_page(make_form(turned, seed=4))
    other = make_form(data, seed=5)
    assert [item.id for item in other.items] != [item.id for item in make_form(data, seed=4).items]
    assert {item.id for item in other.items} == set(data.by_id)


def test_a_sample_is_drawn_of_each_category(data: DataSet) -> None:
    """--sample draws equally many per category; a smaller sample is part of a larger one; too many are refused."""
    small, large = make_form(data, sample=2, seed=1), make_form(data, sample=4, seed=1)
    assert Counter(item.id.split("-")[0] for item in small.items) == {"qa": 2, "cls": 2}
    assert {item.id for item in small.items} < {item.id for item in large.items}
    assert [item.number for item in small.items] == [1, 2, 3, 4]
    (problem,) = problems(lambda: make_form(data, sample=5))
    assert problem == "each category must have 5 instructions; 'CLS' has 4: sample 4 or fewer"


def test_the_form_is_blind(form: Form) -> None:
    """The page contains neither category nor source of an item, only the categories to choose from."""
    content = json.loads(page_json(form))
    assert set(content["items"][0]) == {"number", "id", "sha256", "text", "ask", "said"}
    assert "hidden" not in page_json(form)
    assert [option["value"] for option in content["criteria"][2]["options"]] == ["CLS", "QA", "none of these"]


def test_the_page_holds_everything(form: Form) -> None:
    """The page references no address, and its policy allows only its own script and style."""
    page = render_page(form)
    assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?(?!data:)\w+:", page)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src &#39;none&#39;; script-src &#39;sha256-")
    assert "unsafe" not in policy[1]
    assert page.count("</script>") == 2


def test_unreadable_instructions_are_refused(tmp_path: Path) -> None:
    """Token ids, ids in two files and a reserved category name are reported at once, with a remedy."""
    one = write(tmp_path / "a.jsonl", {"id": "x", "text": "a"}, {"id": "y", "token_ids": [1]})
    two = write(tmp_path / "b.jsonl", {"id": "x", "text": "b"})
    found = problems(lambda: read_data([one, two]))
    assert found == [
        "a.jsonl, id 'y': people cannot read token_ids; give text or messages instead",
        "ids must be unique within a batch: 'x' occurs 2 times; remove all but one",
    ]
    reserved = read_data([write(tmp_path / "c.jsonl", {"id": "z", "text": "a", "category": "none of these"})])
    assert "no category may be called 'none of these'" in problems(lambda: make_form(reserved))[0]


def test_without_categories_none_is_asked(tmp_path: Path) -> None:
    """Instructions without categories are judged by the other three criteria."""
    form = make_form(read_data([write(tmp_path / "a.jsonl", {"id": "x", "text": "a"})]))
    assert form.items[0].ask == ("grammar", "redundancy", "clarity")
    path = save(tmp_path / "ada.json", as_json(form))
    assert read_answers(path, "annotation").items[0].answers == {
        "grammar": "correct",
        "redundancy": "none",
        "clarity": "clear",
    }


def set_answer(file: dict[str, Any], **answers: object) -> None:
    file["items"][0]["answers"].update(answers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.update(format="other"), "format must be 'sparcom-annotation'"),
        (lambda file: file.update(version=2), "version must be 1 and is 2"),
        (lambda file: file.update(kind="adjudication"), "kind must be 'annotation' and is 'adjudication'"),
        (lambda file: file.update(annotator=" "), "annotator must not be empty"),
        (lambda file: file.update(items=[]), "items must not be empty"),
        (lambda file: file.update(complete=False), "complete must be true"),
        (lambda file: file.update(extra=1), "extra: unknown field"),
        (lambda file: file["items"].append(file["items"][0]), "must occur once and occurs 2 times"),
        (lambda file: set_answer(file, grammar=None), "item 1 (ID): grammar must be answered: load the file"),
        (lambda file: file["items"][0]["answers"].pop("clarity"), "item 1 (ID): clarity must be answered"),
        (lambda file: set_answer(file, mood="good"), "item 1 (ID), mood: there is no such question"),
        (
            lambda file: set_answer(file, category="MATH"),
            "item 1 (ID), category: must be one of CLS, QA, none of these; it is 'MATH'. Choose one",
        ),
        (lambda file: file["items"][0].update(sha256="x"), "items.0.sha256: String should match"),
        (lambda file: file["items"][0].update(comment="\ud800"), "lone surrogate"),
    ],
)
def test_answers_that_break_a_rule_are_refused(
    change: Callable[[dict[str, Any]], object], message: str, form: Form, tmp_path: Path
) -> None:
    """Each rule for answers has a sentence with file, item, field and remedy."""
    file = as_json(form)
    change(file)
    found = problems(lambda: read_answers(save(tmp_path / "ada.json", file), "annotation"))
    assert message.replace("ID", form.items[0].id) in found[0]
    assert found[0].startswith("ada.json: ")


def test_all_problems_of_both_files_are_reported(form: Form, tmp_path: Path) -> None:
    """Two missing answers, a wrong value in the other file, and a file that is not JSON are all reported."""
    one, other = as_json(form), as_json(form, "Ben")
    set_answer(one, grammar=None, clarity=None)
    one["items"][2]["answers"]["redundancy"] = None
    set_answer(other, clarity="so so")
    paths = [save(tmp_path / "a.json", one), save(tmp_path / "b.json", other)]
    found = problems(lambda: read_pair(*paths))
    assert [line.split(":")[0] for line in found] == ["a.json", "a.json", "b.json"]
    assert "grammar and clarity must be answered" in found[0]
    paths[1].write_text("{")
    assert [line.split(":")[0] for line in problems(lambda: read_pair(*paths))] == ["a.json", "a.json", "b.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.update(annotator="  ADA "), "both files are by 'Ada'"),
        (lambda file: file.update(dataset="0" * 64), "dataset: they are about two data sets"),
        (lambda file: file.update(form="0" * 64), "form: they answer two forms"),
        (lambda file: file["items"].pop(0), "only the first has it"),
        (lambda file: file["items"][0].update(sha256="0" * 64), "sha256 differs: the two read different texts"),
    ],
)
def test_a_pair_is_two_people_and_one_form(
    change: Callable[[dict[str, Any]], object], message: str, form: Form, tmp_path: Path
) -> None:
    """Answers that do not belong together are not compared."""
    other = as_json(form, "Ben")
    change(other)
    paths = [save(tmp_path / "a.json", as_json(form)), save(tmp_path / "b.json", other)]
    assert any(message in problem for problem in problems(lambda: read_pair(*paths)))


def test_answers_are_checked_against_the_data(data: DataSet, form: Form, tmp_path: Path) -> None:
    """Other files, a changed text and an unknown id are reported; a changed category makes another data set."""
    paths = [save(tmp_path / f"{name}.json", as_json(form, name)) for name in ("Ada", "Ben")]
    assert read_pair(*paths, data).first.annotator == "Ada"
    changed = write(tmp_path / "c.jsonl", *items("CLS", 4)[:3], items("CLS", 4)[3] | {"text": "Do it."})
    found = problems(lambda: read_pair(*paths, read_data([data.paths[0], changed])))
    assert len(found) == 4
    assert "Ada.json: dataset: these answers are about another data set" in found[0]
    assert "(cls-3): sha256 differs from the data's" in found[1]
    found = problems(lambda: read_pair(*paths, read_data([data.paths[0]])))
    assert sum("is in none of the data's files" in problem for problem in found) == 8
    recategorised = write(tmp_path / "d.jsonl", *[line | {"category": "QA"} for line in items("CLS", 4)])
    found = problems(lambda: read_pair(*paths, read_data([data.paths[0], recategorised])))
    assert [problem.split(": ")[1] for problem in found] == ["dataset", "dataset"]


def test_the_guide_repeats_the_form() -> None:
    """docs/annotation.md has every criterion, value and example of the form, two examples per criterion."""
    guide = GUIDE.read_text()
    for criterion in criteria_for(["CLS", "CODE"]):
        assert f"### {criterion.title}" in guide
        for option in criterion.options:
            assert option.value in ("CLS", "CODE") or f"`{option.value}`" in guide, option.value
        assert len(criterion.examples) == 2
        for example in criterion.examples:
            assert example.text in guide
            assert example.why in guide
    assert len(CATEGORY_EXAMPLES) == 2
