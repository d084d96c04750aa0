"""Discovery in vLLM's own models of every family, and the kernel that vLLM chooses for their experts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparcom_data.errors import UnsupportedModelError
from sparcom_extractor.capture.discovery.describe import refuse_model, widths_here
from sparcom_extractor.capture.discovery.findings import Findings, find_captured
from sparcom_extractor.capture.ops.activation_reference import Numerics
from sparcom_extractor.capture.ops.experts import capturable_experts
from sparcom_extractor.capture.ops.install import expected_numerics
from sparcom_extractor.vllm_surface.activations import is_compiled, is_unquantized, linear_layers
from sparcom_extractor.vllm_surface.moe import CPU_EXPERTS, TRITON_EXPERTS
from sparcom_models.tiny.families import ARCHITECTURES, Sizes

REFUSED = {"opt", "gpt2"}
# In 0.24 the Transformers backend does not merge gate and up projections.
REFUSED_BY_VERSION = {"0.24.0": {"smollm3"}}
REAL_HEADS = {"qk_nope_head_dim": 128, "v_head_dim": 128}  # CUDA has latent attention for these sizes only
# Layers of the tiny models: dense, MoE; width of the shared experts.
LAYERS = {
    "qwen2-moe": ([1], [0, 2], 176),
    "qwen3-moe": ([0, 2], [1], 0),
    "mixtral": ([], [0, 1, 2], 0),
    "olmoe": ([], [0, 1, 2], 0),
    "granitemoe": ([], [0, 1, 2], 0),
    "deepseek-v2": ([0], [1, 2], 224),
    "deepseek-v3": ([0], [1, 2], 112),
    "glm4-moe": ([0], [1, 2], 112),
    "ernie4-5-moe": ([0], [1, 2], 112),
    "lfm2-moe": ([0], [1, 2], 0),
    "llama4-text": ([0, 2], [1], 112),
}


def found_in(config: Any, model: torch.nn.Module) -> Findings:
    layers = range(*config.model_config.get_layers_start_end_indices(config.parallel_config))
    found = find_captured(model, layers)
    refuse_model(config, found)
    return found


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_family(
    vllm: Any, architecture: str, make_model_folder: Callable[..., Path], engine_config: Callable[..., Any], build: Any
) -> None:
    """Every layer is found, with its width, numerics and, for experts, a kernel that exposes neurons. A model without
    gates is refused."""
    heads = REAL_HEADS if architecture.startswith("deepseek") else {}
    config = engine_config(make_model_folder(architecture, **heads))
    dense, moe, shared = LAYERS.get(architecture, ([0, 1, 2], [], 0))
    with build(config) as model:
        if architecture in REFUSED | REFUSED_BY_VERSION.get(vllm.version, set()):
            with pytest.raises(UnsupportedModelError, match="gated FFN"):
                found_in(config, model)
            return
        found = found_in(config, model)
        widths = widths_here(found)
        assert (list(widths.layer_ids), list(widths.moe_layer_ids), widths.shared_neurons) == (dense, moe, shared)
        assert widths.neurons in (0, Sizes.intermediate_size)
        assert widths.expert_neurons in (0, Sizes.moe_intermediate_size)
        assert is_compiled(model) is vllm.cuda
        for ffn in found.dense:
            activation = getattr(ffn.parent, ffn.attribute)
            assert expected_numerics(activation, compiled=is_compiled(model)) == (
                Numerics.INDUCTOR if vllm.cuda else None
            )
            assert all(map(is_unquantized, linear_layers(ffn.parent)))
        for layer in found.moe:
            routed = layer.runner.routed_experts
            routed.quant_method.process_weights_after_loading(routed)
            assert type(capturable_experts(layer)).__name__ == (TRITON_EXPERTS if vllm.cuda else CPU_EXPERTS)
