"""Equation 16, checked with numpy's correlation of frequencies."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparcom_analysis import find_ises
from sparcom_analysis.measures.finetuning.correlation import MEASURE, finetuning_correlation, sentences
from sparcom_data.errors import UnsupportedArchiveError


@settings(deadline=None, max_examples=15)
@given(count=st.integers(1, 10), layers=st.integers(1, 3), experts=st.integers(2, 6), seed=st.integers(0, 999))
def test_equals_numpy(arrays: Any, count: int, layers: int, experts: int, seed: int) -> None:
    """r is numpy.corrcoef of the frequencies; means are over instructions with a value, the others are counted."""
    rng = np.random.default_rng(seed)
    sides = []
    for _ in "ab":
        tokens = rng.integers(1, 7, size=count)
        picks = [rng.multinomial(t, np.full(experts, 1 / experts), size=layers) for t in tokens]
        sides.append(arrays.experts(np.array(picks), [str(k % 2) for k in range(count)]))
    ds = finetuning_correlation(arrays.compare(*sides), n_resamples=0)
    expected = []
    for k in range(count):
        pair = [side.frequencies[k].ravel() for side in sides]
        flat = any(int(side.counts[k].min()) == int(side.counts[k].max()) for side in sides)
        expected.append(math.nan if flat else float(np.corrcoef(*pair)[0, 1]))
    np.testing.assert_allclose(ds["instruction_value"], expected, rtol=0, atol=1e-12)
    for name in ds["category"].values:
        members = np.array([expected[k] for k in range(count) if str(k % 2) == name])
        known = members[~np.isnan(members)]
        cell = ds.sel(category=name)
        np.testing.assert_allclose(cell["value"], known.mean() if len(known) else np.nan, rtol=0, atol=1e-12)
        assert (cell["counted"], cell["undefined"]) == (len(known), len(members) - len(known))
    np.testing.assert_array_equal(ds["change"], 1 - ds["value"])


def test_instructions_are_matched_by_id(make_moe: Any, arrays: Any) -> None:
    """The correlation compares the same instruction in both archives, from masks or from counts."""
    base, tuned = make_moe(failed=(1,)).archive, make_moe(failed=(5,), seed=1, granularity="count").archive
    left, right = find_ises(base), find_ises(tuned)
    ds = finetuning_correlation(arrays.compare(left, right), n_resamples=0)
    assert ds.sizes["instruction"] == 8
    for name in ds["instruction"].values:
        pair = [side.frequencies[list(side.ids).index(name)].ravel() for side in (left, right)]
        assert float(ds["instruction_value"].sel(instruction=name)) == pytest.approx(
            np.corrcoef(*pair)[0, 1], abs=1e-12
        )


def test_long_instructions_are_exact_or_refused(arrays: Any) -> None:
    """Ten million tokens are computed exactly; sums that could not be exact are refused."""
    million = np.array([[[10_000_000, 9_999_999, 1]], [[9_999_999, 10_000_000, 3]]])
    one, two = (million[k].ravel().astype(object) * 3 - int(million[k].sum()) for k in (0, 1))
    expected = float((one * two).sum()) / (float((one * one).sum()) ** 0.5 * float((two * two).sum()) ** 0.5)
    left, right = (arrays.experts(million[k : k + 1], ["a"]) for k in (0, 1))
    assert arrays.compare(left, right).correlation[0] == pytest.approx(expected, abs=1e-15)
    longer = replace(left, tokens=np.array([4_000_000_000]))
    with pytest.raises(UnsupportedArchiveError, match="an instruction has 4,000,000,000 tokens"):
        finetuning_correlation(arrays.compare(left, longer))


def test_sentences_follow_the_numbers(arrays: Any) -> None:
    """Mean, interval and change have four digits; undefined values are reported."""
    counts = np.random.default_rng(0).integers(0, 9, (6, 2, 4))
    sides = [arrays.experts(counts + k, list("aabbbb"), name=name) for k, name in enumerate(("base", "tuned"))]
    ds = finetuning_correlation(arrays.compare(*sides))
    assert (ds["value"] == 1).all()
    ds["overall_value"], ds["overall_change"], ds["overall_ci_low"], ds["overall_ci_high"] = -0.5, 1.5, -0.6, 0.25
    ds["overall_undefined"] = 2
    ds["value"].values[:] = [0.5, 0.1]
    assert sentences(ds) == [
        "The mean Pearson correlation of each instruction's expert frequencies in base and tuned is −0.5000 "
        "(95 % CI −0.6000 to 0.2500); the change, 1 − correlation, is 1.5000.",
        "By category, the mean is lowest for b (0.1000) and highest for a (0.5000).",
        "Means skip 2 of 6 instructions, which have constant frequencies.",
    ]
    flat = arrays.experts(np.ones((2, 1, 3)), ["a", "a"])
    (said,) = sentences(finetuning_correlation(arrays.compare(flat, flat)))
    assert "all 2 instructions have constant frequencies" in said
    assert MEASURE.plot is not None
    assert sorted(bar.get_width() for bar in MEASURE.plot(ds).patches) == [0.1, 0.5]
