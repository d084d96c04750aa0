"""ISNs by layer, checked with numpy."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import xarray as xr

from sparcom_analysis import find_isns
from sparcom_analysis.measures.neurons.layers import MEASURE, caption, layers, sentences
from sparcom_analysis.resampling.bootstrap import resamples_for


@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
def test_means_and_intervals(typical: Any, resampled: Any, block_bytes: int) -> None:
    """Means are by category and over all, for any block size; the null spreads the same ISNs evenly."""
    isn = find_isns(typical.archive, top=0.2, block_bytes=block_bytes, n_resamples=20, confidence_level=0.8)
    ds = layers(isn)
    draws, names = resamples_for(isn.categories, isn.options), np.array(isn.names)
    assert draws is not None
    for name in (*isn.labels, None):
        members = np.ones(len(isn), dtype=np.bool_) if name is None else names == name
        cell, prefix = (ds, "overall_") if name is None else (ds.sel(category=name), "")
        values = isn.layer_counts[members]
        np.testing.assert_allclose(cell[f"{prefix}value"], values.mean(axis=0), rtol=0, atol=1e-12)
        if members.sum() > 1:
            ends = np.quantile(resampled(values, draws.weights[:, members]), [0.1, 0.9], axis=0)
            np.testing.assert_allclose([cell[f"{prefix}ci_low"], cell[f"{prefix}ci_high"]], ends, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ds["null_mean"], isn.sizes.mean() / 3, rtol=0, atol=1e-12)
    assert ds.attrs["confidence_level"] == 0.8
    xr.testing.assert_identical(xr.Dataset.from_dict(json.loads(json.dumps(ds.to_dict()))), ds)


def test_sentences_follow_the_numbers(arrays: Any) -> None:
    """Sentences give the layer with most ISNs and the thirds of the model, or report that there is no ISN."""
    ds = layers(arrays.isns(np.ones((4, 4, 1, 30), dtype=np.bool_), list("aabb")))
    ds["overall_value"].values[:] = [10, 20, 30, 40]
    ds["overall_ci_low"].values[:], ds["overall_ci_high"].values[:] = 35, 45
    ds["null_mean"].values[:] = 25
    ds["value"].values[:] = [[1, 2, 3, 4], [1, 9, 3, 5]]
    assert sentences(ds) == [
        "Layer 6 of base holds the most ISNs: 40.0 of 30 per instruction (95 % CI 35.0–45.0); an even "
        "spread would give 25.0.",
        "The lower, middle and upper thirds of the layers hold 10 %, 50 % and 40 % of the ISNs.",
    ]
    empty = layers(arrays.isns(np.zeros((2, 2, 1, 9), dtype=np.bool_), ["a", "a"]))
    assert sentences(empty) == ["No instruction of base has an ISN in any layer with these settings."]
    assert MEASURE.plot is not None
    np.testing.assert_array_equal(MEASURE.plot(ds).lines[1].get_ydata(), ds["value"].sel(category="b"))
    assert "SPARCOM, fig. 5" in caption(ds)
