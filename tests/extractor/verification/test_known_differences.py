"""A comparison that fails due to a known difference of vLLM notes it, and still fails."""

from __future__ import annotations

from typing import Any

import pytest

from sparcom_data.testing import random_attributes
from sparcom_data.verify import Check
from sparcom_verification.known_differences import KNOWN_DIFFERENCES, note_known_differences

CASES = [
    ("Cohere2ForCausalLM", {"layer_types": ["full_attention", "sliding_attention"]}, "one token more"),
    ("Ernie4_5_MoeForCausalLM", {}, "without the selection bias"),
    ("OlmoeForCausalLM", {"norm_topk_prob": True}, "norm_topk_prob is true"),
    ("Lfm2ForCausalLM", {"layer_types": ["conv", "full_attention"]}, "query heads"),
    ("Lfm2MoeForCausalLM", {"layer_types": ["conv", "full_attention"]}, "query heads"),
]


def notes(
    architecture: str, config: dict[str, Any], *, vllm: str = "0.32.0", device: str = "cpu", failed: bool = True
) -> list[str]:
    attributes = random_attributes(1, 8)
    attributes = attributes.model_copy(
        update={
            "model": attributes.model.model_copy(update={"architecture": architecture}),
            "engine": attributes.engine.model_copy(update={"vllm": vllm, "device": device}),
        }
    )
    checks = [Check("reference"), Check("routes", findings=["3 sets differ"] if failed else [])]
    note_known_differences(checks, attributes, config)
    assert checks[1].passed is not failed, "a note removes no finding"
    assert checks[0].notes == []
    return checks[1].notes


@pytest.mark.parametrize(("architecture", "config", "said"), CASES)
def test_a_known_difference_is_noted(architecture: str, config: dict[str, Any], said: str) -> None:
    """Architecture, vLLM's version and configuration must match the known difference."""
    (note,) = notes(architecture, config)
    assert note.startswith("known difference of vLLM 0.32.0 from transformers: ")
    assert said in note
    assert notes(architecture, config, failed=False) == []
    assert notes(architecture, config, vllm="0.33.0") == []
    assert notes("LlamaForCausalLM", config) == []


def test_a_difference_of_the_cpu_is_not_noted_for_a_gpu() -> None:
    """ERNIE and LFM2 differ only on CPUs; unaffected configurations do not differ."""
    of_cpu = {case[0]: notes(*case[:2], device="NVIDIA H100") == [] for case in CASES}
    assert [name for name, silent in of_cpu.items() if silent] == [
        "Ernie4_5_MoeForCausalLM",
        "Lfm2ForCausalLM",
        "Lfm2MoeForCausalLM",
    ]
    assert notes("OlmoeForCausalLM", {"norm_topk_prob": False}) == []
    assert notes("Cohere2ForCausalLM", {"layer_types": ["full_attention"]}) == []
    assert {name for difference in KNOWN_DIFFERENCES for name in difference.architectures} == {
        case[0] for case in CASES
    }
