"""Find the gated FFN or the experts of every decoder layer by structure, or report why that fails.

A gated FFN has a gated activation, a fused gate and up projection to 2·intermediate_size, and a down projection from
intermediate_size. Module names matter only for the layer number, which vLLM puts into the names of all modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sparcom_data.errors import UnsupportedModelError
from sparcom_extractor.capture.discovery.activations import GATED, ActivationSpec, GatedFFN, layer_number, spec_of
from sparcom_extractor.capture.discovery.moe import MoeLayer, find_moe_layers
from sparcom_extractor.vllm_surface.activations import linear_layers


@dataclass(frozen=True, slots=True)
class Findings:
    """Layers of a model to capture, in layer order."""

    dense: list[GatedFFN]
    moe: list[MoeLayer]

    @property
    def layers(self) -> list[GatedFFN | MoeLayer]:
        """All layers, dense ones first."""
        return [*self.dense, *self.moe]

    @property
    def shared(self) -> list[GatedFFN]:
        """Shared experts."""
        return [layer.shared for layer in self.moe if layer.shared is not None]


def find_captured(model: torch.nn.Module, decoder_layers: range) -> Findings:
    """Find all gated FFNs and MoE layers of a loaded vLLM model; refuse one that cannot be captured.
    decoder_layers: layer numbers on this pipeline stage."""
    ffns = [
        _describe(name, module, attribute, spec)
        for name, module in model.named_modules()
        for attribute, child in module.named_children()
        if (spec := spec_of(child)) is not None
    ]
    moe = find_moe_layers(model, ffns)
    shared = {layer.shared.name for layer in moe if layer.shared is not None}
    dense = sorted((ffn for ffn in ffns if ffn.name not in shared), key=lambda ffn: ffn.layer_id)
    found = Findings(dense, moe)
    _check_layers(model, [layer.layer_id for layer in found.layers], decoder_layers)
    _check_alike(dense)
    return found


def _describe(name: str, module: torch.nn.Module, attribute: str, spec: ActivationSpec) -> GatedFFN:
    linears = linear_layers(module)
    fused = {(item.output_size, item.input_size) for item in linears if hasattr(item, "output_size")}
    down = [item for item in linears if (2 * item.input_size, getattr(item, "output_size", -1)) in fused]
    if len(down) != 1:
        raise UnsupportedModelError(
            f"a gated FFN needs a gate_up projection of twice the width of its down projection; {name} "
            f"({type(module).__name__}) has {len(linears)} linear layers that do not match. This model cannot be "
            "captured yet"
        )
    size = int(down[0].input_size)
    per_partition = int(getattr(down[0], "input_size_per_partition", size))
    return GatedFFN(layer_number(name), name, module, attribute, spec, size, per_partition)


def _check_layers(model: torch.nn.Module, layers: list[int], expected: range) -> None:
    missing, extra = sorted(set(expected) - set(layers)), sorted(set(layers) - set(expected))
    several, name = sorted({layer for layer in layers if layers.count(layer) > 1}), type(model).__name__
    if missing and (shared := _shared_module(model, missing)):
        raise UnsupportedModelError(
            f"capture needs a separate FFN in each decoder layer; {name} shares {shared} among layers, so one layer "
            "runs several times per token. This model cannot be captured yet"
        )
    if missing:
        hint = ". It runs in vLLM's Transformers backend, which exposes gates only if it merges gate and up projections"
        raise UnsupportedModelError(
            f"capture needs a gated FFN in each of the {len(expected)} decoder layers; {name} has none in layers "
            f"{_short(missing)}. Models without a gate (OPT, GPT-2, BLOOM, Phi-2) and hybrids with layers that have "
            f"no FFN are not captured yet{hint * name.startswith('Transformers')}"
        )
    if extra:
        raise UnsupportedModelError(
            f"gated FFNs must belong to the {len(expected)} decoder layers; {name} has some in layers {_short(extra)}, "
            "outside of them. This model cannot be captured yet"
        )
    if several:
        raise UnsupportedModelError(
            f"capture needs one gated FFN per layer; {name} has several in layers {_short(several)}. Use another model"
        )


def _shared_module(model: torch.nn.Module, layers: Sequence[int]) -> str:
    """Return the first gated module that another layer uses too, or "". Layers may share an activation alone."""
    first: dict[int, str] = {}
    numbers = {str(number) for number in layers}
    for name, module in model.named_modules(remove_duplicate=False):
        own = first.setdefault(id(module), name)
        gates = type(module).__name__ not in GATED and any(type(part).__name__ in GATED for part in module.modules())
        if own != name and gates and numbers & set(name.split(".")):
            return f"{own} as {name}"
    return ""


def _check_alike(ffns: Sequence[GatedFFN]) -> None:
    if len(widths := {ffn.intermediate_size for ffn in ffns}) > 1:
        raise UnsupportedModelError(f"all dense layers must have one width; this model has widths {sorted(widths)}")
    if len(specs := sorted({str(ffn.spec) for ffn in ffns})) > 1:
        raise UnsupportedModelError(f"all dense layers must have one activation; this model has {specs}")


def _short(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + ", …" * (len(numbers) > 8)
