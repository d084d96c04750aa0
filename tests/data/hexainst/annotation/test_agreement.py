"""Agreement measures and the outcome of a study."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from sklearn.metrics import cohen_kappa_score

from sparcom_data.errors import InvalidInputError
from sparcom_hexainst.agreement import schema as agreement_schema
from sparcom_hexainst.agreement.disputes import disputes, make_adjudication, read_adjudication
from sparcom_hexainst.agreement.measure import agreement, bootstrap, kappas
from sparcom_hexainst.agreement.verdict import accepted_lines, passed, report
from sparcom_hexainst.annotation.make import DataSet, make_form, read_data
from sparcom_hexainst.annotation.read import Pair
from sparcom_hexainst.annotation.schema import Answers
from sparcom_hexainst.annotation.testing import filled

GUIDE = Path(__file__).parents[4] / "docs" / "annotation.md"
LINES = [
    b'{"id": "qa-1",   "category": "QA", "text": "One?"}\r\n',
    b"\n",
    b'{"id": "qa-2", "category": "QA", "text": "Tw\\u00f6?"}\n',
    b'{"id": "cls-1", "category": "CLS", "text": "Three?"}\n',
    b'{"id": "cls-2", "category": "CLS", "text": "Four?"}',
]


def spread(table: Sequence[Sequence[int]]) -> tuple[list[str], list[str]]:
    """Return two sequences of values with this confusion matrix."""
    pairs = [(i, j) for i, row in enumerate(table) for j, count in enumerate(row) for _ in range(count)]
    return [str(i) for i, _ in pairs], [str(j) for _, j in pairs]


@pytest.mark.parametrize(
    ("table", "agreed", "kappa"),
    [
        # Cohen 1960, two clinicians, 200 patients: p_o = 140/200, p_e = (120·100 + 60·60 + 20·40)/200² = 0.41
        ([[88, 14, 18], [10, 40, 10], [2, 6, 12]], 140, 0.29 / 0.59),
        # Fleiss, Statistical Methods for Rates and Proportions, two raters, 100 subjects: p_o = 0.89, p_e = 0.66
        ([[75, 1, 4], [5, 4, 1], [0, 0, 10]], 89, 0.23 / 0.34),
        # The guide's example: one "faulty" by each, on two items
        ([[58, 1], [1, 0]], 58, (58 / 60 - (59**2 + 1) / 60**2) / (1 - (59**2 + 1) / 60**2)),
        ([[0, 5], [0, 0]], 0, 0.0),  # each annotator uses one value throughout, a different one
    ],
)
def test_kappa_equals_published_values(table: list[list[int]], agreed: int, kappa: float) -> None:
    """Agreement equals results computed by hand or published."""
    first, second = spread(table)
    found = agreement("x", first, second, ["0", "1", "2"])
    assert found.agreed == agreed
    assert found.raw_agreement == agreed / len(first)
    assert found.kappa == pytest.approx(kappa, abs=1e-12)
    assert [list(row) for row in found.table] == table


def test_the_example_of_the_guide_is_right() -> None:
    """The example in docs/annotation.md gives the values stated there."""
    found = agreement("grammar", *spread([[58, 1], [1, 0]]), ["0", "1"])
    assert found.kappa is not None
    text = " ".join(GUIDE.read_text().split())
    assert f"a raw agreement of {found.raw_agreement:.3f} and a kappa of −{-found.kappa:.3f}" in text


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), min_size=1, max_size=60))
def test_resamples_are_scored_as_scikit_learn_would(pairs: list[tuple[str, str]]) -> None:
    """Kappa from a matrix equals scikit-learn's from the sequences, and is undefined only if all values are equal."""
    first, second = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    table = np.array([[pairs.count((one, other)) for other in "abcd"] for one in "abcd"])
    (found,) = kappas(table[None])
    if len({*first, *second}) == 1:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(float(cohen_kappa_score(first, second)), abs=1e-12)
        assert agreement("x", first, second, "abcd").kappa == pytest.approx(found, abs=1e-12)


