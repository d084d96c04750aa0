"""Figure 6, checked with Python sets."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparcom_analysis.measures.finetuning.venn import MEASURE, caption, plot, sentences, venn
from sparcom_data.errors import InvalidInputError


def pair(arrays: Any, count: int, seed: int, rate: float = 0.3, **options: Any) -> Any:
    """Return both models' sets of the same instructions, in three categories."""
    rng, kinds = np.random.default_rng(seed), [("a", "", "b")[k % 3] for k in range(count)]
    sides = [rng.random((count, 3, 1, 30)) < rate for _ in "ab"]
    return arrays.compare(
        *(arrays.isns(m, kinds, name=n, **options) for m, n in zip(sides, ("base", "tuned"), strict=True))
    )


@settings(deadline=None, max_examples=12)
@given(count=st.integers(1, 14), seed=st.integers(0, 999), rate=st.sampled_from([0.01, 0.3]))
def test_equals_python_sets(arrays: Any, count: int, seed: int, rate: float) -> None:
    """Each layer counts base only, both, and tuned only. By default each category shows the instruction nearest its
    median.
    """
    comparison = pair(arrays, count, seed, rate)
    ds = venn(comparison, comparison.matched.ids)
    for k in range(count):
        one = ds.sel(instruction=f"i{k}")
        assert one["category"] == ("a", "(none)", "b")[k % 3]
        for layer in range(3):
            left, right = (set(np.flatnonzero(side.mask(k)[layer])) for side in (comparison.base, comparison.tuned))
            parts = one["value"].isel(layer=layer).sel(part=["only_base", "both", "only_tuned"]).values.tolist()
            assert parts == [len(left - right), len(left & right), len(right - left)]
    values = comparison.jaccard.tolist()
    expected = []
    for kind in range(min(count, 3)):
        members = [k for k in range(kind, count, 3) if not math.isnan(values[k])]
        if members:
            middle = float(np.median([values[k] for k in members]))
            expected.append(min(members, key=lambda k: (round(abs(values[k] - middle), 12), k)))
    assert venn(comparison)["instruction"].values.tolist() == [f"i{k}" for k in expected]


def test_the_first_of_two_equally_near_is_typical(arrays: Any) -> None:
    """If two instructions are equally near the median, the first is shown, whatever the rounding."""
    masks = np.zeros((2, 2, 1, 1, 60), dtype=np.bool_)
    for k, (common, alone) in enumerate(((10, 52), (9, 44))):
        masks[:, k, ..., :common] = True
        masks[0, k, ..., common : common + alone - 2] = True
    ds = venn(arrays.compare(*(arrays.isns(side, ["a", "a"]) for side in masks)))
    assert ds["instruction"].values.tolist() == ["i0"]


def test_instructions_to_show_must_be_in_both(arrays: Any) -> None:
    """The error names every id that a model lacks; options choose the instructions of a report."""
    comparison = pair(arrays, 3, 0, instructions=["i2", "i0"])
    with pytest.raises(InvalidInputError) as caught:
        venn(comparison, ["i1", "nowhere", "i7"])
    assert len(caught.value.problems) == 2
    assert "'nowhere' is none of the 3" in str(caught.value)
    ds = MEASURE.compute(comparison, None)
    assert (ds["instruction"].values.tolist(), ds.attrs["typical"]) == (["i2", "i0"], False)


def test_sentences_follow_the_numbers(arrays: Any) -> None:
    """Sentences give fractions of all ISNs shown, for typical or named instructions, or report that there is none."""
    ds = venn(pair(arrays, 3, 0))
    ds["value"].values[:] = 0
    assert sentences(ds) == ["No instruction has an ISN in either model with these settings."]
    ds["value"].values[0, :, 0] = [30, 50, 20]
    assert sentences(ds) == [
        "Of the ISNs of one typical instruction per category, 50.0 % belong to both models, 30.0 % to the "
        "base model only and 20.0 % to the tuned model only."
    ]
    ds.attrs["typical"] = False
    assert "Of the ISNs of the instructions shown" in sentences(ds)[0]
    assert "of single instructions" in caption(ds)


def test_bars_add_up_to_the_counts(arrays: Any) -> None:
    """One panel per instruction, at most twelve, bars stacked; a figure without instructions is drawn."""
    comparison = pair(arrays, 14, 0)
    ds = venn(comparison, comparison.matched.ids)
    ax = plot(ds, instruction="i3")
    parts = ds["value"].sel(instruction="i3").values
    np.testing.assert_array_equal(np.array([bar.get_height() for bar in ax.patches]).reshape(3, 3), parts)
    np.testing.assert_array_equal([bar.get_y() for bar in ax.patches[3:6]], parts[0])
    assert "i3" in ax.get_title()
    assert MEASURE.figure is not None
    assert len([one for one in MEASURE.figure(ds).axes if one.patches]) == 12
    assert len({one.get_ylim() for one in MEASURE.figure(ds).axes}) == 1
    assert len(MEASURE.figure(ds).legends) == 1
    assert "The first 12 are shown" in caption(ds)
    assert MEASURE.figure(ds.isel(instruction=[])).axes
