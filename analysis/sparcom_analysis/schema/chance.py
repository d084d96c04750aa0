"""The part of metrics.json that says what chance explains: `tests`; see `metrics`.

Lists are in the order of `categories`; what has no value is null.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sparcom_analysis.schema.experts import ComponentName
from sparcom_analysis.schema.intervals import Values
from sparcom_analysis.schema.part import Part


class MatrixTests(Part):
    """Whether one measure's categories are more alike than shuffled names make them."""

    measure: Literal["isn_similarity", "ise_correlation"] = Field(description="Which matrix.")
    component: ComponentName | None = Field(description="Whose neurons; null for experts.")
    categories: list[str] = Field(description="Names of the categories, in order of first appearance.")
    instructions: int = Field(description="Instructions with values; their names were shuffled.")
    within: float | None = Field(description="Mean over all pairs of two instructions of the same category.")
    between: float | None = Field(description="Mean over all pairs of instructions of two categories.")
    p: float | None = Field(description="One-sided p of within minus between, over all categories.")
    category_within: Values = Field(description="By category: mean over its pairs of two instructions.")
    category_others: Values = Field(description="By category: mean over pairs of its instructions with all others.")
    category_p: Values = Field(description="By category: one-sided p of the difference of these two.")
    category_p_adjusted: Values = Field(
        description="The same, corrected for as many tests as there are categories; a small one rejects that the names "
        "mean nothing at all."
    )
    expected: float | None = Field(description="Mean over all pairs of two instructions: what chance gives a cell.")
    pair_p: list[Values] = Field(
        description="Category × category: one-sided p that two categories are more alike than two random groups of "
        "their sizes; null on the diagonal."
    )
    pair_p_adjusted: list[Values] = Field(description="The same, corrected for all pairs of categories.")


class ChanceTests(Part):
    """What shuffling the names of the categories says."""

    permutations: int = Field(description="How often the names were shuffled over the instructions.")
    seed: int = Field(description="Of the shuffles.")
    correction: Literal["westfall-young-step-down"] = Field(
        default="westfall-young-step-down", description="How p is corrected for many tests."
    )
    matrices: list[MatrixTests] = Field(description="One entry a measure and component.")
