"""Most used experts kept after fine-tuning, checked with sets in loops."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr

from sparcom_analysis.compare import ExpertComparison
from sparcom_analysis.ise import ExpertCounts, find_ises
from sparcom_analysis.matching import Matched, match_instructions
from sparcom_analysis.measures.finetuning.top_experts import MEASURE, caption, finetuning_top_experts, sentences, tables


@pytest.fixture
def compared(make_moe) -> ExpertComparison:  # type: ignore[no-untyped-def]
    """Two models of nine experts; one instruction failed in each."""
    base, tuned = (
        find_ises(make_moe(experts=9, seed=k, failed=(failed,)).archive, n_resamples=0)
        for k, failed in enumerate((2, 7))
    )
    return ExpertComparison(base, tuned, match_instructions(base, tuned))


def test_kept_experts_are_in_both_lists(compared: ExpertComparison) -> None:
    """Both readings of table 6 and the lists per layer cover matched instructions only."""
    ds = finetuning_top_experts(compared)
    assert (ds.attrs["instructions"], ds.attrs["only_base"], ds.attrs["only_tuned"]) == (8, 1, 1)
    places = {}
    for side, data in zip(("base", "tuned"), compared.sides, strict=True):
        assert data.ids == [f"i{k:03}" for k in range(10) if k not in (2, 7)]
        for c in range(2):
            counts = data.counts[data.codes == c].sum(axis=0, dtype=np.int64)
            flat = sorted(np.ndindex(2, 9), key=lambda at: (-counts[at], at))[:5]
            ids = sorted(range(9), key=lambda e: (-counts.sum(axis=0)[e], e))[:5]
            means = data.frequencies[data.codes == c].mean(axis=0).round(12)
            layers = [sorted(range(9), key=lambda e: (-means[j, e], e))[:5] for j in range(2)]
            places[side, c] = flat, ids, layers
            one = ds.sel(model=side).isel(category=c)
            found = zip(one["paper_layer"].values - 1, one["paper_expert"].values, strict=True)
            assert list(found) == flat
            assert one["id_expert"].values.tolist() == ids
            assert one["expert"].values.tolist() == layers
    for c in range(2):
        (flat, ids, layers), others = places["base", c], places["tuned", c]
        assert ds["kept"][c].values.tolist() == [at in others[0] for at in flat]
        assert ds["kept_ids"][c].values.tolist() == [e in others[1] for e in ids]
        assert ds["layer_kept"][c].values.tolist() == [[e in others[2][j] for e in layers[j]] for j in range(2)]
    np.testing.assert_array_equal(ds["value"], ds["kept_count"] / 5)
    np.testing.assert_allclose(ds["layer_value"], ds["layer_kept"].mean("rank"), rtol=0, atol=1e-12)
    assert (float(ds["null_mean"]), float(ds["layer_null_mean"])) == (5 / 18, 5 / 9)
    assert finetuning_top_experts(compared, top_experts=2).sizes["rank"] == 2


def test_random_sets_have_the_null_in_common() -> None:
    """Two random sets of k of n share k · k / n members on average, so the null is k / n of each."""
    rng = np.random.default_rng(0)
    common = [len(set(rng.permutation(18)[:5]) & set(rng.permutation(18)[:5])) for _ in range(4000)]
    assert np.mean(common) / 5 == pytest.approx(5 / 18, abs=0.01)


def paired(base: ExpertCounts, tuned: ExpertCounts) -> ExpertComparison:
    """Compare counts of the same instructions."""
    places = np.arange(len(base))
    names = list(base.ids), list(base.categories)
    return ExpertComparison(base, tuned, Matched(places, places, *names, 0, 0, 0, 0, None))


def test_sentences_and_tables_follow_the_numbers(make_counts: Callable[..., ExpertCounts]) -> None:
    """Sentences give both readings; kept experts carry an asterisk in both models."""
    before = np.array([[[9, 1, 0, 0], [0, 0, 2, 8]]])
    after = np.array([[[0, 8, 1, 1], [1, 0, 0, 9]]])
    sides = [make_counts(counts, [10], ["a"], top_experts=2) for counts in (before, after)]
    ds = finetuning_top_experts(paired(*sides))
    assert sentences(ds) == [
        "Of the 2 most used experts per category, over all layers, 1 of 2 are still among the 2 most used after "
        "fine-tuning (SPARCOM, table 6); a random choice would keep 0.5.",
        "By expert id, with counts summed over layers, 1 of 2 stay.",
        "Of the 2 most used experts per layer and category, 2 of 4 stay; a random choice would keep 2.0.",
    ]
    crossed = make_counts(before[:, ::-1], [10], ["a"], top_experts=2)
    first, second, _ = sentences(finetuning_top_experts(paired(sides[0], crossed)))
    assert ", 0 of 2 are still among" in first
    assert "over layers, 2 of 2 stay" in second
    wide = tables(ds)["finetuning_top_experts_table_6"]
    assert wide.loc[("base", "a")].tolist() == ["layer 1, expert 0: 9", "layer 2, expert 3: 8 *"]
    assert wide.loc[("tuned", "a")].tolist() == ["layer 2, expert 3: 9 *", "layer 1, expert 1: 8"]
    same = finetuning_top_experts(paired(sides[0], sides[0]))
    assert ", 2 of 2 are still among" in sentences(same)[0]
    assert float(same["overall_value"]) == 1


def test_figure_and_round_trip(compared: ExpertComparison) -> None:
    """The bars show the paper's reading; the Dataset survives JSON."""
    ds = finetuning_top_experts(compared)
    assert MEASURE.plot is not None
    assert [bar.get_width() for bar in MEASURE.plot(ds).patches][:2] == ds["value"].values.tolist()
    assert "the 5 most used experts" in caption(ds)
    xr.testing.assert_equal(xr.Dataset.from_dict(json.loads(json.dumps(ds.to_dict()))), ds)
