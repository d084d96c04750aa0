"""Puts intervals and tests into the parts of `Metrics`; computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np

from sparcom_analysis.schema.chance import ChanceTests, MatrixTests
from sparcom_analysis.schema.experts import ComponentName
from sparcom_analysis.schema.intervals import ResamplingFacts
from sparcom_analysis.schema.part import Part
from sparcom_analysis.statistics.bootstrap import Interval, Resamples
from sparcom_analysis.statistics.pair_matrix import MOST_INSTRUCTIONS
from sparcom_analysis.statistics.permutation import MOST_CATEGORIES, LabelTests
from sparcom_analysis.summary.numbers import nulls

P = TypeVar("P", bound=Part)


def why_not(instructions: int, categories: int) -> str:
    """Why intervals and tests cannot be had of so many instructions and categories; empty where they can."""
    if instructions > MOST_INSTRUCTIONS:
        return (
            f"Intervals and tests are computed for up to {MOST_INSTRUCTIONS:,} instructions, of which every pair is "
            f"kept; here are {instructions:,}."
        )
    if categories > MOST_CATEGORIES:
        return f"Tests are computed for up to {MOST_CATEGORIES:,} categories; here are {categories:,}."
    return ""


def with_interval(part: P, interval: Interval, of: str = "matrix") -> P:
    """A copy of a part whose `low` and `high` are those of its field `of`, null for NaN.

    Raises:
        ValueError: the interval has another shape than that field, or the part has no place for an interval.
    """
    fields = type(part).model_fields
    if not {"low", "high", of} <= fields.keys():
        raise ValueError(f"a part with an interval needs low, high and {of}; {type(part).__name__} lacks one of them")
    shape = np.array(getattr(part, of), dtype=np.float64).shape
    if interval.low.shape != shape or interval.high.shape != shape:
        raise ValueError(f"the interval of {of} {shape} must have its shape; it has {interval.low.shape}")
    held = {name: getattr(part, name) for name in fields}
    return type(part)(**{**held, "low": nulls(interval.low), "high": nulls(interval.high)})


def resampling_facts(resamples: Resamples) -> ResamplingFacts:
    """How intervals were drawn."""
    return ResamplingFacts(resamples=len(resamples), confidence=resamples.confidence, seed=resamples.seed)


def matrix_tests(
    tests: LabelTests, measure: Literal["isn_similarity", "ise_correlation"], component: ComponentName | None = None
) -> MatrixTests:
    """The tests of one matrix as metrics.json has them."""
    return MatrixTests(
        measure=measure,
        component=component,
        categories=list(tests.categories),
        instructions=tests.instructions,
        within=nulls(tests.within),
        between=nulls(tests.between),
        p=nulls(tests.p),
        category_within=nulls(tests.category_within),
        category_others=nulls(tests.category_others),
        category_p=nulls(tests.category_p),
        category_p_adjusted=nulls(tests.category_p_adjusted),
        expected=nulls(tests.expected),
        pair_p=nulls(tests.pair_p),
        pair_p_adjusted=nulls(tests.pair_p_adjusted),
    )


def chance_tests(tests: LabelTests, matrices: Sequence[MatrixTests]) -> ChanceTests:
    """All matrices' tests as one part; `tests` is any of them, they share shuffles."""
    return ChanceTests(permutations=tests.permutations, seed=tests.seed, matrices=list(matrices))
