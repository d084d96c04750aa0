"""A Hugging Face transformers model whose gates and routers are watched while it runs one prompt.

It shares nothing with the capture: another implementation of the model, one prompt at a time, no KV cache, the gate
taken where transformers computes it. A caller may decide between tied experts (`Follow`); the layers after it then rest
on that decision. A dense or shared FFN has a projection called as in GATE_NAMES or FUSED_NAMES; MoE layers are found by
structure (`reference_moe`). It does not depend on an archive.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparcom_data.errors import InvalidInputError, UnsupportedModelError
from sparcom_data.schema.metadata import MoeInfo
from sparcom_extractor.capture.discovery.activations import layer_number
from sparcom_verification.reference.moe import Follow, Routed, find_moe_blocks

GATE_NAMES = ("gate_proj", "w1")
FUSED_NAMES = ("gate_up_proj", "input_linear")  # gate first
# Options of configurations whose attention transformers' sdpa implementation does not compute: it drops soft-capping
# (Gemma-2) and learned sinks (gpt-oss) without a word.
EAGER_OPTIONS = ("softcap", "sink")
PROBE_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Gates:
    """One gated FFN over a prompt of T tokens.

    inputs: (T, hidden), of the gate projection; gate: (T, neurons); weight: (neurons, hidden).
    """

    inputs: torch.Tensor
    gate: torch.Tensor
    weight: torch.Tensor


@dataclass(frozen=True, slots=True)
class Run:
    """Records of one prompt, in the order of the archive's layer axes; `shared` is empty without shared experts."""

    dense: list[Gates]
    routed: list[Routed]
    shared: list[Gates]


