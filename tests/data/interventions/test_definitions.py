"""Interventions: their rules, their files, their check against a model, and random sets of equal size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from sparcom_data.errors import InvalidInputError
from sparcom_data.interventions import Intervention, check_interventions, matched_random, read_interventions
from sparcom_data.schema.metadata import ModelInfo, MoeInfo

DENSE = ModelInfo(
    id="dense", architecture="L", dtype="float32", layers=4, layer_ids=[0, 1, 2, 3], neurons=16, activation="silu",
    tokenizer_sha256="",
)  # fmt: skip
MOE = DENSE.model_copy(
    update={
        "layer_ids": [0],
        "moe": MoeInfo(layer_ids=[1, 3], experts=8, experts_per_token=2, neurons=12, shared_neurons=24),
    }
)
SILENT: dict[str, Any] = {"name": "a", "scale": 0, "neurons": {"1": [3, 0]}}
EXPERTS: dict[str, Any] = {"neurons": None, "scale": None, "experts": {"1": [0]}, "mode": "zero"}  # instead of those


def problems(*fields: dict[str, Any], model: ModelInfo = MOE) -> str:
    """Return the problems of interventions with this model."""
    with pytest.raises(InvalidInputError) as caught:
        check_interventions([Intervention.model_validate(one) for one in fields], model)
    return str(caught.value)


def test_equal_interventions_have_one_definition() -> None:
    """The order of layers, ids and fields, and the way numbers are written, make no difference."""
    one = Intervention.model_validate({**SILENT, "neurons": {"2": [5], "1": [0, 3]}})
    other = Intervention.model_validate(
        {"neurons": {1: [3.0, 0], 2: [5]}, "scale": 0.0, "name": "a", "when": "all", "mode": None}
    )
    assert one.definition() == other.definition()
    assert Intervention.model_validate_json(one.definition()) == one
    assert (one.sizes(), list(one.sets())) == ({"neurons": 3}, [("neurons", (2,), (5,)), ("neurons", (1,), (0, 3))])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"neurons": None},
            "give neurons (neurons, expert_neurons or shared_expert_neurons) or experts; found neither",
        ),
        ({"experts": {"1": [0]}}, "found both"),
        ({"scale": None}, "scale must be given with neurons: 0 silences them"),
        ({"mode": "zero"}, "mode must not be given with neurons"),
        (
            {"neurons": None, "experts": {"1": [0]}, "scale": None},
            "mode must be given with experts: 'exclude' or 'zero'",
        ),
        ({**EXPERTS, "scale": 0}, "scale must not be given with experts"),
        ({"scale": float("nan")}, "finite number"),
        ({"scale": float("inf")}, "finite number"),
        ({"scale": 1e39}, "less than or equal to"),
        ({"scale": "0"}, "neither a string nor a boolean"),
        ({"scale": True}, "neither a string nor a boolean"),
        ({"neurons": {"1": []}}, "at least 1 item"),
        ({"neurons": {}}, "at least 1 item"),
        ({"neurons": {"1": [4, 2, 4]}}, "ids must be distinct; 4 occurs twice"),
        ({"neurons": {"1": [-1]}}, "greater than or equal to 0"),
        ({"neurons": {"1": [1.5]}}, "valid integer"),
        ({"neurons": {"1": ["2"]}}, "neither a string nor a boolean"),
        ({"neurons": {"01": [2]}}, "keys must be numbers such as 3; one is '01'"),
        ({"neurons": {"-1": [2]}}, "keys must be numbers such as 3; one is '-1'"),
        ({"neurons": {True: [2]}}, "keys must be numbers"),
        ({"expert_neurons": {"1": {"x": [2]}}}, "keys must be numbers such as 3; one is 'x'"),
        ({"name": ""}, "should match pattern"),
        ({"name": "a/b"}, "should match pattern"),
        ({"name": "None"}, "name must not be 'none'"),
        ({"when": "answer"}, "'prompt', 'response' or 'all'"),
        ({"neuron": {"1": [2]}}, "Extra inputs are not permitted"),
    ],
)
def test_bad_interventions_are_refused(change: dict[str, Any], problem: str) -> None:
    """Each broken rule is named."""
    with pytest.raises(ValidationError) as caught:
        Intervention.model_validate({**SILENT, **change})
    assert problem in str(caught.value)


def test_interventions_must_fit_the_model() -> None:
    """Every problem is reported at once, with the intervention, the place, the rule and the value."""
    assert check_interventions([Intervention.model_validate(SILENT)], DENSE) == []
    found = problems(
        {**SILENT, "name": "layer"},
        {**SILENT, "name": "neuron", "neurons": {"0": [1, 16]}},
        {"name": "expert", "scale": 2, "expert_neurons": {"1": {"8": [0]}, "3": {"7": [12]}}},
        {"name": "shared", "scale": 2, "shared_expert_neurons": {"2": [1], "3": [24]}},
        {"name": "few", "mode": "exclude", "experts": {"1": [0, 1, 2, 3, 4, 5, 6]}},
        {"name": "far", "mode": "zero", "experts": {"3": [8]}},
        {**SILENT, "name": "Far", "neurons": {"0": [1]}},
    )
    assert found.splitlines() == [
        "names of interventions must be unique: 'far' occurs 2 times",
        "intervention 'layer', neurons.1: the dense FFN layers of the model are 0 to 0; there is no layer 1",
        "intervention 'neuron', neurons.0: ids must be below 16, the number of neurons; one is 16",
        "intervention 'expert', expert_neurons.1.8: experts must be below 8; this one is 8",
        "intervention 'expert', expert_neurons.3.7: ids must be below 12, the number of neurons; one is 12",
        "intervention 'shared', shared_expert_neurons.2: the MoE layers of the model are [1, 3]; there is no layer 2",
        "intervention 'shared', shared_expert_neurons.3: ids must be below 24, the number of neurons; one is 24",
        "intervention 'few', experts.1: the router chooses 2 experts per token, and 1 of 8 would be left. "
        "Exclude fewer",
        "intervention 'far', experts.3: ids must be below 8, the number of experts; one is 8",
    ]
    expert = {"name": "b", "mode": "zero", "experts": {"1": [0]}}
    assert "experts.1: the model has no MoE layers. Remove it" in problems(expert, model=DENSE)
    without = MOE.model_copy(update={"moe": MOE.moe and MOE.moe.model_copy(update={"shared_neurons": 0})})
    shared = {"name": "c", "scale": 0, "shared_expert_neurons": {"1": [0]}}
    assert "the model has no shared experts. Remove it" in problems(shared, model=without)


def test_whole_layers_are_allowed_and_reported() -> None:
    """A set that covers a layer gets a sentence; one that leaves a neuron gets none."""
    fields: list[dict[str, Any]] = [
        {"name": "a", "scale": 0, "neurons": {"0": [*range(16)]}},
        {"name": "b", "scale": -0.5, "expert_neurons": {"1": {"3": [*range(12)]}}},
        {"name": "c", "mode": "zero", "experts": {"3": [*range(8)]}},
        {"name": "d", "scale": 0, "shared_expert_neurons": {"3": [*range(23)]}},
    ]
    assert check_interventions([Intervention.model_validate(one) for one in fields], MOE) == [
        "intervention 'a', neurons.0: all 16 neurons are silenced",
        "intervention 'b', expert_neurons.1.3: all 12 neurons are scaled by -0.5",
        "intervention 'c', experts.3: all 8 experts are dropped",
    ]


def test_files_hold_one_or_several(tmp_path: Path) -> None:
    """An object is one intervention, a list several."""
    path = tmp_path / "sets.json"
    path.write_text(json.dumps(SILENT))
    assert [one.name for one in read_interventions(path)] == ["a"]
    path.write_text(json.dumps([SILENT, {**SILENT, "name": "b"}]))
    assert [one.name for one in read_interventions(path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "cannot read"),
        ("{", "sets.json must be JSON"),
        ("[]", "sets.json must hold at least one intervention; the list is empty"),
        ("3", "valid list"),
        (b"\xff", "sets.json must be JSON"),
        ('{"name": "a", "scale": 0, "neurons": {"1": [1], "1": [2]}}', "'1' occurs twice"),
        ('{"name": "a", "scale": NaN, "neurons": {"1": [1]}}', "scale: "),
        (
            '[{"name": "a", "scale": 0, "neurons": {"1": [1]}}, {"name": "A", "scale": 0, "neurons": {"1": [1]}}]',
            "unique",
        ),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str | bytes | None, problem: str) -> None:
    """The error names the file and the problem."""
    path = tmp_path / "sets.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InvalidInputError) as caught:
        read_interventions(path)
    assert problem in str(caught.value)


def test_random_sets_match_in_size() -> None:
    """As many ids at each location, in range, the same for the same seed, with the same scale, mode and tokens."""
    of = Intervention.model_validate(
        {
            "name": "of", "scale": -2, "when": "response", "neurons": {"0": [1, 2, 3]},
            "expert_neurons": {"1": {"2": [0], "5": [3, 4]}, "3": {"0": [11]}},
            "shared_expert_neurons": {"3": [20, 21]},
        }
    )  # fmt: skip
    one, again, other = (matched_random(of, MOE, seed) for seed in (1, 1, 2))
    assert one == again != other
    assert (one.scale, one.when, one.name) == (-2, "response", "of random 1")
    assert [(*where, len(ids)) for *where, ids in one.sets()] == [(*where, len(ids)) for *where, ids in of.sets()]
    check_interventions([one, other], MOE)
    experts = Intervention.model_validate({"name": "e", "mode": "exclude", "experts": {"1": [0, 1], "3": [4]}})
    drawn = matched_random(experts, MOE, 3, name="null")
    assert (drawn.name, drawn.mode, drawn.sizes()) == ("null", "exclude", {"experts": 3})
    with pytest.raises(InvalidInputError, match="ids must be below 16"):
        matched_random(Intervention.model_validate({**SILENT, "neurons": {"0": [16]}}), MOE, 0)


def test_random_sets_are_uniform() -> None:
    """Over many seeds, each neuron is drawn equally often (chi-squared within five standard deviations)."""
    of = Intervention.model_validate({**SILENT, "neurons": {"1": [0, 1, 2, 3]}})
    seeds = 2000
    counts = np.zeros(16)
    for seed in range(seeds):
        counts[list((matched_random(of, DENSE, seed).neurons or {})[1])] += 1
    expected = seeds * 4 / 16
    chi_squared = float((((counts - expected) ** 2) / (expected * (1 - 4 / 16))).sum())
    assert abs(chi_squared - 15) < 5 * np.sqrt(2 * 15)
