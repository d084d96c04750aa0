"""Bit counts, checked against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparcom_analysis.kernels import bit_counts


@settings(deadline=None, max_examples=25)
@given(
    rows=st.sampled_from([0, 1, 7, 8, 9, 57, 127, 128, 247, 248, 249, 255, 256, 700]),
    columns=st.sampled_from([1, 3, 8, 9, 24, 2047, 2048, 2049, 2056, 4104, 5000]),
    rate=st.sampled_from([0.0, 0.37, 1.0]),
    seed=st.integers(0, 9),
)
def test_bit_counts_equal_unpacked_sums(rows: int, columns: int, rate: float, seed: int) -> None:
    """Column sums of the unpacked bits are added to the counts, in words and in bytes, past 248 and 255 rows, across
    tile borders."""
    rng = np.random.default_rng(seed)
    packed = np.packbits(rng.random((rows, columns * 8)) < rate, axis=1, bitorder="little").reshape(rows, columns)
    before = rng.integers(0, 2**31, size=columns * 8, dtype=np.uint32)
    counts = before.copy()
    bit_counts.add_bit_counts(packed, counts)
    assert (counts == before + np.unpackbits(packed, axis=1, bitorder="little").sum(axis=0)).all()


def test_bit_counts_are_the_same_on_one_core_and_on_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results do not depend on the number of threads."""
    rows = np.random.default_rng(0).integers(0, 256, size=(400, 9000), dtype=np.uint8)
    results = []
    for cores in (1, 2, 7):
        monkeypatch.setattr("sparcom_analysis.kernels.compiled.cores", lambda cores=cores: cores)
        counts = np.zeros(72_000, dtype=np.uint32)
        bit_counts.add_bit_counts(rows, counts)
        results.append(counts)
    assert (results[0] == results[1]).all()
    assert (results[0] == results[2]).all()
    assert (results[0] == np.unpackbits(rows, axis=1, bitorder="little").sum(axis=0)).all()


def test_bit_counts_refuse_a_wrong_shape() -> None:
    """The caller checks bounds, because compiled code does not."""
    with pytest.raises(ValueError, match="counts must be uint32"):
        bit_counts.add_bit_counts(np.zeros((2, 3), np.uint8), np.zeros(23, np.uint32))


@pytest.mark.parametrize(("columns", "view"), [(slice(5, 20), False), (slice(8, 24), False), (slice(None), True)])
def test_rows_may_be_a_view_with_gaps(columns: slice, view: bool) -> None:
    """Rows that are not contiguous, or not whole words, are copied and counted as well; whole words are not copied."""
    rows = np.random.default_rng(1).integers(0, 256, size=(40, 32), dtype=np.uint8)
    rows = rows[:20, columns] if view else rows[::2, columns]
    assert np.shares_memory(bit_counts._as_words(rows), rows) == view
    counts = np.zeros(rows.shape[1] * 8, dtype=np.uint32)
    bit_counts.add_bit_counts(rows, counts)
    assert (counts == np.unpackbits(np.ascontiguousarray(rows), axis=1, bitorder="little").sum(axis=0)).all()


def test_rows_that_are_not_aligned_are_counted() -> None:
    """Memory that is not aligned to eight bytes is copied."""
    rows = np.random.default_rng(2).integers(0, 256, size=20 * 64 + 3, dtype=np.uint8)[3:].reshape(20, 64)
    counts = np.zeros(512, dtype=np.uint32)
    bit_counts.add_bit_counts(rows, counts)
    assert (counts == np.unpackbits(rows, axis=1, bitorder="little").sum(axis=0)).all()


def test_every_second_byte_of_reversed_rows_is_counted() -> None:
    """Any strides give correct counts."""
    rows = np.random.default_rng(2).integers(0, 256, size=(20, 64), dtype=np.uint8)[::-1, ::2]
    counts = np.zeros(256, dtype=np.uint32)
    bit_counts.add_bit_counts(rows, counts)
    assert (counts == np.unpackbits(np.ascontiguousarray(rows), axis=1, bitorder="little").sum(axis=0)).all()
