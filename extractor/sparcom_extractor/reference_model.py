"""A Hugging Face transformers model whose gates and routers are watched while it runs one prompt.

It shares nothing with the capture: another implementation of the model, one prompt at a time, no KV cache, the gate
taken where transformers computes it. Routed experts run in transformers' eager implementation, which calls the
activation function once for each expert that was chosen, in the order of ids, with the gates of its tokens: those
inputs are kept. A caller may have a router follow another choice (`Follow`): what comes after then rests on it.

Modules are found by structure: a dense or shared FFN has a projection called as in GATE_NAMES, routed experts hold all
their gate projections in one parameter, and the router is the module `gate` beside them. Knows no archive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparcom_data.errors import InvalidInputError, UnsupportedModelError
from sparcom_data.metadata import MoeInfo
from sparcom_extractor.capture.discover import layer_number
from sparcom_extractor.reference_choice import Groups

FUSED_NAME = "gate_up_proj"
GATE_NAMES = ("gate_proj", FUSED_NAME)


@dataclass(frozen=True, slots=True)
class Gates:
    """One gated FFN over a prompt of T tokens.

    inputs: (T, hidden), of the gate projection; gate: (T, neurons); weight: (neurons, hidden).
    """

    inputs: torch.Tensor
    gate: torch.Tensor
    weight: torch.Tensor


@dataclass(frozen=True, slots=True)
class Choice:
    """What a router chose for a prompt of T tokens.

    scores: float32 (T, experts), softmax of its logits; expert: int64 (T, choices); weight: float32 (T, choices), as
    the experts' outputs are multiplied by; groups: where the choice is by group.
    """

    scores: NDArray[np.float32]
    expert: NDArray[np.int64]
    weight: NDArray[np.float32]
    groups: Groups | None = None


@dataclass(frozen=True, slots=True)
class Routed:
    """The routed experts of one layer over a prompt of T tokens.

    choice: what the experts ran on; inputs: (T, hidden), of router and experts; gate: (T, choices, neurons), those of
    the experts chosen; weight: (experts, neurons, hidden); router: (experts, hidden), its weights.
    """

    choice: Choice
    inputs: torch.Tensor
    gate: torch.Tensor
    weight: torch.Tensor
    router: torch.Tensor


@dataclass(frozen=True, slots=True)
class Run:
    """All that was watched, in the order of the archive's layer axes; `shared` is empty without shared experts."""

    dense: list[Gates]
    routed: list[Routed]
    shared: list[Gates]


Follow = Callable[[int, Choice], Choice]
"""Given a mixture's place on the layer axis and what its router chose: what the experts are to run on."""


class ReferenceModel:
    """A transformers model to compare with.

    Args:
        model: its folder.
        dtype: float32, bfloat16 or float16.
        layer_ids: decoder layers with a dense FFN.
        moe: its mixtures of experts, where it has any.
    """

    def __init__(self, model: str, dtype: str, layer_ids: list[int], moe: MoeInfo | None = None) -> None:
        self._model = _load(model, dtype, eager_experts=moe is not None)
        self._layer_ids, self._moe_ids = layer_ids, moe.layer_ids if moe else []
        self._mixtures = _mixtures(self._model)
        mixed = tuple(f"{mixture.name}." for mixture in self._mixtures.values())
        gates = _gate_projections(self._model)
        self._dense = {gate.layer: gate for gate in gates if not gate.name.startswith(mixed)}
        self._shared = {gate.layer: gate for gate in gates if gate.name.startswith(mixed)}
        self._require("a dense gate projection", layer_ids, self._dense)
        self._require("routed experts", self._moe_ids, self._mixtures)
        self._shared_ids = self._moe_ids if moe and moe.shared_neurons else []
        self._require("a shared expert", self._shared_ids, self._shared)

    def _require(self, what: str, layer_ids: list[int], found: dict[int, Any]) -> None:
        if missing := sorted(set(layer_ids) - set(found)):
            raise UnsupportedModelError(
                f"the reference has {what} in every layer where the archive has one; transformers' "
                f"{type(self._model).__name__} has none that is known ({' or '.join(GATE_NAMES)}) in layers {missing}"
            )

    @torch.inference_mode()
    def run(self, ids: NDArray[np.int32], follow: Follow | None = None) -> Run:
        """One prompt, int32 (T,), through the model; `follow` is asked at every mixture, in layer order."""
        with ExitStack() as stack:
            dense = {layer: stack.enter_context(self._dense[layer].watched()) for layer in self._layer_ids}
            shared = {layer: stack.enter_context(self._shared[layer].watched()) for layer in self._shared_ids}
            routed = [
                stack.enter_context(self._mixtures[layer].watched(place, follow))
                for place, layer in enumerate(self._moe_ids)
            ]
            self._model(input_ids=torch.from_numpy(ids.astype(np.int64))[None], use_cache=False)
        return Run(
            dense=[self._dense[layer].gates(*dense[layer]) for layer in self._layer_ids],
            routed=[self._mixtures[layer].routed(seen) for layer, seen in zip(self._moe_ids, routed, strict=True)],
            shared=[self._shared[layer].gates(*shared[layer]) for layer in self._shared_ids],
        )

    def gates(self, ids: NDArray[np.int32]) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """For each dense layer: input (T, hidden), gate (T, neurons) and weights (neurons, hidden)."""
        for gates in self.run(ids).dense:
            yield gates.inputs, gates.gate, gates.weight


