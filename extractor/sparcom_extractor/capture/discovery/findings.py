"""Find the gated FFN or the experts of every decoder layer by structure, or say why it cannot be done.

An FFN is a module that holds a gated activation (see `activations`) beside one linear layer that doubles the width
(gate and up, fused) and one that takes the single width back. Names of modules and model classes play no
part, but for the number of the layer, which vLLM writes into module names for all its models. Layers of experts are
found by `moe.py`; an FFN that such a layer calls its shared experts belongs to it, any other is dense.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sparcom_data.errors import UnsupportedModelError
from sparcom_extractor.capture.discovery.activations import GATED, GatedActivation, rule_of
from sparcom_extractor.capture.discovery.ffn import GatedFFN, layer_number
from sparcom_extractor.capture.discovery.moe import MoeLayer, find_moe_layers

__all__ = ["Findings", "GatedFFN", "MoeLayer", "find_captured", "find_gated_ffns", "layer_number"]


@dataclass(frozen=True, slots=True)
class Findings:
    """What of a model is captured, in layer order: its dense FFNs, and its layers of experts."""

    dense: list[GatedFFN]
    moe: list[MoeLayer]

    @property
    def shared(self) -> list[GatedFFN]:
        """The shared experts of the layers that have them."""
        return [layer.shared for layer in self.moe if layer.shared is not None]


def find_captured(model: torch.nn.Module, decoder_layers: int | range) -> Findings:
    """All gated FFNs and layers of experts of a model.

    Args:
        model: a loaded vLLM model.
        decoder_layers: how many decoder layers its configuration has, or which of them are here; each must have exactly
            one of the two.

    Raises:
        UnsupportedModelError: the model has none, lacks some, has several in a layer, has layers that differ, or gates
            in a way that the sign of the gate does not tell.
    """
    ffns = _all_gated_ffns(model)
    moe = find_moe_layers(model, ffns)
    shared = {layer.shared.name for layer in moe if layer.shared is not None}
    dense = [ffn for ffn in ffns if ffn.name not in shared]
    expected = decoder_layers if isinstance(decoder_layers, range) else range(decoder_layers)
    _refuse_gaps(model, [ffn.layer_id for ffn in dense] + [layer.layer_id for layer in moe], expected)
    dense.sort(key=lambda ffn: ffn.layer_id)
    _refuse_differences("dense layers", dense)
    return Findings(dense, moe)


def find_gated_ffns(model: torch.nn.Module, decoder_layers: int) -> list[GatedFFN]:
    """All gated FFNs of a dense model, in layer order; raises as `find_captured` does."""
    return find_captured(model, decoder_layers).dense


def _all_gated_ffns(model: torch.nn.Module) -> list[GatedFFN]:
    found: list[GatedFFN] = []
    for name, module in model.named_modules():
        for attribute, child in module.named_children():
            rule = rule_of(child)
            if rule is not None:
                found.append(_describe(name, module, attribute, rule))
    return found


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
    """Whether `linear` takes in half of what one of the others gives out, and gives out what that takes in: the down
    projection."""
    width = 2 * int(linear.input_size)  # type: ignore[arg-type]
    return any(
        getattr(other, "output_size", -1) == width and other.input_size == linear.output_size
        for other in others
        if other is not linear
    )


def _refuse_gaps(model: torch.nn.Module, layers: list[int], expected: range) -> None:
    """Raise where a decoder layer has nothing to capture or more than one thing, or another part has something."""
    missing = sorted(set(expected) - set(layers))
    if missing and (shared := _shared_modules(model, missing)):
        raise UnsupportedModelError(
            f"capture needs an FFN of its own in each decoder layer; {type(model).__name__} shares {shared} among "
            "layers, so that a layer runs several times per token. This model cannot be captured yet"
        )
    if missing:
        backend = type(model).__name__.startswith("Transformers")
        raise UnsupportedModelError(
            f"capture needs a gated FFN in each of the {len(expected)} decoder layers; {type(model).__name__} has "
            f"none in layers {_short(missing)}. Models without a gate (OPT, GPT-2, BLOOM, Phi-2) and hybrids of which "
            "some layers have no FFN are not captured yet"
            + (
                ". vLLM runs this model by its Transformers backend, which shows a gate only where it merges a gate "
                "and an up projection that are apart" * backend
            )
        )
    if extra := sorted(set(layers) - set(expected)):
        raise UnsupportedModelError(
            f"gated FFNs belong to the {len(expected)} decoder layers; {type(model).__name__} has some in layers "
            f"{_short(extra)}, which are of another part. This model cannot be captured yet"
        )
    if several := sorted({layer for layer in layers if layers.count(layer) > 1}):
        raise UnsupportedModelError(
            f"capture needs one gated FFN a layer; {type(model).__name__} has several in layers {_short(several)}"
        )


def _shared_modules(model: torch.nn.Module, layers: Sequence[int]) -> str:
    """The first module with a gate in these layers that is a module of another layer too, or an empty string.

    An activation alone may be shared: each FFN gets one of its own.
    """
    first: dict[int, str] = {}
    numbers = {str(number) for number in layers}
    for name, module in model.named_modules(remove_duplicate=False):
        own = first.setdefault(id(module), name)
        gates = type(module).__name__ not in GATED and any(type(part).__name__ in GATED for part in module.modules())
        if own != name and gates and numbers & set(name.split(".")):
            return f"{own} as {name}"
    return ""


def _refuse_differences(what: str, ffns: Sequence[GatedFFN]) -> None:
    """Raise where layers that share an array differ in width or activation."""
    if len(widths := {ffn.neurons for ffn in ffns}) > 1:
        raise UnsupportedModelError(f"capture needs {what} of one width; this model has widths {sorted(widths)}")
    if len(rules := {ffn.rule for ffn in ffns}) > 1:
        raise UnsupportedModelError(f"capture needs {what} of one activation; this model has {sorted(map(str, rules))}")


def _short(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return f"{shown}, …" if len(numbers) > 8 else shown
