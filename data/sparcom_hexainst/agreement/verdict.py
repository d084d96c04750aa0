"""Outcome of a study: final values of every item, faults to correct, and the lines that passed.

A value on which both annotators agree is final; the adjudicator decides the others. An item passes if its grammar is
correct, its redundancy none, its clarity clear, and its category that of the data's file.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator

from sparcom_data.errors import InvalidInputError
from sparcom_hexainst.agreement.disputes import disputes
from sparcom_hexainst.agreement.measure import RESAMPLES, agree, agree_with_data
from sparcom_hexainst.agreement.schema import AgreementReport, Dispute, Fault, Verdict
from sparcom_hexainst.annotation.criteria import CATEGORY, SOUND
from sparcom_hexainst.annotation.make import DataSet
from sparcom_hexainst.annotation.read import Pair
from sparcom_hexainst.annotation.schema import Answers, ItemAnswers


def report(pair: Pair, data: DataSet | None = None, third: Answers | None = None, *, seed: int = 0) -> AgreementReport:
    """Return agreement, disputes and, once no dispute is open, verdicts."""
    asked = disputes(pair.first, pair.second)
    resolved = third is not None or not asked
    return AgreementReport(
        dataset=pair.first.dataset,
        form=pair.first.form,
        annotators=(pair.first.annotator, pair.second.annotator),
        adjudicator=third.annotator if third else None,
        items=len(pair.first.items),
        seed=seed,
        resamples=RESAMPLES,
        criteria=agree(pair, seed=seed),
        against_data=agree_with_data(pair, data, seed=seed) if data else (),
        disputes=tuple(
            Dispute(number=pair.first.by_id[id_].number, id=id_, criteria=criteria) for id_, criteria in asked.items()
        ),
        verdicts=tuple(_verdicts(pair, data, third)) if resolved else None,
    )


def _verdicts(pair: Pair, data: DataSet | None, third: Answers | None) -> Iterator[Verdict]:
    decided = third.by_id if third else {}
    for item in sorted(pair.first.items, key=lambda item: item.number):
        judged = [item, pair.second.by_id[item.id], *([decided[item.id]] if item.id in decided else [])]
        values = {name: value or "" for each in (judged[0], *judged[2:]) for name, value in each.answers.items()}
        yield Verdict(
            number=item.number,
            id=item.id,
            values=values,
            adjudicated=tuple(decided[item.id].answers) if item.id in decided else (),
            faults=tuple(_faults(values, data.by_id[item.id].category if data else "")),
            comments=tuple(_comments(judged)),
        )


def _faults(values: dict[str, str], category: str) -> Iterator[Fault]:
    """Yield the faults of an item; without a known category, any category passes."""
    expected = SOUND | ({CATEGORY: category} if category else {})
    for name, value in values.items():
        if value != expected.get(name, value):
            yield Fault(criterion=name, verdict=value, expected=expected[name])


def _comments(judged: list[ItemAnswers]) -> Iterator[str]:
    yield from (item.comment for item in judged if item.comment)


def passed(result: AgreementReport) -> frozenset[str]:
    """Return the ids of the items without faults.

    Raises:
        InvalidInputError: disputes are still open.
    """
    if result.verdicts is None:
        raise InvalidInputError(
            f"verdicts need all disputes decided; {len(result.disputes)} items are disputed. Have them decided with "
            "the form that --adjudicate writes, and give the decisions with --adjudicated"
        )
    return frozenset(verdict.id for verdict in result.verdicts if not verdict.faults)


def accepted_lines(data: DataSet, ids: Collection[str]) -> Iterator[bytes]:
    """Yield the lines of the data's files with these ids, byte for byte; add a missing line end."""
    for path in data.paths:
        with path.open("rb") as file:
            for line in file:
                if line.strip() and json.loads(line)["id"] in ids:
                    yield line if line.endswith(b"\n") else line + b"\n"