def test_the_interval_is_that_of_drawing_items() -> None:
    """Resampling matrices gives the same interval as resampling items with scikit-learn; seeds repeat."""
    table = [[88, 14, 18], [10, 40, 10], [2, 6, 12]]
    first, second = (np.array(values) for values in spread(table))
    generator = np.random.default_rng(5)
    draws = [generator.integers(0, len(first), len(first)) for _ in range(1000)]
    slow = np.percentile([cohen_kappa_score(first[draw], second[draw]) for draw in draws], (2.5, 97.5))
    found = agreement("x", list(first), list(second), ["0", "1", "2"], seed=1)
    assert found.interval == pytest.approx(tuple(slow), abs=0.015)
    assert found == agreement("x", list(first), list(second), ["0", "1", "2"], seed=1)
    assert found.interval != agreement("x", list(first), list(second), ["0", "1", "2"], seed=2).interval


def test_many_values_are_resampled_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks bound memory and draw the same as one block."""
    table = np.array([[5, 1], [2, 7]])
    whole = bootstrap(table, seed=3, resamples=1000)
    monkeypatch.setattr("sparcom_hexainst.agreement.measure._CELLS", 40)
    assert np.array_equal(whole, bootstrap(table, seed=3, resamples=1000), equal_nan=True)


def test_undefined_kappa_is_reported_without_a_number() -> None:
    """Constant values have no kappa; if resamples often hold only one value, there is no interval."""
    found = agreement("clarity", ["clear"] * 9, ["clear"] * 9, ["clear", "unclear"])
    assert (found.kappa, found.interval, found.raw_agreement) == (None, None, 1.0)
    assert "one and the same value throughout" in found.note
    found = agreement("grammar", *spread([[59, 0], [0, 1]]), ["0", "1"])
    assert (found.kappa, found.interval) == (1.0, None)
    assert re.match(r"no interval: kappa is undefined in 3\d% of the resamples, which hold only", found.note)


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    (tmp_path / "i.jsonl").write_bytes(b"".join(LINES))
    return read_data([tmp_path / "i.jsonl"])


@pytest.fixture
def pair(data: DataSet) -> Pair:
    """Two annotators who disagree on the grammar of qa-1 and on the category and clarity of cls-1."""
    form, right = make_form(data), {id_: {"category": item.category} for id_, item in data.by_id.items()}
    first = filled(form, "Ada", by_id=right | {"qa-1": {"category": "QA", "grammar": "faulty"}}, comment="a comma")
    second = filled(form, "Ben", by_id=right | {"cls-1": {"category": "QA", "clarity": "unclear"}})
    return Pair(first, second)


def decide(data: DataSet, pair: Pair, **values: str) -> Answers:
    return filled(make_adjudication(data, pair.first, pair.second), "Cleo", **({"category": "CLS"} | values))


def test_only_disputes_are_adjudicated(data: DataSet, pair: Pair) -> None:
    """The adjudicator's form asks only disputed criteria; the order of the answers is drawn and unnamed."""
    asked = disputes(pair.first, pair.second)
    assert asked == {"qa-1": ("grammar",), "cls-1": ("category", "clarity")}
    form = make_adjudication(data, pair.first, pair.second)
    assert {item.id: item.ask for item in form.items} == asked
    assert [criterion.name for criterion in form.criteria] == ["grammar", "category", "clarity"]
    assert not form.reference
    assert form == make_adjudication(data, pair.second, pair.first), "the order of the files does not matter"
    firsts = [make_adjudication(data, pair.first, pair.second, seed=seed).items[0].said[0] for seed in range(30)]
    assert 5 < sum(answers.comment == "a comma" for answers in firsts) < 25
    with pytest.raises(InvalidInputError, match="agree on everything"):
        make_adjudication(data, pair.first, pair.first)


def test_items_can_be_looked_up_where_redundancy_is_in_question(data: DataSet, pair: Pair) -> None:
    """If redundancy is disputed, the form includes the other items."""
    first = filled(make_form(data), "Dora", by_id={"qa-1": {"redundancy": "same"}})
    form = make_adjudication(data, first, filled(make_form(data), "Ben"))
    assert {entry.text for entry in form.reference} == {"Twö?", "Three?", "Four?"}


