"""Pairs that are kept: the bits of the blocks, category means from them, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sparcom_analysis.measures.correlation import correlation_pairs
from sparcom_analysis.measures.similarity import jaccard_blocks, similarity_pairs
from sparcom_analysis.resampling.pair_means import pair_blocks

from sparcom_analysis import (
    category_similarity,
    expert_correlation,
    instruction_correlations,
    instruction_experts,
    instruction_specific_neurons,
)
from sparcom_analysis.resampling.pairs import (
    MOST_INSTRUCTIONS,
    PairMatrix,
    check_kept,
    fixed,
    fixed_bits,
    keep_pairs,
)
from sparcom_data.errors import UnsupportedArchiveError


def random_pairs(count: int, seed: int) -> NDArray[np.float64]:
    """Symmetric values from -1 to 1, 1 on the diagonal."""
    values = np.random.default_rng(seed).uniform(-1, 1, (count, count))
    values = (values + values.T) / 2
    values[np.diag_indices(count)] = 1
    return values


def test_kept_similarities_give_the_same_bits(make_case) -> None:  # type: ignore[no-untyped-def]
    """Category means of kept pairs are those of the sets, bit by bit, over several blocks."""
    case = make_case([3, 5, 9, 4] * 40, ["QA", "CODE", "", "QA"] * 40, layers=2, neurons=30)
    neurons = instruction_specific_neurons(case.archive, epsilon=0.2)
    pairs = similarity_pairs(neurons)
    direct, kept = category_similarity(neurons), category_similarity(neurons, pairs)
    assert kept.categories == direct.categories
    np.testing.assert_array_equal(kept.matrix, direct.matrix)
    np.testing.assert_array_equal(kept.without_self, direct.without_self)
    for rows, columns, block in jaccard_blocks(neurons):
        upper = np.arange(rows.start, rows.stop)[:, None] <= np.arange(columns.start, columns.stop)
        np.testing.assert_array_equal(pairs.values[rows, columns][upper], block[upper])
    np.testing.assert_array_equal(np.diagonal(pairs.values), 1)


def test_kept_correlations_give_the_same_bits(make_moe) -> None:  # type: ignore[no-untyped-def]
    """Means of kept correlations are those computed on the way, and the values those of equation 13."""
    experts = instruction_experts(make_moe(per_category=4, failed=(2,)).archive)
    pairs = correlation_pairs(experts)
    direct, kept = expert_correlation(experts), expert_correlation(experts, pairs)
    np.testing.assert_array_equal(kept.matrix, direct.matrix)
    np.testing.assert_array_equal(kept.without_self, direct.without_self)
    assert kept.undefined == direct.undefined
    np.testing.assert_array_equal(pairs.values, instruction_correlations(experts))


def test_instructions_without_values_stay_without(make_moe) -> None:  # type: ignore[no-untyped-def]
    """Where a token chooses every expert nothing is defined, in what is kept as in what is counted."""
    experts = instruction_experts(make_moe(experts=2, choices=2).archive)
    pairs = correlation_pairs(experts)
    assert not pairs.defined.any()
    assert expert_correlation(experts, pairs).undefined == 10


@settings(deadline=None, max_examples=25)
@given(count=st.integers(2, 40), side=st.integers(1, 50), seed=st.integers(0, 999))
def test_blocks_of_any_size_fill_both_triangles(count: int, side: int, seed: int) -> None:
    """What is left of the diagonal comes from what is right of it, whatever the blocks hold there."""
    values = random_pairs(count, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparcom_analysis.resampling.pair_means.PAIRED", side)
        blocks = []
        for rows, columns in pair_blocks(count):
            block = values[rows, columns].copy()
            if rows == columns:
                block[np.tril_indices(len(block), -1)] = 0.123
            blocks.append((rows, columns, block))
    np.testing.assert_array_equal(keep_pairs(["a"] * count, blocks).values, values)


def test_fixed_point_is_exact_and_fine_enough() -> None:
    """Sums of the most pairs that are kept stay within 2^53 a row and 2^63 in all, and round by less than 1e-12."""
    for count in (2, 3, 1000, 1200, 4095, MOST_INSTRUCTIONS):
        bits = fixed_bits(count)
        assert count << bits <= 1 << 53
        assert (count * (count - 1) // 2) << bits < 1 << 63
        assert 2.0 ** -(bits + 1) < 5e-13
    values = random_pairs(50, 1)
    whole = fixed(values, fixed_bits(50))
    assert (whole == np.trunc(whole)).all()
    np.testing.assert_allclose(np.ldexp(whole, -fixed_bits(50)), values, rtol=0, atol=1e-13)


def test_too_many_instructions_are_refused() -> None:
    """Beyond the limit the error names it, the number and what to do; at the limit nothing happens."""
    check_kept(MOST_INSTRUCTIONS)
    with pytest.raises(UnsupportedArchiveError, match=r"up to 4096 instructions; there are 4097\. Analyse"):
        keep_pairs(["a"] * (MOST_INSTRUCTIONS + 1), [])


@pytest.mark.parametrize(
    ("row", "column", "value", "said"),
    [(1, 2, 0.5, "symmetric"), (0, 0, 1.5, "from -1 to 1"), (2, 2, np.nan, "for all pairs")],
)
def test_values_that_are_no_pairs_are_refused(row: int, column: int, value: float, said: str) -> None:
    """One-sided values, values outside -1 to 1 and stray NaN would give wrong sums: they are refused."""
    values = random_pairs(4, 0)
    values[row, column] = value
    with pytest.raises(ValueError, match=said):
        PairMatrix(["a"] * 4, values)
