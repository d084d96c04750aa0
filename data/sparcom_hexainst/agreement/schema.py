"""Types of the file that `sparcom dataset agreement --output` writes; docs/annotation.md describes every field."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CriterionAgreement(_Frozen):
    """Agreement on one criterion. `table[i][j]` counts items with values[i] from one and values[j] from the other.

    `kappa` and `interval` are None if undefined; `note` then gives the reason.
    """

    criterion: str
    items: int
    agreed: int
    raw_agreement: float
    kappa: float | None
    interval: tuple[float, float] | None
    note: str
    values: tuple[str, ...]
    table: tuple[tuple[int, ...], ...]


class AgainstData(_Frozen):
    """Agreement of one annotator with the categories of the data's files, which are the rows of the table."""

    annotator: str
    agreement: CriterionAgreement


class Dispute(_Frozen):
    """A disputed item and its disputed criteria."""

    number: int
    id: str
    criteria: tuple[str, ...]


class Fault(_Frozen):
    """Reason to correct or drop an item: the verdict on a criterion, and the expected value."""

    criterion: str
    verdict: str
    expected: str


class Verdict(_Frozen):
    """Final values of an item; `adjudicated` lists the criteria that a third person decided."""

    number: int
    id: str
    values: dict[str, str]
    adjudicated: tuple[str, ...]
    faults: tuple[Fault, ...]
    comments: tuple[str, ...]


class AgreementReport(_Frozen):
    """All results of a study; `verdicts` is None while disputes are open."""

    format: Literal["sparcom-agreement"] = "sparcom-agreement"
    version: Literal[1] = 1
    dataset: str
    form: str
    annotators: tuple[str, str]
    adjudicator: str | None
    items: int
    seed: int
    resamples: int
    criteria: tuple[CriterionAgreement, ...]
    against_data: tuple[AgainstData, ...]
    disputes: tuple[Dispute, ...]
    verdicts: tuple[Verdict, ...] | None