def test_verdicts_name_faults_and_reasons(data: DataSet, pair: Pair) -> None:
    """Agreed values stand, the third person decides the rest, and every fault names the expected value."""
    open_report = report(pair, data)
    assert open_report.verdicts is None
    with pytest.raises(InvalidInputError, match="2 items are disputed"):
        passed(open_report)
    found = report(pair, data, decide(data, pair, grammar="faulty", category="QA"))
    assert found.verdicts is not None
    verdicts = {verdict.id: verdict for verdict in found.verdicts}
    assert [(fault.criterion, fault.verdict, fault.expected) for fault in verdicts["qa-1"].faults] == [
        ("grammar", "faulty", "correct")
    ]
    assert verdicts["qa-1"].adjudicated == ("grammar",)
    assert verdicts["qa-1"].comments == ("a comma",)
    assert [(fault.criterion, fault.verdict, fault.expected) for fault in verdicts["cls-1"].faults] == [
        ("category", "QA", "CLS")
    ]
    assert verdicts["cls-1"].values["clarity"] == "clear"
    assert passed(found) == {"qa-2", "cls-2"}


def test_agreed_faults_need_no_adjudicator(data: DataSet) -> None:
    """Full agreement needs no adjudicator; a category that both see differently from the file is a fault."""
    form = make_form(data)
    people = [filled(form, name, category="QA", by_id={"qa-2": {"redundancy": "padded"}}) for name in ("A", "B")]
    assert passed(report(Pair(*people), data)) == {"qa-1"}
    assert passed(report(Pair(*people))) == {"qa-1", "cls-1", "cls-2"}, "without data, no category can differ"


def test_accepted_lines_are_byte_identical(data: DataSet) -> None:
    """Accepted lines are byte-identical, with spaces, escapes and line ends; only a missing last line end is added."""
    assert list(accepted_lines(data, {"qa-1", "cls-2"})) == [LINES[0], LINES[4] + b"\n"]
    assert b"".join(accepted_lines(data, set(data.by_id))) == b"".join([*LINES[:1], *LINES[2:]]) + b"\n"


def test_annotators_are_compared_with_the_data(data: DataSet, pair: Pair) -> None:
    """In each annotator's agreement with the data, the data's categories are the rows."""
    one, other = report(pair, data).against_data
    assert (one.annotator, one.agreement.kappa) == ("Ada", 1.0)
    assert other.agreement.values == ("CLS", "QA")
    assert other.agreement.table == ((1, 1), (0, 2))
    assert report(pair).against_data == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.update(annotator="ben"), "is one of the two who disagree"),
        (lambda file: file.update(dataset="0" * 64), "another data set"),
        (lambda file: file["items"].pop(), "must be decided"),
        (lambda file: file["items"][0].update(id="new"), "(new): id is not in"),
        (lambda file: file["items"][0].update(sha256="0" * 64), "another text was judged"),
        (lambda file: file["items"][0]["answers"].update(redundancy="none"), "redundancy is not disputed"),
    ],
)
def test_decisions_must_belong_to_the_disputes(
    change: Callable[[dict[str, Any]], object], message: str, data: DataSet, pair: Pair, tmp_path: Path
) -> None:
    """A third person must give exactly one decision per dispute."""
    path, file = tmp_path / "cleo.json", decide(data, pair).model_dump(mode="json")
    path.write_text(json.dumps(file))
    assert read_adjudication(path, pair).annotator == "Cleo"
    change(file)
    path.write_text(json.dumps(file))
    with pytest.raises(InvalidInputError) as caught:
        read_adjudication(path, pair)
    assert any(message in problem for problem in caught.value.problems)


def test_the_report_is_documented() -> None:
    """docs/annotation.md names every field that --output writes."""
    part = GUIDE.read_text().split("### Agreement")[1]
    models = [
        kind for kind in vars(agreement_schema).values() if isinstance(kind, type) and issubclass(kind, BaseModel)
    ]
    for name in {name for model in models for name in model.model_fields}:
        assert f"`{name}`" in part, name
