"""What `sparcom dataset agreement --output` writes, as types; docs/annotation.md describes every field.

Knows nothing of how a figure is computed.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CriterionAgreement(_Frozen):
    """How far two agree on one criterion. `table[i][j]` counts items that got values[i] from one, [j] from the other.

    `kappa` and `interval` are None where they are not defined; `note` then says why.
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
    """How far one annotator agrees with the categories of the data's files, in whose rows these stand."""

    annotator: str
    agreement: CriterionAgreement


class Dispute(_Frozen):
    """An item on which the two disagree, and on what."""

    number: int
    id: str
    criteria: tuple[str, ...]


class Fault(_Frozen):
    """Why an item is to be mended or dropped: the verdict on a criterion, and what it should have been."""

    criterion: str
    verdict: str
    expected: str


class Verdict(_Frozen):
    """The final values of an item; `adjudicated` are the criteria on which a third person decided."""

    number: int
    id: str
    values: dict[str, str]
    adjudicated: tuple[str, ...]
    faults: tuple[Fault, ...]
    comments: tuple[str, ...]


class AgreementReport(_Frozen):
    """Everything that is known of a study; `verdicts` is None while anything is in question."""

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
