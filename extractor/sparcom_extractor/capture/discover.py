"""Find the gated FFN of every decoder layer by its structure, or say why it cannot be done.

An FFN is a module that holds a gated activation (see `activations`) beside one linear layer that doubles the width
(gate and up, fused) and one that takes the single width back. Names of modules and model classes play no
part, but for the number of the layer, which vLLM writes into module names for all its models.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sparcom_data.errors import UnsupportedModelError
from sparcom_extractor.capture.activations import GatedActivation, rule_of


@dataclass(frozen=True, slots=True)
class GatedFFN:
    """One FFN: where its activation hangs, how it gates, the layer it belongs to, and its width.

    neurons: width of the whole layer; neurons_here: width of this tensor-parallel rank's slice.
    """

    layer_id: int
    name: str
    parent: torch.nn.Module
    attribute: str
    rule: GatedActivation
    neurons: int
    neurons_here: int

    @property
    def activation(self) -> str:
        """The archive's name for the activation function."""
        return self.rule.kind


def find_gated_ffns(model: torch.nn.Module, decoder_layers: int) -> list[GatedFFN]:
    """All gated FFNs of a model, in layer order.

    Args:
        model: a loaded vLLM model.
        decoder_layers: how many decoder layers its configuration has; each must have exactly one.

    Raises:
        UnsupportedModelError: the model has none, lacks some, has several in a layer, is a mixture of experts, or
            gates in a way that the sign of the gate does not tell.
    """
    refuse_experts(model)
    found: list[GatedFFN] = []
    for name, module in model.named_modules():
        for attribute, child in module.named_children():
            rule = rule_of(child)
            if rule is not None:
                found.append(_describe(name, module, attribute, rule))
    return _one_each_layer(found, model, decoder_layers)


def refuse_experts(model: torch.nn.Module) -> None:
    """Raise for a mixture of experts: its neurons are not captured by this release."""
    for name, module in model.named_modules():
        classes = {base.__name__ for base in type(module).__mro__}
        if classes & {"FusedMoE", "MoERunner", "SharedFusedMoE", "RoutedExperts"}:
            raise UnsupportedModelError(
                f"this release captures dense gated FFNs; {name} ({type(module).__name__}) is a mixture of experts. "
                "Use a dense model"
            )


def _describe(name: str, module: torch.nn.Module, attribute: str, rule: GatedActivation) -> GatedFFN:
    linears = [child for _, child in module.named_children() if hasattr(child, "input_size")]
    down = [linear for linear in linears if _doubled_beside(linear, linears)]
    if len(down) != 1:
        raise UnsupportedModelError(
            f"a gated FFN holds one linear layer of twice the width of another; {name} ({type(module).__name__}) holds "
            f"{len(linears)} linear layers that do not fit. This model cannot be captured yet"
        )
    layer_id = layer_number(name)
    return GatedFFN(
        layer_id=layer_id,
        name=name,
        parent=module,
        attribute=attribute,
        rule=rule,
        neurons=int(down[0].input_size),  # type: ignore[arg-type]
        neurons_here=int(getattr(down[0], "input_size_per_partition", down[0].input_size)),  # type: ignore[arg-type]
    )


def _doubled_beside(linear: torch.nn.Module, others: Sequence[torch.nn.Module]) -> bool:
    """Whether `linear` takes in half of what one of the others gives out: the down projection."""
    width = 2 * int(linear.input_size)  # type: ignore[arg-type]
    return any(getattr(other, "output_size", -1) == width for other in others if other is not linear)


def layer_number(name: str) -> int:
    """The decoder layer a module belongs to: the one number in its name."""
    numbers = [int(part) for part in name.split(".") if part.isdigit()]
    if len(numbers) != 1:
        raise UnsupportedModelError(
            f"the name of a layer's module holds one number, the layer's; {name!r} holds {len(numbers)}. "
            "This model cannot be captured yet"
        )
    return numbers[0]


def _one_each_layer(found: list[GatedFFN], model: torch.nn.Module, decoder_layers: int) -> list[GatedFFN]:
    by_layer: defaultdict[int, list[GatedFFN]] = defaultdict(list)
    for ffn in found:
        by_layer[ffn.layer_id].append(ffn)
    missing = sorted(set(range(decoder_layers)) - set(by_layer))
    if missing:
        raise UnsupportedModelError(
            f"capture needs a gated FFN in each of the {decoder_layers} decoder layers; {type(model).__name__} has "
            f"none in layers {_short(missing)}. Models without a gate (OPT, GPT-2, BLOOM, Phi-2) are not captured yet"
        )
    if extra := sorted(set(by_layer) - set(range(decoder_layers))):
        raise UnsupportedModelError(
            f"gated FFNs belong to the {decoder_layers} decoder layers; {type(model).__name__} has some in layers "
            f"{_short(extra)}, which are of another part. This model cannot be captured yet"
        )
    if several := sorted(layer for layer, ffns in by_layer.items() if len(ffns) > 1):
        raise UnsupportedModelError(
            f"capture needs one gated FFN a layer; {type(model).__name__} has several in layers {_short(several)}"
        )
    ordered = [by_layer[layer][0] for layer in sorted(by_layer)]
    if len(widths := {ffn.neurons for ffn in ordered}) > 1:
        raise UnsupportedModelError(f"capture needs layers of one width; this model has widths {sorted(widths)}")
    if len(rules := {ffn.rule for ffn in ordered}) > 1:
        raise UnsupportedModelError(f"capture needs one activation; this model has {sorted(map(str, rules))}")
    return ordered


def _short(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return f"{shown}, …" if len(numbers) > 8 else shown
