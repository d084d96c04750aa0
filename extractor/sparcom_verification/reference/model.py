"""Run prompts through a Hugging Face transformers model and record its gates and routers.

The reference is independent of capture: another implementation of the model, one prompt at a time, no KV cache, and
gates recorded where transformers computes them. A caller may decide between tied experts (`Follow`); later layers then
continue from that decision. Dense and shared FFNs are found by GATE_NAMES and FUSED_NAMES, MoE layers by structure.
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
from sparcom_verification.reference.bits import Gates
from sparcom_verification.reference.moe import Follow, RoutedExperts, find_moe_blocks, layer_of

GATE_NAMES = ("gate_proj", "w1")
FUSED_NAMES = ("gate_up_proj", "input_linear")  # gate first
# Parts of the names of options that transformers' sdpa attention silently ignores: soft-capping (Gemma-2) and learned
# sinks (gpt-oss).
EAGER_OPTIONS = ("softcap", "sink")
PROBE_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Run:
    """Records of one prompt in the order of the archive's layer axes; `shared` is empty without shared experts."""

    dense: list[Gates]
    routed: list[RoutedExperts]
    shared: list[Gates]


class ReferenceModel:
    """A transformers model to compare with.

    Args:
        model: folder of the model.
        dtype: float32, bfloat16 or float16.
        layer_ids: decoder layers with a dense FFN.
        moe: MoE layers, if any.
    """

    def __init__(self, model: str, dtype: str, layer_ids: list[int], moe: MoeInfo | None = None) -> None:
        self._model = _load(model, dtype, eager_experts=moe is not None)
        self._layer_ids, self._moe_ids = layer_ids, moe.layer_ids if moe else []
        self._shared_ids = self._moe_ids if moe and moe.shared_neurons else []
        self._blocks = find_moe_blocks(self._model)
        self._dense: dict[int, tuple[str, torch.nn.Linear]] = {}
        self._shared: dict[int, tuple[str, torch.nn.Linear]] = {}
        for name, module in self._model.named_modules():
            # Some attention layers have a gate_proj of their own.
            known = name.rpartition(".")[2] in (*GATE_NAMES, *FUSED_NAMES) and "attn" not in name
            if known and isinstance(module, torch.nn.Linear):
                found = self._shared if (layer := layer_of(name)) in self._blocks else self._dense
                if found.setdefault(layer, (name, module))[1] is not module:
                    raise UnsupportedModelError(
                        "the reference supports one gate projection per layer; transformers' "
                        f"{type(self._model).__name__} has {found[layer][0]} and {name}. Leave out --reference"
                    )
        self._require("a dense gate projection", layer_ids, self._dense)
        self._require("routed experts", self._moe_ids, self._blocks)
        self._require("a shared expert", self._shared_ids, self._shared)
        if self._moe_ids:  # the first run shows which routers expose their scores
            self.run(np.arange(min(PROBE_TOKENS, self._model.get_input_embeddings().num_embeddings), dtype=np.int32))

    @property
    def config(self) -> dict[str, Any]:
        """Configuration of the text model."""
        return dict(self._model.config.get_text_config().to_dict())

    @property
    def unjudged(self) -> list[int]:
        """MoE layers without visible scores. Ties cannot be judged there; every difference is a finding."""
        return [layer for layer in self._moe_ids if not self._blocks[layer].shows_scores]

    def _require(self, part: str, layer_ids: list[int], found: dict[int, Any]) -> None:
        if missing := sorted(set(layer_ids) - set(found)):
            raise UnsupportedModelError(
                f"the reference needs {part} in every layer where the archive has one; transformers' "
                f"{type(self._model).__name__} has none of a known name ({', '.join((*GATE_NAMES, *FUSED_NAMES))}) in "
                f"layers {missing}. Leave out --reference"
            )

    @torch.inference_mode()
    def run(self, ids: NDArray[np.int32], follow: Follow | None = None) -> Run:
        """Run one prompt, int32 (T,), and call `follow` at every MoE layer."""
        with ExitStack() as stack:
            dense = [stack.enter_context(recorded_gates(*self._dense[layer])) for layer in self._layer_ids]
            shared = [stack.enter_context(recorded_gates(*self._shared[layer])) for layer in self._shared_ids]
            blocks = [self._blocks[layer] for layer in self._moe_ids]
            records = [stack.enter_context(block.recorded(index, follow)) for index, block in enumerate(blocks)]
            self._model(input_ids=torch.from_numpy(ids.astype(np.int64))[None], use_cache=False)
        routed = [block.routed(record) for block, record in zip(blocks, records, strict=True)]
        return Run([gates for (gates,) in dense], routed, [gates for (gates,) in shared])  # each is called once


def _load(model: str, dtype: str, *, eager_experts: bool) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    options = {"experts_implementation": "eager"} if eager_experts else {}
    try:
        if needs_eager_attention(AutoConfig.from_pretrained(model).get_text_config().to_dict()):
            options["attn_implementation"] = "eager"
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype), **options)
    except (OSError, ValueError) as error:
        problem = f"the reference model {model!r} cannot be loaded: {str(error).splitlines()[0]}"
        raise InvalidInputError(f"{problem}. Give its folder with --model") from error
    return loaded.eval()


def needs_eager_attention(config: dict[str, Any]) -> bool:
    """Return whether transformers' sdpa attention is wrong for this configuration."""
    return any(value for name, value in config.items() if any(option in name for option in EAGER_OPTIONS))


@contextmanager
def recorded_gates(name: str, projection: torch.nn.Linear) -> Iterator[list[Gates]]:
    """Record the gates of every call of a gate projection, alone or fused with up (gate first)."""
    calls: list[Gates] = []

    def hook(_module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        neurons = output.shape[-1] // (2 if name.endswith(FUSED_NAMES) else 1)
        gate = output.flatten(0, -2)[:, :neurons]
        calls.append(Gates(inputs[0].flatten(0, -2), gate, projection.weight.detach()[:neurons]))

    handle = projection.register_forward_hook(hook)
    try:
        yield calls
    finally:
        handle.remove()
