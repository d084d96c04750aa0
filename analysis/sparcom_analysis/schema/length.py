"""The part `length_matched` of metrics.json: the similarities with the same number of tokens of each instruction."""

from __future__ import annotations

from pydantic import Field

from sparcom_analysis.schema.experts import ComponentName
from sparcom_analysis.schema.part import Part

Matrix = list[list[float | None]]


class MatchedMatrix(Part):
    """A symmetric matrix over categories with T matched, and the plain one over the same instructions."""

    categories: list[str] = Field(description="Names of rows and columns, in order of first appearance.")
    matrix: Matrix = Field(description="With T matched; null where there is no pair.")
    plain: Matrix = Field(description="With all tokens, over the instructions that `matrix` is over.")
    difference: Matrix = Field(description="`matrix` minus `plain`.")
    low: Matrix | None = Field(default=None, description="Lower ends of the intervals of `matrix`; null without.")
    high: Matrix | None = Field(default=None, description="Their upper ends.")
    plain_low: Matrix | None = Field(default=None, description="Lower ends of the intervals of `plain`; null without.")
    plain_high: Matrix | None = Field(default=None, description="Their upper ends.")
    difference_low: Matrix | None = Field(
        default=None, description="Lower ends of the intervals of `difference`, from the same draws; null without."
    )
    difference_high: Matrix | None = Field(default=None, description="Their upper ends.")
    rank_correlation: float | None = Field(
        description="Spearman's, of the cells of two different categories; null with fewer than three, or all the same."
    )
    mean_change: float | None = Field(
        description="Mean of the differences of all pairs of categories, each with itself included."
    )
    largest_change: float | None = Field(description="The difference that is largest without its sign.")
    largest_change_of: list[str] | None = Field(description="The two categories of that cell.")
    compared_rows: int = Field(description="Rows with values on and beside the diagonal.")
    diagonal_largest: int = Field(description="Of these rows, those whose diagonal is their largest value.")
    diagonal_largest_plain: int = Field(description="The same of `plain`.")


class LengthMatchedCategory(Part):
    """How many instructions of a category the draw is over."""

    category: str = Field(description='Its name; "(none)" where instructions carry none.')
    used: int = Field(description="Instructions represented by drawn tokens.")
    too_short: int = Field(description="Instructions left out, since they have fewer tokens than are drawn.")


class LengthMatchedNeurons(Part):
    """The neurons of one component with T matched."""

    component: ComponentName = Field(description="Whose neurons: the archive's name of the component.")
    mean_isn: float = Field(description="Mean size of the ISN sets with T matched.")
    mean_isn_plain: float = Field(description="The same with all tokens, of the same instructions.")
    size_by_length: float | None = Field(
        description="Spearman's rank correlation of T before the draw and the size of the set with T matched."
    )
    size_by_length_plain: float | None = Field(description="The same with the size of the set from all tokens.")
    isn_similarity: MatchedMatrix = Field(description="Equation 10, pairs with itself counted.")
    isn_similarity_without_self: MatchedMatrix = Field(description="Equation 10 over pairs of two instructions.")


class LengthMatched(Part):
    """What length explains: every instruction represented by the same number of its tokens."""

    tokens: int = Field(description="m: tokens drawn of each instruction without replacement.")
    seed: int = Field(description="Of the draw.")
    used: int = Field(description="Instructions with at least m tokens.")
    too_short: int = Field(description="Instructions left out, since they have fewer.")
    by_category: list[LengthMatchedCategory] = Field(description="In order of first appearance.")
    components: list[LengthMatchedNeurons] = Field(description="Those that the archive has, in its order.")
    ise_correlation: MatchedMatrix | None = Field(
        description="Equation 14, pairs with itself counted; null for a dense model."
    )
    ise_correlation_without_self: MatchedMatrix | None = Field(
        default=None, description="Equation 14 over pairs of two instructions; null for a dense model."
    )
