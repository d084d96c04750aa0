"""Find the MoE layers of a model and check their routing. `ops/experts.py` checks the kernel that runs the experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from sparcom_data.errors import UnsupportedModelError
from sparcom_extractor.capture.discovery.activations import SILU, ActivationSpec, GatedFFN, layer_number
from sparcom_extractor.vllm_surface import moe as vllm_moe

# By the value of vLLM's MoEActivation; in all of them the gate is the first half of the projection.
_SPECS = {"silu": SILU, "gelu": ActivationSpec("gelu"), "gelu_tanh": ActivationSpec("gelu_tanh")}


@dataclass(frozen=True, slots=True)
class MoeLayer:
    """An MoE layer. spec, intermediate_size: of each expert. scale: factor of the sum of the routed experts."""

    layer_id: int
    name: str
    runner: vllm_moe.MoeRunnerLike
    spec: ActivationSpec
    num_experts: int
    top_k: int
    intermediate_size: int
    intermediate_size_per_partition: int
    scale: float
    shared: GatedFFN | None


def find_moe_layers(model: torch.nn.Module, ffns: Sequence[GatedFFN]) -> list[MoeLayer]:
    """Return the MoE layers of a vLLM model in layer order. ffns: all its gated FFNs, shared experts included."""
    found: list[MoeLayer] = []
    for name, module in model.named_modules():
        classes = {base.__name__ for base in type(module).__mro__}
        if vllm_moe.MOE_RUNNER in classes:
            try:
                found.append(_describe(name, cast(vllm_moe.MoeRunnerLike, module), ffns))
            except AttributeError as error:
                raise UnsupportedModelError(_unknown(name, module, f" ({error})")) from error
        elif classes & vllm_moe.OTHER_MOE and not any(name.startswith(f"{layer.name}.") for layer in found):
            raise UnsupportedModelError(_unknown(name, module))
    found.sort(key=lambda layer: layer.layer_id)
    for layer in found[1:]:
        if (facts := _facts(layer)) != (first := _facts(found[0])):
            raise UnsupportedModelError(
                "capture needs the same activation, number of experts, top_k and widths in all MoE layers; "
                f"{found[0].name} and {layer.name} differ: {first} and {facts}"
            )
    return found


def _unknown(name: str, module: torch.nn.Module, detail: str = "") -> str:
    return (
        f"capture supports MoE layers with vLLM's MoERunner; {name} ({type(module).__name__}) is of another "
        f"kind{detail}. Use another model or vLLM version"
    )


def _facts(layer: MoeLayer) -> tuple[Any, ...]:
    shared = layer.shared and (layer.shared.intermediate_size, str(layer.shared.spec))
    return str(layer.spec), layer.num_experts, layer.top_k, layer.intermediate_size, shared


def _describe(name: str, runner: vllm_moe.MoeRunnerLike, ffns: Sequence[GatedFFN]) -> MoeLayer:
    config = runner.moe_config
    _refuse_routing(name, config, runner.router)
    kind = getattr(runner.activation, "value", str(runner.activation))
    if kind not in _SPECS:
        raise UnsupportedModelError(
            f"capture supports experts with {', '.join(_SPECS)}; {name} uses {kind!r}. Use another model"
        )
    size = int(config.intermediate_size_per_partition_unpadded or config.intermediate_size_per_partition)
    return MoeLayer(
        layer_id=layer_number(name),
        name=name,
        runner=runner,
        spec=_SPECS[kind],
        num_experts=int(config.num_experts),
        top_k=int(config.experts_per_token),
        intermediate_size=size * int(config.tp_size),
        intermediate_size_per_partition=size,
        scale=float(runner.routed_scaling_factor),
        shared=_shared_of(runner, ffns),
    )


def _refuse_routing(name: str, config: vllm_moe.MoeConfigLike, router: vllm_moe.RouterLike) -> None:
    """Refuse a layer if its kernel may run other experts than the router selected for the step's tokens."""
    parallel = config.moe_parallel_config
    refusals = {
        f"a worker must see all tokens and its part of all experts; {name} runs under expert, data or sequence "
        "parallelism. Use tensor parallelism only: no enable_expert_parallel, data_parallel_size=1": (
            parallel.use_ep or parallel.dp_size > 1 or getattr(config, "is_sequence_parallel", False)
        ),
        f"{name} renumbers its experts to balance their load. Start the engine without enable_eplb": (
            router.eplb_state is not None
        ),
        f"{name} runs its shared experts as routed experts, so they would appear in top_k. Start vLLM without "
        "VLLM_ROCM_USE_AITER_FUSION_SHARED_EXPERTS": getattr(router, "num_fused_shared_experts", 0),
        f"{name} routes to experts without neurons. Use another model": type(router).__name__ == "ZeroExpertRouter",
    }
    for refusal, applies in refusals.items():
        if applies:
            raise UnsupportedModelError(refusal)


def _shared_of(runner: vllm_moe.MoeRunnerLike, ffns: Sequence[GatedFFN]) -> GatedFFN | None:
    if runner.shared_experts is None:
        return None
    module = runner.shared_experts._layer
    parts = list(module.modules())
    found = [ffn for ffn in ffns if any(ffn.parent is part for part in parts)]
    if len(found) != 1:
        raise UnsupportedModelError(
            f"shared experts must be one gated FFN; those of {runner.layer_name} ({type(module).__name__}) hold "
            f"{len(found)}. This model cannot be captured yet"
        )
    return found[0]