def _load(model: str, dtype: str, *, eager_experts: bool) -> Any:
    from transformers import AutoModelForCausalLM

    options = {"experts_implementation": "eager"} if eager_experts else {}
    try:
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype), **options)
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            [
                f"the reference model {model!r} cannot be loaded: {str(error).splitlines()[0]}. "
                "Give its folder with --model"
            ]
        ) from error
    return loaded.eval()


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
        neurons = output.shape[-1] // (2 if self.name.endswith(FUSED_NAME) else 1)
        flat = output.flatten(0, -2)[:, :neurons]
        return Gates(inputs.flatten(0, -2), flat, self.projection.weight.detach()[:neurons])


def _gate_projections(model: torch.nn.Module) -> list[_Gate]:
    named = model.named_modules()
    return [_Gate(name, layer_number(name), module) for name, module in named if name.rpartition(".")[2] in GATE_NAMES]


@dataclass(slots=True)
class _Seen:
    """What one run of a mixture left: the choice that its experts ran on, their input, and each expert's gates."""

    logits: torch.Tensor | None = None
    choice: Choice | None = None
    inputs: torch.Tensor | None = None
    calls: list[torch.Tensor] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Mixture:
    """A block with routed experts and the router beside them."""

    name: str
    router: Any
    experts: Any

    @property
    def groups(self) -> Groups | None:
        if getattr(self.router, "topk_method", None) != "group_limited_greedy":
            return None
        return Groups(int(self.router.num_group), int(self.router.topk_group))

    @contextmanager
    def watched(self, place: int, follow: Follow | None) -> Iterator[_Seen]:
        seen = _Seen()

        def routed(_module: Any, _inputs: Any, output: tuple[torch.Tensor, ...]) -> None:
            seen.logits = output[0]

        def chosen(_module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            hidden, expert, weight = inputs
            seen.inputs, seen.choice = hidden, self._choice(seen.logits, expert, weight)
            if follow is None:
                return inputs
            seen.choice = follow(place, seen.choice)
            return hidden, torch.from_numpy(seen.choice.expert), torch.from_numpy(seen.choice.weight).to(weight.dtype)

        def activated(_module: Any, inputs: tuple[torch.Tensor]) -> None:
            seen.calls.append(inputs[0])

        handles = [
            self.router.register_forward_hook(routed),
            self.experts.register_forward_pre_hook(chosen),
            self.experts.act_fn.register_forward_pre_hook(activated),
        ]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def _choice(self, logits: Any, expert: torch.Tensor, weight: torch.Tensor) -> Choice:
        scores = logits.float().softmax(dim=-1).flatten(0, -2)
        return Choice(scores.numpy(), expert.long().numpy(), weight.float().numpy(), self.groups)

    def routed(self, seen: _Seen) -> Routed:
        assert seen.choice is not None and seen.inputs is not None  # noqa: S101, PT018  (the model ran)
        neurons = self.experts.down_proj.shape[2]
        expert = torch.from_numpy(seen.choice.expert)
        gate = seen.inputs.new_empty((*expert.shape, neurons))
        called = np.unique(seen.choice.expert).tolist()
        if len(called) != len(seen.calls):
            raise UnsupportedModelError(
                "transformers' eager experts call the activation once for each expert that was chosen; "
                f"{type(self.experts).__name__} called it {len(seen.calls)} times for {len(called)} experts"
            )
        for number, values in zip(called, seen.calls, strict=True):
            places, tokens = torch.where((expert == number).T)  # the order in which transformers gathers the tokens
            gate[tokens, places] = values
        weight, router = self.experts.gate_up_proj.detach()[:, :neurons], self.router.weight.detach()
        return Routed(seen.choice, seen.inputs, gate, weight, router)


def _mixtures(model: torch.nn.Module) -> dict[int, _Mixture]:
    """By layer. Experts hold all gate and up projections in one parameter, (experts, 2 * neurons, hidden)."""
    found: dict[int, _Mixture] = {}
    modules = dict(model.named_modules())
    for name, module in modules.items():
        fused, down = (getattr(module, attribute, None) for attribute in (FUSED_NAME, "down_proj"))
        if not isinstance(fused, torch.nn.Parameter) or not isinstance(down, torch.nn.Parameter):
            continue
        block = name.rpartition(".")[0]
        router = modules.get(f"{block}.gate")
        if fused.shape[1] == 2 * down.shape[2] and router is not None:
            found[layer_number(name)] = _Mixture(block, router, module)
    return found
