"""Find the layers of experts of a model, and hold that their routes and neurons can be captured.

vLLM runs every such layer by a MoERunner, which has the router, the routed experts with the kernel that runs them, and
the shared experts if there are any. Names of models play no part. What is read here is the same in vLLM 0.24 to 0.33
(compared in the sources of 0.24.0, 0.32.0 and 0.33.0). Whether a kernel shows the neurons of the chosen experts is for
`experts.py` to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sparcom_data.errors import UnsupportedModelError
from sparcom_extractor.capture.discovery.activations import SILU, GatedActivation
from sparcom_extractor.capture.discovery.ffn import GatedFFN, layer_number

RUNNER = "MoERunner"  # the base of every runner
# Classes of older releases, and of runners that are none; a model that has one is not taken for a dense one.
OTHERS = {"FusedMoE", "SharedFusedMoE", "RoutedExperts"}

# vLLM's MoEActivation by value, for those whose gate is the first half of the projection.
_RULES: dict[str, GatedActivation] = {
    "silu": SILU,
    "gelu": GatedActivation("gelu"),
    "gelu_tanh": GatedActivation("gelu_tanh"),
}


@dataclass(frozen=True, slots=True)
class MoeLayer:
    """One layer of experts.

    runner: vLLM's. rule: how every expert gates. experts: how many; choices: k of the top-k router.
    neurons: width of one expert, neurons_here: width of this tensor-parallel rank's slice. shared: its shared experts.
    scale: what the model multiplies the sum of the routed experts with.
    """

    layer_id: int
    name: str
    runner: Any
    rule: GatedActivation
    experts: int
    choices: int
    neurons: int
    neurons_here: int
    scale: float
    shared: GatedFFN | None


def find_moe_layers(model: torch.nn.Module, ffns: Sequence[GatedFFN]) -> list[MoeLayer]:
    """The layers of experts of a model, in layer order.

    Args:
        model: a loaded vLLM model.
        ffns: all its gated FFNs, among them the shared experts.

    Raises:
        UnsupportedModelError: they differ from one another, or their routes or neurons cannot be told.
    """
    found = []
    for name, module in model.named_modules():
        classes = {base.__name__ for base in type(module).__mro__}
        if RUNNER in classes:
            found.append(_known(name, module, ffns))
        elif classes & OTHERS and not any(name.startswith(f"{layer.name}.") for layer in found):
            raise UnsupportedModelError(
                f"capture knows vLLM's MoERunner; {name} ({type(module).__name__}) is a mixture of experts of another "
                "kind. Use another model or version of vLLM"
            )
    found.sort(key=lambda layer: layer.layer_id)
    _refuse_differences(found)
    return found


def _known(name: str, runner: Any, ffns: Sequence[GatedFFN]) -> MoeLayer:
    try:
        return _describe(name, runner, ffns)
    except AttributeError as error:
        raise UnsupportedModelError(
            f"capture knows vLLM's MoERunner; {name} ({type(runner).__name__}) is a mixture of experts of another kind "
            f"({error}). Use another model or version of vLLM"
        ) from error


def _describe(name: str, runner: Any, ffns: Sequence[GatedFFN]) -> MoeLayer:
    config, router = runner.moe_config, runner.router
    _refuse_routing(name, config, router)
    here = config.intermediate_size_per_partition_unpadded or config.intermediate_size_per_partition
    return MoeLayer(
        layer_id=layer_number(name),
        name=name,
        runner=runner,
        rule=_rule_of(name, runner),
        experts=int(config.num_experts),
        choices=int(config.experts_per_token),
        neurons=int(here) * int(config.tp_size),
        neurons_here=int(here),
        scale=float(runner.routed_scaling_factor),
        shared=_shared_of(runner, ffns),
    )


def _rule_of(name: str, runner: Any) -> GatedActivation:
    kind = getattr(runner.activation, "value", str(runner.activation))
    if kind not in _RULES:
        raise UnsupportedModelError(
            f"capture knows experts that gate by {', '.join(_RULES)}; {name} uses {kind!r}. Use another model"
        )
    return _RULES[kind]


def _refuse_routing(name: str, config: Any, router: Any) -> None:
    """Raise where the experts that a kernel is given are not those that the model chose for the step's tokens."""
    parallel = config.moe_parallel_config
    if parallel.use_ep or parallel.dp_size > 1 or getattr(config, "is_sequence_parallel", False):
        raise UnsupportedModelError(
            f"a process must see all tokens and its part of all experts; {name} runs under expert, data or sequence "
            "parallelism. Use tensor parallelism alone: no enable_expert_parallel, data_parallel_size=1"
        )
    if router.eplb_state is not None:
        raise UnsupportedModelError(
            f"{name} renumbers its experts to balance their load. Start the engine without enable_eplb"
        )
    if getattr(router, "num_fused_shared_experts", 0):
        raise UnsupportedModelError(
            f"{name} runs its shared experts as further routed ones, which capture would take for choices. Start vLLM "
            "without VLLM_ROCM_USE_AITER_FUSION_SHARED_EXPERTS"
        )
    if type(router).__name__ == "ZeroExpertRouter":
        raise UnsupportedModelError(f"{name} chooses experts without neurons, which capture does not know yet")


def _shared_of(runner: Any, ffns: Sequence[GatedFFN]) -> GatedFFN | None:
    shared = runner.shared_experts
    if shared is None:
        return None
    modules = list(shared._layer.modules())
    found = [ffn for ffn in ffns if any(ffn.parent is module for module in modules)]
    if len(found) != 1:
        raise UnsupportedModelError(
            f"shared experts are one gated FFN; those of {runner.layer_name} ({type(shared._layer).__name__}) hold "
            f"{len(found)}. This model cannot be captured yet"
        )
    return found[0]


def _refuse_differences(layers: Sequence[MoeLayer]) -> None:
    def facts(layer: MoeLayer) -> tuple[Any, ...]:
        shared = layer.shared and (layer.shared.neurons, layer.shared.rule)
        return layer.rule, layer.experts, layer.choices, layer.neurons, shared

    for layer in layers[1:]:
        if facts(layer) != facts(layers[0]):
            raise UnsupportedModelError(
                "capture needs layers of experts that are alike in activation, number, choices and widths; "
                f"{layers[0].name} and {layer.name} differ: {facts(layers[0])} and {facts(layer)}"
            )
