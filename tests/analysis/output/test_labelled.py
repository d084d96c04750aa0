"""Labelled results: the labels equal the arrays, and a selection by name gives the number that metrics.json has."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sparcom_analysis as sa
from sparcom_analysis.labelled.results import to_xarray
from sparcom_data.errors import InvalidInputError
from sparcom_data.testing import write_random_archive, write_random_moe_archive

NAMES = ("QA", "", "CODE")


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> sa.Analysis:
    """A mixture of experts and its tuned twin with everything on, written once."""
    folder = tmp_path_factory.mktemp("labelled")
    for name, seed in (("a", 0), ("b", 1)):
        write_random_moe_archive(folder / f"{name}.zarr", categories=NAMES, per_category=4, lengths=(9, 14), seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("to_png", "to_svg"):
            patch.setattr(f"sparcom_analysis.figures.neurons.{name}", lambda _figure: b"")
        return sa.analyze(
            folder / "a.zarr", folder / "out", tuned=folder / "b.zarr", resamples=20, permutations=30, epsilon=0.1
        )


@pytest.fixture(scope="module")
def written(analysed: sa.Analysis) -> dict[str, Any]:
    """metrics.json as it was written."""
    found: dict[str, Any] = json.loads((analysed.output / "metrics.json").read_text())
    return found


def assert_equals(labelled: xr.DataArray, rows: Any, dims: tuple[str, ...]) -> None:
    """Dimensions, shape and every value, null of JSON as NaN."""
    assert labelled.dims == dims
    np.testing.assert_array_equal(labelled.values, np.array(rows, dtype=labelled.dtype))


PAIRS = ("category", "category_2")


def test_similarity_by_name_is_that_of_metrics(analysed: sa.Analysis, written: dict[str, Any]) -> None:
    """Every cell, and both its ends, selected by the names of its categories."""
    result = analysed.results.neurons[0]
    labelled = to_xarray(result.similarity, intervals=result.intervals)
    for variable, field in (("similarity", "isn_similarity"), ("without_self", "isn_similarity_without_self")):
        part = written[field]
        for end, rows in (("", part["matrix"]), ("_low", part["low"]), ("_high", part["high"])):
            for name, row in zip(part["categories"], rows, strict=True):
                for other, value in zip(part["categories"], row, strict=True):
                    cell = labelled[f"{variable}{end}"].sel(category=name, category_2=other).item()
                    assert cell == value or (value is None and np.isnan(cell))
    assert labelled["similarity"].attrs["equation"] == "10"
    assert "(none)" in labelled["category"]


def test_layers_and_experts_by_name_are_those_of_metrics(analysed: sa.Analysis, written: dict[str, Any]) -> None:
    """ISNs by layer, expert frequencies with intervals, the correlation and table 6."""
    result, experts = analysed.results.neurons[0], analysed.results.experts
    assert experts is not None
    by_layer, part = to_xarray(result.by_layer, intervals=result.layer_intervals), written["isn_by_layer"]
    for variable, field in (("mean_count", "mean_count"), ("mean_count_low", "low"), ("mean_count_high", "high")):
        chosen = by_layer[variable].sel(category=part["categories"], layer=part["layer_ids"])
        assert_equals(chosen, part[field], ("category", "layer"))
    means, part = to_xarray(experts.means, intervals=experts.mean_intervals), written["expert_frequency"]
    assert_equals(means["frequency"], part["mean"], ("category", "layer", "expert"))
    assert_equals(means["overall"], part["overall"], ("layer", "expert"))
    correlation = to_xarray(experts.correlation, intervals=experts.intervals)
    assert_equals(correlation["correlation"], written["ise_correlation"]["matrix"], PAIRS)
    assert_equals(correlation["correlation_low"], written["ise_correlation"]["low"], PAIRS)
    part = written["ise_correlation_without_self"]
    assert_equals(correlation["without_self"], part["matrix"], PAIRS)
    assert_equals(correlation["without_self_high"], part["high"], PAIRS)
    top = to_xarray(experts.top)
    assert top["rank"].values.tolist() == [1, 2, 3, 4, 5]
    most = top["top_expert"].sel(category="QA", layer=2, rank=1).item()
    assert means["frequency"].sel(category="QA", layer=2).argmax("expert").item() == most


def test_alteration_by_name_is_that_of_metrics(analysed: sa.Analysis, written: dict[str, Any]) -> None:
    """Means by category: by `groupby`, and of `by_category` labelled; the shift of experts; figure 6."""
    neurons, experts = analysed.results.neurons[0], analysed.results.experts
    assert neurons.altered is not None
    assert experts is not None
    assert experts.altered is not None
    assert experts.shift is not None
    altered, part = to_xarray(neurons.altered), written["isn_alteration"]
    grouped = altered["alteration"].groupby("category").mean().sel(category=part["categories"])
    np.testing.assert_allclose(grouped, part["alteration"], rtol=0, atol=1e-12)
    means = to_xarray(neurons.altered.by_category(neurons.altered.alteration))
    np.testing.assert_allclose(means["mean"], part["alteration"], rtol=0, atol=1e-12)
    layers = analysed.neurons.layer_ids
    by_layer = to_xarray(neurons.altered.by_category(neurons.altered.layer_alteration), layer_ids=layers)
    np.testing.assert_allclose(by_layer["mean"], part["layer_alteration"], rtol=0, atol=1e-12)
    assert_equals(to_xarray(experts.altered)["correlation"], experts.altered.correlation, ("instruction",))
    shift = to_xarray(experts.shift, intervals=experts.moved_interval)
    for end in ("moved", "moved_low", "moved_high"):
        assert_equals(shift[end], written["expert_shift"][end], ("category", "layer"))
    assert_equals(shift["shift"], experts.shift.shift, ("category", "layer", "expert"))
    assert_equals(shift["kept"], experts.shift.kept, ("category", "layer", "rank"))
    shown = sa.venn_by_layer(neurons.altered, ["i002", "i007"])
    venn = to_xarray(shown, layer_ids=layers)
    total = venn["only_base"] + venn["both"]
    assert total.sel(instruction="i007").sum() == altered["base_count"].sel(instruction="i007").sum()


def test_components_and_tests_are_those_of_metrics(analysed: sa.Analysis, written: dict[str, Any]) -> None:
    """General and unique components with intervals and chance, and the tests of similarity."""
    for result, part in zip(analysed.results.groups, written["general_unique"]["groups"], strict=True):
        labelled = to_xarray(result)
        assert labelled.attrs["component"] == part["component"]
        for name, row in zip(part["categories"], part["unique"], strict=True):
            own = labelled.sel(category=name, layer=part["layer_ids"])
            assert_equals(own["unique"], row["by_layer"], ("layer",))
            assert_equals(own["unique_high"], row["high"], ("layer",))
            assert own["unique_total_low"].item() == row["total_low"]
        assert_equals(labelled["general"], part["general"]["by_layer"], ("layer",))
        assert_equals(labelled["unique_p_adjusted"], part["unique_p"], ("category",))
        assert result.intervals is not None
        assert_equals(labelled["unique_low"], result.intervals.low.unique[:, :-1], ("category", "layer"))
        assert_equals(labelled["general_share_low"], part["general_share_low"], ("category",))
        assert_equals(labelled["unique_total_high"], result.intervals.high.unique[:, -1], ("category",))
        assert_equals(labelled["general_total_low"], result.intervals.low.general[-1], ())
        assert labelled["general_total"].item() == labelled["general"].sum().item()
        masks = to_xarray(result.found, sets=True)
        axes = [str(axis) for axis in masks["general_set"].dims if axis != "layer"]
        assert_equals(masks["general_set"].sum(axes), labelled["general"], ("layer",))
        assert_equals(masks["unique_set"].sum(axes), labelled["unique"], ("category", "layer"))
    tests = analysed.results.neurons[0].tests
    assert tests is not None
    labelled = to_xarray(tests)
    assert labelled["p"].item() == tests.p
    assert_equals(labelled["pair_p_adjusted"], tests.pair_p_adjusted, PAIRS)
    assert_equals(labelled["category_p"], tests.category_p, ("category",))


def test_matched_measures_stand_along_components(analysed: sa.Analysis) -> None:
    """With T matched: one matrix a component, chosen by its name, and that of experts."""
    control = analysed.results.control
    assert control is not None
    assert control.experts is not None
    labelled = to_xarray(control)
    for one in control.neurons:
        chosen = labelled.sel(component=one.plain.population.component)
        assert_equals(chosen["similarity_matched"], one.similarity.matched, PAIRS)
        assert_equals(chosen["without_self_difference"], one.without_self.difference, PAIRS)
    assert_equals(labelled["expert_correlation_plain"], control.experts.correlation.plain, PAIRS)
    assert_equals(labelled["expert_without_self_plain"], control.experts.without_self.plain, PAIRS)
    assert_equals(to_xarray(control.experts)["without_self_matched"], control.experts.without_self.matched, PAIRS)
    assert labelled.attrs["drawn_tokens"] == control.neurons[0].matched.token_facts.drawn
    pair = control.experts.correlation
    assert_equals(to_xarray(pair)["matched"], pair.matched, PAIRS)
    assert pair.intervals is not None
    assert_equals(to_xarray(pair)["difference_low"], pair.intervals.difference.low, PAIRS)


def test_lape_names_layer_expert_and_neuron(analysed: sa.Analysis) -> None:
    """A neuron specific to a category is where the mask of the result has it."""
    for result in analysed.results.neurons:
        assert result.lape is not None
        labelled = to_xarray(result.lape)
        for code, name in enumerate(labelled["category"].values.tolist()):
            own = labelled.isel(selected=np.flatnonzero(labelled["specific"].sel(category=name)))
            mask, layers = result.lape.mask(code), list(result.lape.population.layer_ids)
            axes = [axis for axis in ("expert", "neuron") if axis in own.coords]
            places = ([layers.index(layer) for layer in own["layer"].values], *(own[axis].values for axis in axes))
            assert mask[places].all()
            assert mask.sum() == own.sizes["selected"]


@given(st.integers(0, 1000), st.sampled_from([0.05, 0.3, 1.0]))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sets_by_name_are_the_masks(tmp_path_factory: pytest.TempPathFactory, seed: int, epsilon: float) -> None:
    """Any archive: a neuron is a member by id of the instruction, layer and number where the mask has it."""
    folder = tmp_path_factory.mktemp("sets")
    write_random_archive(folder / "a.zarr", categories=NAMES, per_category=2, seed=seed, neurons=11)
    write_random_moe_archive(folder / "m.zarr", categories=NAMES, per_category=2, seed=seed)
    for path in ("a.zarr", "m.zarr"):
        neurons = sa.instruction_specific_neurons(sa.open_archive(folder / path), epsilon=epsilon)
        labelled = to_xarray(neurons, sets=True)
        for k, name in enumerate(neurons.ids):
            own = labelled.sel(instruction=name)
            np.testing.assert_array_equal(own["member"], neurons.mask(k))
            assert own["category"].item() == (neurons.categories[k] or "(none)")
            assert own["size"].item() == own["member"].sum().item() == neurons.sizes[k]
        assert_equals(labelled["layer_count"], neurons.layer_counts, ("instruction", "layer"))
        assert labelled.attrs["epsilon"] == epsilon
        assert "threshold" not in labelled.attrs
        assert "member" not in to_xarray(neurons)


def test_frequencies_of_experts_and_pairs_by_id(analysed: sa.Analysis) -> None:
    """f of an instruction by its id, and the similarity of two by theirs."""
    experts, neurons = analysed.experts, analysed.neurons
    assert experts is not None
    labelled = to_xarray(experts)
    np.testing.assert_array_equal(labelled["frequency"].sel(instruction="i005"), experts.frequencies(5))
    assert_equals(labelled["count"], experts.counts, ("instruction", "layer", "expert"))
    pairs = sa.similarity_pairs(neurons)
    by_id = to_xarray(pairs, ids=neurons.ids)
    assert by_id["value"].sel(instruction="i001", instruction_2="i004").item() == pairs.values[1, 4]
    grouped = by_id["value"].sel(instruction=by_id["category"] == "QA", instruction_2=by_id["category_2"] == "CODE")
    expected = to_xarray(sa.category_similarity(neurons))["similarity"].sel(category="QA", category_2="CODE")
    assert grouped.mean().item() == pytest.approx(expected.item(), abs=1e-12)
    assert to_xarray(pairs)["instruction"].values.tolist() == [str(k) for k in range(len(pairs))]


def test_a_dataset_is_a_copy(analysed: sa.Analysis) -> None:
    """Values changed in a notebook do not change the result."""
    similarity = analysed.results.neurons[0].similarity
    before = similarity.matrix.copy()
    to_xarray(similarity)["similarity"][:] = -1
    np.testing.assert_array_equal(similarity.matrix, before)


Refused = tuple[Callable[[sa.Analysis], xr.Dataset], str]
REFUSED: list[Refused] = [
    (lambda a: to_xarray(a.metrics), r"one of CategoryExperts, .*, TopExperts, or a list of InstructionVenn; Metrics"),
    (lambda a: to_xarray(a.results.neurons[0].intervals), "PairIntervals is none. Give intervals beside the measure"),
    (lambda _: to_xarray([1], layer_ids=[0]), "a list that can be labelled"),
    (lambda _: to_xarray([], layer_ids=[0]), "a list that can be labelled"),
    (lambda a: to_xarray(sa.similarity_pairs(a.neurons), ids=["i0"]), "an id for each of the 12 instructions"),
    (lambda a: to_xarray(_by_layer(a)), "need as many layer_ids"),
    (lambda a: to_xarray(_by_layer(a), layer_ids=[1]), "need as many layer_ids"),
]


def _by_layer(analysed: sa.Analysis) -> sa.CategoryMeans:
    altered = analysed.results.neurons[0].altered
    assert altered is not None
    return altered.by_category(altered.layer_alteration)


@pytest.mark.parametrize(("make", "said"), REFUSED)
def test_what_cannot_be_labelled_is_refused(
    analysed: sa.Analysis, make: Callable[[sa.Analysis], xr.Dataset], said: str
) -> None:
    """With what can be, or with what is missing."""
    with pytest.raises(InvalidInputError, match=said):
        make(analysed)


def test_intervals_of_other_categories_are_refused(analysed: sa.Analysis) -> None:
    """Ends of another shape than the measure do not slip beside it."""
    similarity = analysed.results.neurons[0].similarity
    other = sa.PairIntervals(*[sa.Interval(np.zeros((2, 2)), np.zeros((2, 2)))] * 2)
    with pytest.raises(ValueError, match="intervals must be of the same categories"):
        to_xarray(similarity, intervals=other)


def test_the_refusal_lists_what_the_documentation_lists() -> None:
    """Each class that can be labelled stands in the docstring of `to_xarray`."""
    kinds = [kind for kind in to_xarray.registry if kind not in (object, list)]
    assert len(kinds) > 15
    for kind in kinds:
        assert kind.__name__ in (to_xarray.__doc__ or "")
        assert kind.__name__ in sa.__all__, f"{kind.__name__} can be labelled but not be imported from sparcom_analysis"


def test_importing_the_analysis_does_not_import_xarray() -> None:
    """xarray and pandas come with `to_xarray`, which is found, named and completed before."""
    code = (
        "import sys, sparcom_analysis as s\n"
        "assert 'to_xarray' in dir(s)\n"
        "assert not {'xarray', 'pandas'} & set(sys.modules)\n"
        "from sparcom_analysis import to_xarray\n"
        "assert 'xarray' in sys.modules\n"
        "assert not hasattr(s, 'to_arrays')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


def test_what_is_written_can_be_read(analysed: sa.Analysis, tmp_path: Path) -> None:
    """A dataset goes to zarr and comes back: attributes are plain values."""
    for labelled in (to_xarray(analysed.results.groups[0]), to_xarray(analysed.results.control)):
        labelled.to_zarr(tmp_path / "labelled.zarr", mode="w", consolidated=False, zarr_format=2)
        with xr.open_zarr(tmp_path / "labelled.zarr", consolidated=False) as read:
            xr.testing.assert_equal(read.load(), labelled)
