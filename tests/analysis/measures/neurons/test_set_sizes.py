"""Sizes of ISN sets, checked with the masks, and their rank correlation with the number of tokens, with SciPy."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy.stats import spearmanr

from sparcom_analysis import find_isns
from sparcom_analysis.measures.neurons.set_sizes import MEASURE, caption, sentences, set_sizes


def test_sizes_and_their_means(typical: Any, resampled: Any) -> None:
    """Results give sizes per instruction, by category and over all, sizes without ties, and the number of empty
    sets.
    """
    isn = find_isns(typical.archive, top=0.2, n_resamples=20)
    ds = set_sizes(isn)
    sizes = np.array([isn.mask(k).sum() for k in range(len(isn))])
    np.testing.assert_array_equal(ds["instruction_value"], sizes)
    for name in isn.labels:
        members = np.array(isn.names) == name
        assert float(ds["value"].sel(category=name)) == pytest.approx(sizes[members].mean(), abs=1e-12)
        assert float(ds["mean_tokens"].sel(category=name)) == pytest.approx(isn.tokens[members].mean(), abs=1e-12)
    assert (ds["overall_min"], ds["overall_max"], ds["overall_empty"]) == (sizes.min(), sizes.max(), 0)
    assert ds.attrs["wanted"] == 12
    assert float(ds["tokens_correlation"]) == pytest.approx(spearmanr(sizes, isn.tokens).statistic, abs=1e-12)
    assert ds["ci_low"].dims == ("category",)
    none = set_sizes(find_isns(typical.archive, min_frequency=1.0, n_resamples=0))
    assert none["overall_empty"] == (none["instruction_value"] == 0).sum() > 0
    assert "wanted" not in none.attrs
    xr.testing.assert_identical(xr.Dataset.from_dict(json.loads(json.dumps(ds.to_dict()))), ds)


def test_sentences_follow_the_numbers(arrays: Any) -> None:
    """Sentences give mean, extremes, the effect of ties, empty sets and the rank correlation."""
    masks = np.random.default_rng(0).random((4, 2, 1, 30)) < 0.4
    ds = set_sizes(arrays.isns(masks, list("aabb"), top=0.25))
    ds["overall_value"], ds["overall_ci_low"], ds["overall_ci_high"] = 18.0, 17.0, 19.5
    ds["overall_min"], ds["overall_max"], ds["overall_empty"] = 0, 1234, 1
    ds["tokens_correlation"] = -0.5
    assert sentences(ds) == [
        "ISN sets of base have 18.0 of 60 neurons on average (95 % CI 17.0–19.5) and range from 0 to 1,234 (top 0.25).",
        "The rule selects 15 neurons; ties make sets 1.20 times as large on average.",
        "1 instruction has no ISN at all.",
        "Spearman's rank correlation of set size and number of tokens is −0.50.",
    ]
    assert MEASURE.plot is not None
    points = np.concatenate([np.asarray(one.get_offsets()) for one in MEASURE.plot(ds).collections])
    np.testing.assert_array_equal(points, np.stack([ds["instruction_tokens"], ds["instruction_value"]], axis=1))
    assert "Dashed: size without ties, 15" in caption(ds)
    same = set_sizes(arrays.isns(np.ones((2, 1, 1, 8), dtype=np.bool_), ["a", "a"], min_frequency=0.5))
    assert not any("Spearman" in one or "rule" in one or "tokens" in one for one in sentences(same))