class ReferenceModel:
    """A transformers model to compare with.

    Args:
        model: its folder.
        dtype: float32, bfloat16 or float16.
        layer_ids: decoder layers with a dense FFN.
        moe: its MoE layers, where it has any.

    Attributes:
        unjudged: MoE layers whose ties cannot be judged: the experts that run are not the top-k of scores that the
            router shows. Every difference there is a finding.
    """

    def __init__(self, model: str, dtype: str, layer_ids: list[int], moe: MoeInfo | None = None) -> None:
        self._model = _load(model, dtype, eager_experts=moe is not None)
        self._layer_ids, self._moe_ids = layer_ids, moe.layer_ids if moe else []
        self._blocks = find_moe_blocks(self._model)
        gates = _gate_projections(self._model)
        self._dense = self._by_layer([gate for gate in gates if gate.layer not in self._blocks])
        self._shared = self._by_layer([gate for gate in gates if gate.layer in self._blocks])
        self._require("a dense gate projection", layer_ids, self._dense)
        self._require("routed experts", self._moe_ids, self._blocks)
        self._shared_ids = self._moe_ids if moe and moe.shared_neurons else []
        self._require("a shared expert", self._shared_ids, self._shared)
        self._probe()

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of the text model."""
        return dict(self._model.config.get_text_config().to_dict())

    @property
    def unjudged(self) -> list[int]:
        """MoE layers whose ties cannot be judged."""
        return [layer for layer in self._moe_ids if not self._blocks[layer].judged]

    def _by_layer(self, gates: list[_Gate]) -> dict[int, _Gate]:
        found: dict[int, _Gate] = {}
        for gate in gates:
            if (other := found.setdefault(gate.layer, gate)) is not gate:
                raise UnsupportedModelError(
                    f"the reference knows one gate projection per layer; transformers' {type(self._model).__name__} "
                    f"has {other.name} and {gate.name}. Leave out --reference"
                )
        return found

    def _require(self, what: str, layer_ids: list[int], found: dict[int, Any]) -> None:
        if missing := sorted(set(layer_ids) - set(found)):
            raise UnsupportedModelError(
                f"the reference needs {what} in every layer where the archive has one; transformers' "
                f"{type(self._model).__name__} has none that is known ({', '.join((*GATE_NAMES, *FUSED_NAMES))}) in "
                f"layers {missing}. Leave out --reference"
            )

    def _probe(self) -> None:
        """Run a few tokens to see in which MoE layers the experts that run are the top-k of the scores seen."""
        if not self._moe_ids:
            return
        ids = np.arange(min(PROBE_TOKENS, self._model.get_input_embeddings().weight.shape[0]), dtype=np.int32)
        with torch.inference_mode(), ExitStack() as stack:
            seen = {layer: stack.enter_context(self._blocks[layer].watched(0, None)) for layer in self._moe_ids}
            self._call(ids)
        for layer, records in seen.items():
            self._blocks[layer].judged = self._blocks[layer].consistent(records)

    def _call(self, ids: NDArray[np.int32]) -> None:
        self._model(input_ids=torch.from_numpy(ids.astype(np.int64))[None], use_cache=False)

    @torch.inference_mode()
    def run(self, ids: NDArray[np.int32], follow: Follow | None = None) -> Run:
        """Run one prompt, int32 (T,); `follow` is asked at every MoE layer."""
        with ExitStack() as stack:
            dense = {layer: stack.enter_context(self._dense[layer].watched()) for layer in self._layer_ids}
            shared = {layer: stack.enter_context(self._shared[layer].watched()) for layer in self._shared_ids}
            routed = [
                stack.enter_context(self._blocks[layer].watched(place, follow))
                for place, layer in enumerate(self._moe_ids)
            ]
            self._call(ids)
        return Run(
            dense=[self._dense[layer].gates(*dense[layer]) for layer in self._layer_ids],
            routed=[self._blocks[layer].routed(seen) for layer, seen in zip(self._moe_ids, routed, strict=True)],
            shared=[self._shared[layer].gates(*shared[layer]) for layer in self._shared_ids],
        )

    def gates(self, ids: NDArray[np.int32]) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """For each dense layer: input (T, hidden), gate (T, neurons) and weights (neurons, hidden)."""
        for gates in self.run(ids).dense:
            yield gates.inputs, gates.gate, gates.weight


def _load(model: str, dtype: str, *, eager_experts: bool) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    options = {"experts_implementation": "eager"} if eager_experts else {}
    try:
        if needs_eager_attention(AutoConfig.from_pretrained(model).get_text_config().to_dict()):
            options["attn_implementation"] = "eager"
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype), **options)
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            [
                f"the reference model {model!r} cannot be loaded: {str(error).splitlines()[0]}. "
                "Give its folder with --model"
            ]
        ) from error
    return loaded.eval()


def needs_eager_attention(config: dict[str, Any]) -> bool:
    """Return whether a configuration has attention that transformers' sdpa implementation does not compute."""
    return any(value for name, value in config.items() if any(option in name for option in EAGER_OPTIONS))


@dataclass(frozen=True, slots=True)
class _Gate:
    """The linear layer that computes a gate, alone or fused with up (gate first)."""

    name: str
    layer: int
    projection: Any

    @contextmanager
    def watched(self) -> Iterator[list[torch.Tensor]]:
        """Input and output of one call."""
        seen: list[torch.Tensor] = []

        def hook(_module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            seen.extend((inputs[0], output))

        handle = self.projection.register_forward_hook(hook)
        try:
            yield seen
        finally:
            handle.remove()

    def gates(self, inputs: torch.Tensor, output: torch.Tensor) -> Gates:
        neurons = output.shape[-1] // (2 if self.name.endswith(FUSED_NAMES) else 1)
        flat = output.flatten(0, -2)[:, :neurons]
        return Gates(inputs.flatten(0, -2), flat, self.projection.weight.detach()[:neurons])


def _gate_projections(model: torch.nn.Module) -> list[_Gate]:
    """Return the linear layers of FFNs that compute gates; some attention layers have a gate_proj of their own."""
    names = {*GATE_NAMES, *FUSED_NAMES}
    return [
        _Gate(name, layer_number(name), module)
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in names and isinstance(module, torch.nn.Linear) and "attn" not in name
    ]
