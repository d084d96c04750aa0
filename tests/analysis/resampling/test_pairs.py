"""Kept pairs: values, means, files, undefined pairs, and refused input."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import sparcom_analysis.resampling.pairs as module
from sparcom_analysis import find_ises, find_isns
from sparcom_analysis.errors import NotComputableError
from sparcom_analysis.kernels.intersections import pair_blocks
from sparcom_analysis.options import Options
from sparcom_analysis.resampling.bootstrap import pair_intervals, resamples_for
from sparcom_analysis.resampling.pairs import (
    MAX_INSTRUCTIONS,
    PairMatrix,
    category_means,
    fixed,
    fixed_bits,
    keep_pairs,
)
from sparcom_analysis.resampling.permutation import label_tests
from sparcom_data.errors import StorageError


def random_pairs(count: int, seed: int) -> NDArray[np.float64]:
    """Return symmetric values from -1 to 1, 1 on the diagonal."""
    values = np.random.default_rng(seed).uniform(-1, 1, (count, count))
    values = (values + values.T) / 2
    values[np.diag_indices(count)] = 1
    return values


def blocks_of(values: NDArray[np.float64]) -> Any:
    """Return the blocks of these values; entries below the diagonal hold another number."""
    for rows, columns in pair_blocks(len(values)):
        block = values[rows, columns].copy()
        if rows == columns:
            block[np.tril_indices(len(block), -1)] = 0.123
        yield rows, columns, block


def test_kept_similarities_give_the_same_bits(make_case) -> None:  # type: ignore[no-untyped-def]
    """Means of kept pairs equal those of the blocks bit for bit, over several blocks."""
    case = make_case([3, 5, 9, 4] * 40, ["QA", "CODE", "", "QA"] * 40, layers=2, neurons=30)
    isn = find_isns(case.archive, top=0.2)
    with_self, without, itself = category_means(isn.categories, isn.pair_blocks())
    for kept, direct in zip(isn.pairs.means(), (with_self, without), strict=True):
        np.testing.assert_array_equal(kept, direct)
    np.testing.assert_array_equal(isn.pairs.values.diagonal(), itself)
    for rows, columns, block in isn.pair_blocks():
        upper = np.arange(rows.start, rows.stop)[:, None] <= np.arange(columns.start, columns.stop)
        np.testing.assert_array_equal(isn.pairs.values[rows, columns][upper], block[upper])
    np.testing.assert_array_equal(itself, 1)


def test_kept_correlations_give_the_same_bits(make_moe) -> None:  # type: ignore[no-untyped-def]
    """Means of kept correlations equal those of the blocks."""
    experts = find_ises(make_moe(per_category=4, failed=(2,)).archive)
    direct = category_means(experts.categories, experts.pair_blocks())
    for kept, expected in zip(experts.pairs.means(), direct, strict=False):
        np.testing.assert_array_equal(kept, expected)


def test_instructions_without_values_have_no_correlation(make_moe) -> None:  # type: ignore[no-untyped-def]
    """If every token activates every expert, no correlation is defined."""
    pairs = find_ises(make_moe(experts=2, choices=2).archive).pairs
    assert not pairs.defined.any()
    assert pairs.unknown.all()


@settings(deadline=None, max_examples=25)
@given(
    count=st.integers(2, 40),
    side=st.integers(1, 50),
    seed=st.integers(0, 999),
    empty=st.sets(st.integers(0, 39), max_size=4),
)
def test_means_equal_loops_for_any_blocks(count: int, side: int, seed: int, empty: set[int]) -> None:
    """Blocks fill both triangles; means skip undefined pairs, with self pairs and without."""
    values = random_pairs(count, seed)
    some = [k for k in empty if k < count]
    values[np.ix_(some, some)] = np.nan
    names = [("a", "b", "c")[k % 3] for k in range(count)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparcom_analysis.kernels.intersections.PAIRED", side)
        pairs = keep_pairs(names, blocks_of(values))
        found = pairs.means()
    np.testing.assert_array_equal(pairs.values, values)
    assert pairs.unknown.any() == bool(some)
    assert pairs.defined.all() or count == len(some)
    for (a, x), (b, y) in product(enumerate(pairs.labels), repeat=2):
        cells = [(i, j) for i in range(count) for j in range(count) if (names[i], names[j]) == (x, y)]
        for version, wanted in enumerate((cells, [(i, j) for i, j in cells if i != j])):
            known = [values[cell] for cell in wanted if not np.isnan(values[cell])]
            expected = np.mean(known) if known else np.nan
            assert found[version][a, b] == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_a_file_changes_no_digit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pairs in a temporary file give the same means, intervals and tests, and leave no file behind."""
    values = random_pairs(60, 0)
    values[:3, :3] = np.nan
    values[7] = values[:, 7] = np.nan
    names, options = [str(k % 4) for k in range(60)], Options(n_resamples=20, n_permutations=30)
    resamples = resamples_for(names, options)
    assert resamples is not None

    def results() -> list[Any]:
        pairs = keep_pairs(names, blocks_of(values))
        tests, ends = label_tests(pairs, options), pair_intervals(resamples, pairs)[0]
        taken = pairs.take(np.array([5, 1, 9])).values
        return [*pairs.means(), ends.low, ends.high, *tests.values(), taken]

    in_memory = results()
    monkeypatch.setattr(module, "MEMORY_BYTES", 0)
    monkeypatch.setattr(module, "STRIP_ROWS", 7)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for one, other in zip(in_memory, results(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(StorageError, match=r"need a temporary file of 0\.0 GiB.*TMPDIR"):
        results()


def test_fixed_point_is_exact_and_as_fine_as_documented() -> None:
    """At the limit of kept pairs, sums stay within 2^53 per row and 2^63 in total; rounding is as documented."""
    for count, bound in ((2, 1e-15), (1200, 1.2e-13), (4096, 4.6e-13), (8000, 1.9e-12), (MAX_INSTRUCTIONS, 3e-11)):
        bits = fixed_bits(count)
        assert count << bits <= 1 << 53
        assert (count * (count - 1) // 2) << bits < 1 << 63
        assert 2.0 ** -(bits + 1) < bound
    values = random_pairs(50, 1)
    whole = fixed(values, fixed_bits(50))
    assert (whole == np.trunc(whole)).all()
    np.testing.assert_allclose(np.ldexp(whole, -fixed_bits(50)), values, rtol=0, atol=1e-13)


def test_too_many_instructions_are_not_computable() -> None:
    """Beyond the limit, the sentence gives the limit, the number and the remedy."""
    with pytest.raises(NotComputableError, match=r"up to 32,768 instructions; there are 32,769\. Analyze"):
        keep_pairs(["a"] * (MAX_INSTRUCTIONS + 1), iter([]))


@pytest.mark.parametrize(
    ("row", "column", "value", "said"),
    [(1, 2, 0.5, "symmetric"), (0, 0, 1.5, "from -1 to 1"), (2, 1, np.nan, "symmetric")],
)
def test_invalid_values_are_refused(row: int, column: int, value: float, said: str) -> None:
    """One-sided values and values outside -1 to 1 would give wrong sums: they are refused."""
    values = random_pairs(4, 0)
    values[row, column] = value
    with pytest.raises(ValueError, match=said):
        PairMatrix(["a"] * 4, values)
