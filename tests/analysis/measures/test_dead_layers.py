"""Layers in which an instruction has no active neuron are said: what gates that are not finite look like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from sparcom_analysis import analyze, instruction_specific_neurons
from sparcom_cli.analyze import analyze as command

QUICK: dict[str, Any] = {"resamples": 0, "permutations": 0, "match_tokens": False}


def silenced(case: Any, damage: Any, name: str, instructions: list[int], layer: int) -> Any:
    """The archive where these instructions have no active neuron in a layer, masks or counts."""
    archive = case.archive
    for k in instructions:
        start, length = int(archive.instructions.token_start[k]), int(archive.instructions.token_length[k])
        rows = slice(k, k + 1) if archive.granularity == "count" else slice(start, start + length)
        archive = damage(archive, name, (rows, layer), 0)
    return archive


@pytest.mark.parametrize("granularity", ["token", "count"])
@pytest.mark.parametrize("rule", [{"epsilon": 0.05}, {"threshold": 1.0}])
def test_a_dead_layer_is_named_with_instruction_and_component(  # type: ignore[no-untyped-def]
    make_moe, damage, tmp_path: Path, granularity: Any, rule: Any, undrawn: None
) -> None:
    """In the model's numbering, of every component, whatever the rule; a layer without ISNs alone is none."""
    what = "count" if granularity == "count" else "active"
    case = make_moe(granularity=granularity, dense_layers=2, failed=(1,))
    archive = silenced(case, damage, f"shared_expert_neuron/{what}", [0, 3, 4, 8], 1)
    archive = silenced(type(case)(archive, case.truth), damage, f"neuron/{what}", [5], 1)
    result = analyze(archive, tmp_path, **rule, **QUICK)
    dense, shared = result.metrics.warnings
    assert shared.startswith(
        "4 instructions have a layer without any active neuron in the base archive, shared experts:"
    )
    assert "'i000' (layer 3), 'i003' (layer 3), 'i004' (layer 3) and 1 more." in shared
    assert dense.startswith("1 instruction has a layer without any active neuron in the base archive, dense layers:")
    assert "'i005' (layer 1). Gates that are not finite" in dense
    assert json.loads((tmp_path / "metrics.json").read_text())["warnings"] == [dense, shared]
    assert "dense layers: &#39;i005&#39; (layer 1)" in (tmp_path / "report.html").read_text()


def test_the_routed_experts_of_a_layer_are_dead_together(make_moe, damage) -> None:  # type: ignore[no-untyped-def]
    """A layer of routed experts is dead where no expert that was chosen has an active neuron."""
    archive = silenced(make_moe(), damage, "expert_neuron/active", [6], 0)
    found = instruction_specific_neurons(archive)
    assert found.dead_layers is not None
    assert np.argwhere(found.dead_layers).tolist() == [[6, 0]]


def test_a_dead_layer_of_the_tuned_archive_is_told_on_standard_error(make_moe, damage, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The side is said; without a dead layer nothing is."""
    case = make_moe()
    archive = silenced(make_moe(), damage, "neuron/active", [2], 0)
    options = ["--resamples", "0", "--permutations", "0", "--no-match-tokens", "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(command, [case.archive.path, "--tuned", archive.path, *options])
    assert result.exit_code == 0, result.output
    assert "warning: 1 instruction has a layer without any active neuron in the tuned archive" in result.stderr
    result = CliRunner().invoke(command, [case.archive.path, *options])
    assert "warning" not in result.stderr
