"""Intervals and tests in metrics.json, in tables and in sentences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from pydantic import Field

from sparcom_analysis.schema.chance import ChanceTests, MatrixTests
from sparcom_analysis.schema.intervals import IntervalBounds
from sparcom_analysis.schema.part import Part
from sparcom_analysis.statistics.bootstrap import Interval, draw_resamples, pair_intervals
from sparcom_analysis.statistics.pair_matrix import MOST_INSTRUCTIONS, PairMatrix
from sparcom_analysis.statistics.permutation import MOST_CATEGORIES, permutation_tests
from sparcom_analysis.summary.chance import chance_tests, matrix_tests, resampling_facts, why_not, with_interval
from sparcom_analysis.tables.chance import JOINT, category_tests_table, chance_sentence, pair_tests_table


class Matrix(IntervalBounds):
    """A part as those of metrics.json that have intervals."""

    categories: list[str] = Field(description="Names.")
    matrix: list[list[float | None]] = Field(description="Cells.")


class Plain(Part):
    """A part without a place for intervals."""

    matrix: list[list[float | None]] = Field(description="Cells.")


def pairs_of(categories: Sequence[str], alike: Sequence[tuple[str, str]]) -> PairMatrix:
    """Values around 0.2, and around 0.5 for pairs of these two categories."""
    rng = np.random.default_rng(0)
    count = len(categories)
    values = rng.uniform(0.15, 0.25, (count, count))
    values = (values + values.T) / 2
    for i in range(count):
        for j in range(count):
            if (categories[i], categories[j]) in alike or (categories[j], categories[i]) in alike:
                values[i, j] += 0.3
    values[np.diag_indices(count)] = 1
    return PairMatrix(list(categories), values)


def parts_of(pairs: PairMatrix) -> tuple[ChanceTests, MatrixTests]:
    """The parts of metrics.json for these pairs."""
    found = permutation_tests(pairs, permutations=199)
    part = chance_tests(found, [matrix_tests(found, "isn_similarity", "neuron")])
    return part, part.matrices[0]


def test_an_interval_comes_beside_its_matrix() -> None:
    """Low and high have the matrix's form, null where there is none, and the part is read back as written."""
    pairs = pairs_of(["a", "a", "a", "b"], [])
    draws = draw_resamples(pairs.categories, resamples=50)
    found = pair_intervals(pairs, draws).without_self
    part = Matrix(categories=["a", "b"], matrix=[[0.2, 0.2], [0.2, None]])
    assert part.low is None
    filled = with_interval(part, found)
    assert filled.matrix == part.matrix
    assert filled.low == [[found.low[0, 0], None], [None, None]]
    assert filled.high == [[found.high[0, 0], None], [None, None]]
    assert Matrix.model_validate_json(filled.model_dump_json()) == filled
    assert resampling_facts(draws).model_dump() == {"resamples": 50, "confidence": 0.95, "seed": 0}


def test_an_interval_of_something_else_is_refused() -> None:
    """Another shape, or a part without low and high, is an error and never a part with wrong ends."""
    wrong = Interval(np.zeros((3, 3)), np.zeros((3, 3)))
    with pytest.raises(ValueError, match="must have its shape"):
        with_interval(Matrix(categories=["a"], matrix=[[0.2]]), wrong)
    with pytest.raises(ValueError, match="Plain lacks one"):
        with_interval(Plain(matrix=[[0.2]]), Interval(np.zeros((1, 1)), np.zeros((1, 1))))


def test_tests_keep_their_numbers_and_nulls() -> None:
    """What was not tested is null, not NaN; the rest are the numbers of the tests."""
    pairs = pairs_of(["a"] * 5 + ["b"] * 5 + ["c"], [("a", "a"), ("b", "b")])
    found = permutation_tests(pairs, permutations=199)
    part = chance_tests(
        found, [matrix_tests(found, "isn_similarity", "neuron"), matrix_tests(found, "ise_correlation")]
    )
    one = part.matrices[0]
    assert (one.p, one.within, one.instructions) == (found.p, found.within, 11)
    assert one.category_p_adjusted == [*found.category_p_adjusted[:2], None]
    assert one.category_within[2] is None
    assert [row[k] for k, row in enumerate(one.pair_p)] == [None] * 3
    assert part.matrices[1].component is None
    assert ChanceTests.model_validate_json(part.model_dump_json()) == part
    for model in (ChanceTests, MatrixTests, IntervalBounds):
        assert all(field.description for field in model.model_fields.values())


def test_the_table_of_categories_ends_with_all() -> None:
    """A row a category with the difference of its means, and one over all with the p of the whole."""
    part, matrix = parts_of(pairs_of(["a", "b", "(all)"] * 4, [("a", "a")]))
    table = category_tests_table(part, matrix, "-neuron")
    assert table.name == "isn_tests-neuron"
    assert [row[0] for row in table.rows] == ["a", "b", "(all)", "((all))"]
    within, others = matrix.category_within[0], matrix.category_others[0]
    assert within is not None
    assert others is not None
    assert table.rows[0][3] == within - others
    assert table.rows[-1][4] == matrix.p
    assert "199 shuffles" in table.markdown()


def test_the_table_of_pairs_begins_with_the_most_alike() -> None:
    """Every two categories once, by falling similarity, with what chance gives."""
    pairs = pairs_of(["a", "b", "c"] * 4, [("a", "c")])
    part, matrix = parts_of(pairs)
    similarity = [[0.9, 0.2, 0.5], [0.2, 0.9, 0.1], [0.5, 0.1, 0.9]]
    table = pair_tests_table(part, matrix, similarity)
    assert [tuple(row[:3]) for row in table.rows] == [("a", "c", 0.5), ("a", "b", 0.2), ("b", "c", 0.1)]
    assert table.rows[0][3] == matrix.expected
    assert table.rows[0][5] == matrix.pair_p_adjusted[0][2]


def test_sentences_say_what_the_tests_found() -> None:
    """All categories, some, or none; pairs that are more alike than chance; and where nothing can be tested."""
    names = ["a", "b", "c"] * 6
    every = chance_sentence(*parts_of(pairs_of(names, [("a", "a"), ("b", "b"), ("c", "c")])))
    assert "are more alike than chance makes them" in every
    assert "Each of the 3 categories is more alike than shuffled names make it (p ≤ 0.05" in every
    assert every.endswith(JOINT)
    some = chance_sentence(*parts_of(pairs_of(names, [("a", "a")])))
    assert (
        "Of 3 categories 1 is more alike than shuffled names make it (p ≤ 0.05, corrected for as many tests): a."
        in some
    )
    assert some.endswith(JOINT)
    pair = chance_sentence(*parts_of(pairs_of(names, [("a", "b")])))
    assert "no more alike than chance could make them" in pair
    assert "No single category" in pair
    assert pair.endswith(f"than two random groups of instructions (p ≤ 0.05, corrected): a and b. {JOINT}")
    none = chance_sentence(*parts_of(pairs_of(names, [])))
    assert "by themselves" not in every + some + pair
    assert none.endswith("after correction for 3 tests.")
    single = chance_sentence(*parts_of(pairs_of(["a"] * 4, [])))
    assert "cannot be tested" in single


def test_sizes_beyond_the_limits_have_a_reason() -> None:
    """At the limits there is nothing to say; beyond them the sentence names limit and number."""
    assert why_not(MOST_INSTRUCTIONS, MOST_CATEGORIES) == ""
    assert "up to 4,096 instructions" in why_not(MOST_INSTRUCTIONS + 1, 2)
    assert "up to 256 categories; here are 257" in why_not(10, MOST_CATEGORIES + 1)
