"""The loop over the registry: tree content, independence of block size, and errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr

import sparcom_analysis as sp
from sparcom_analysis.measures import REGISTRY
from sparcom_data.errors import DamagedArchiveError, IncompleteArchiveError, InvalidInputError, UnsupportedArchiveError

FEW: dict[str, Any] = {"n_resamples": 10, "n_permutations": 19, "top": 0.2}
Make = Callable[..., Any]


def nodes(tree: xr.DataTree) -> dict[str, xr.Dataset]:
    """Return the Datasets of the measures by path."""
    return {path.strip("/"): node.to_dataset() for path, node in tree.subtree_with_keys if node.has_data}


def test_every_measure_has_its_node_or_a_reason(make_moe: Make) -> None:
    """Each measure has a node, or the tree gives the reason; nodes name their measure."""
    base, tuned = make_moe().archive, make_moe(seed=1).archive
    tree = sp.analyze(base, tuned, **FEW)
    held, missing = nodes(tree), {item["measure"] for item in tree.attrs["not_computed"]}
    for measure in REGISTRY:
        assert measure.name in held or measure.name in missing
    for path, ds in held.items():
        assert path.endswith(ds.attrs["measure"])
    assert {path for path in held if path.startswith("tuned/") and path.count("/") == 1} == {
        f"tuned/{one.name}" for one in REGISTRY if one.also_tuned
    }
    assert {"neuron/similarity", "shared_expert_neuron/similarity"} <= held.keys()


@pytest.mark.parametrize("measure", REGISTRY, ids=lambda one: one.name)
def test_every_measure_is_complete(measure: Any) -> None:
    """Each measure has a computation, figure, sentences and caption, and is in `sp.plot`."""
    assert all((measure.compute, measure.plot, measure.sentences, measure.caption, measure.title, measure.equation))
    assert measure.definition.endswith((".", ")"))
    assert callable(getattr(sp.plot, measure.name))


def test_results_do_not_depend_on_blocks_or_memory(make_moe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number is the same for any block size, in memory or in a file, from masks or counts."""
    masks, counts = make_moe().archive, make_moe(granularity="count").archive
    found = []
    for archive, block_bytes, memory in ((masks, 1, 0), (masks, 97, 1 << 26), (counts, 500, 0)):
        monkeypatch.setattr("sparcom_analysis.kernels.bitsets.MEMORY_BYTES", memory)
        found.append(nodes(sp.analyze(archive, archive, block_bytes=block_bytes, equal_length=False, **FEW)))
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for path, ds in found[0].items():
            xr.testing.assert_equal(ds, other[path])


@pytest.mark.parametrize("absent", [("dense_layers",), ("shared_neurons",), ("dense_layers", "shared_neurons")])
def test_missing_populations_have_no_nodes(make_moe: Make, absent: tuple[str, ...]) -> None:
    """Populations that a model lacks have no nodes."""
    held = nodes(sp.analyze(make_moe(**dict.fromkeys(absent, 0)).archive, **FEW))
    assert ("neuron/similarity" in held) == ("dense_layers" not in absent)
    assert ("shared_expert_neuron/similarity" in held) == ("shared_neurons" not in absent)
    assert held["similarity"].attrs["population"] == "expert_neuron"


def test_options_are_those_of_the_functions(typical: Any) -> None:
    """`analyze` gives what the function gives with the same options."""
    tree = sp.analyze(typical.archive, **FEW)
    alone = sp.similarity(sp.find_isns(typical.archive, **FEW))
    np.testing.assert_array_equal(tree["similarity"]["value"], alone["value"])
    np.testing.assert_array_equal(tree["similarity"]["pvalue_adjusted"], alone["pvalue_adjusted"])


def test_progress_rises_to_its_end(make_moe: Make) -> None:
    """Progress never falls, the total is known from the start, and the last report equals it."""
    seen: list[tuple[int, int]] = []
    archive = make_moe(lengths=(9, 12)).archive
    sp.analyze(archive, archive, progress=lambda *at: seen.append(at), **FEW)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len({total for _, total in seen}) == 1
    assert seen[-1][0] == seen[-1][1]


def test_damage_ends_the_run(make_moe: Make, damage: Make) -> None:
    """A row without its experts is an error with the instruction's id."""
    archive = damage(make_moe().archive, "router/expert", (0, 0, 0), 65_535)
    with pytest.raises(DamagedArchiveError, match="instruction 'i000'"):
        sp.analyze(archive, **FEW)


def test_constant_frequencies_are_reported(make_moe: Make) -> None:
    """If every token activates all experts, the correlation is undefined, and the tree gives the reason."""
    tree = sp.analyze(make_moe(experts=2, choices=2).archive, **FEW)
    reasons = {item["measure"]: item["reason"] for item in tree.attrs["not_computed"]}
    assert "equally often" in reasons["routing_correlation"]


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"instructions": ["i0"]}, InvalidInputError, "needs a tuned archive"),
        ({"special_tokens": "leave_out"}, UnsupportedArchiveError, "does not list them"),
        ({"equal_length_tokens": 10_000}, IncompleteArchiveError, "at least 10000"),
        ({"epsilon": 0.1}, InvalidInputError, "no option 'epsilon'"),
        ({"positions": "response"}, IncompleteArchiveError, "Choose positions"),
    ],
)
def test_impossible_options_are_refused_before_a_mask_is_read(
    typical: Any, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], error: type[Exception], match: str
) -> None:
    """Impossible options raise errors before any mask is read."""
    monkeypatch.setattr("sparcom_analysis.report.run.find_isns", lambda *_, **__: pytest.fail("masks were read"))
    with pytest.raises(error, match=match):
        sp.analyze(typical.archive, **changes)


def test_models_that_are_not_a_pair_are_refused(make_moe: Make, typical: Any) -> None:
    """A dense and an MoE archive cannot be a model before and after tuning."""
    with pytest.raises(UnsupportedArchiveError, match="router"):
        sp.analyze(make_moe().archive, typical.archive, **FEW)
