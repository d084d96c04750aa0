"""One MoE layer of a transformers model, watched while a prompt runs.

Experts are found by structure: a module that holds the gate and up projections of all experts in one parameter, beside
one for the down projections. The module that holds it is the MoE block; its router is seen at work (`Ranking`).

Two layouts are known. In most models the experts get the hidden states, the top-k ids and their weights; transformers'
eager implementation calls the activation once per expert that was picked, in the order of ids. In Llama-4 every expert
gets every token, scaled by the router's score (0 for experts not picked), and the activation is called once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparcom_data.errors import UnsupportedModelError
from sparcom_extractor.capture.discovery.activations import layer_number
from sparcom_verification.reference.choice import Choice
from sparcom_verification.reference.ranking import Ranking

Experts = NDArray[np.int64]
Follow = Callable[[int, Choice], Experts]
"""Given the index of an MoE layer on the layer axis and its routing: the experts to run, int64 (T, top_k)."""


@dataclass(frozen=True, slots=True)
class Routed:
    """The routed experts of one MoE layer over a prompt of T tokens.

    expert: int64 (T, top_k), those that ran. topk_weights: float32 (T, top_k). inputs: (T, hidden). gate:
    (T, top_k, neurons). weight: (experts, neurons, hidden), the gate projections. router: (experts, hidden), None where
    it was not found. scaled: the experts' inputs were multiplied by `topk_weights`.
    """

    expert: Experts
    topk_weights: NDArray[np.float32]
    inputs: torch.Tensor
    gate: torch.Tensor
    weight: torch.Tensor
    router: torch.Tensor | None
    scaled: bool

    def expert_inputs(self, token: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """Return the inputs of experts, (n, hidden), for n pairs of token and place in the top-k, int64 (n,) each."""
        inputs = self.inputs[token]
        return inputs * torch.from_numpy(self.topk_weights)[token, place, None] if self.scaled else inputs


@dataclass(slots=True)
class Seen:
    """Records of one run of an MoE layer.

    choice: what the router ranked, None where that was not seen. block_inputs: (T, hidden). arguments: those of the
    experts. calls: the inputs of their activation function.
    """

    choice: Choice | None = None
    block_inputs: torch.Tensor | None = None
    arguments: tuple[torch.Tensor, ...] = ()
    calls: list[torch.Tensor] = field(default_factory=list)


class _Recorder(torch.nn.Module):
    """An activation function that keeps its inputs."""

    def __init__(self, activation: Any, calls: list[torch.Tensor]) -> None:
        super().__init__()
        self._activation, self._calls = activation, calls

    def forward(self, gate: torch.Tensor) -> Any:
        self._calls.append(gate)
        return self._activation(gate)


@dataclass(slots=True)
class MoeBlock:
    """An MoE block. judged: whether ties can be judged; see `ReferenceModel`."""

    name: str
    block: Any
    experts: Any
    judged: bool = False

    @property
    def _transposed(self) -> bool:
        """The projections are (experts, hidden, 2 * neurons) and (experts, neurons, hidden)."""
        return bool(self.experts.gate_up_proj.shape[1] == self.experts.down_proj.shape[2])

    @property
    def _gate_weight(self) -> torch.Tensor:
        """Gate projections, (experts, neurons, hidden)."""
        fused = self.experts.gate_up_proj.detach()
        return torch.Tensor((fused.transpose(1, 2) if self._transposed else fused).chunk(2, dim=1)[0])

    @contextmanager
    def watched(self, place: int, follow: Follow | None) -> Iterator[Seen]:
        """Record one run; `follow` decides between tied experts of the layer at index `place`."""
        seen, forward, activation = Seen(), self.block.forward, self.experts.act_fn

        def decide(choice: Choice) -> Experts:
            seen.choice = choice
            return follow(place, choice) if follow and self.judged else choice.expert

        def run(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            seen.block_inputs = hidden.flatten(0, -2)
            with Ranking(len(self.experts.down_proj), decide):
                return forward(hidden, *args, **kwargs)

        def called(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.arguments = (*args, *kwargs.values())

        handle = self.experts.register_forward_pre_hook(called, with_kwargs=True)
        self.block.forward, self.experts.act_fn = run, _Recorder(activation, seen.calls)
        try:
            yield seen
            if follow and not self.judged:  # counted; without scores nothing is a tie
                follow(place, Choice(self._topk(seen)[0]))
        finally:
            handle.remove()
            del self.block.forward, self.experts.act_fn
            self.experts.act_fn = activation

    def _topk(self, seen: Seen) -> tuple[Experts, NDArray[np.float32]]:
        """Return ids and weights of the experts that ran, (T, top_k) each."""
        if len(seen.arguments) == 3:
            _, expert, weight = seen.arguments
            return expert.long().numpy(), weight.float().numpy()
        if len(seen.arguments) == 1 and seen.block_inputs is not None and seen.choice is not None:
            hidden, scaled = seen.block_inputs.double(), seen.arguments[0].double()
            scores = (scaled.view(-1, *hidden.shape) * hidden).sum(dim=-1).T / hidden.square().sum(dim=-1)[:, None]
            expert = scores.topk(seen.choice.expert.shape[1], dim=-1).indices
            return expert.numpy(), scores.gather(1, expert).float().numpy()
        raise self._unknown(f"are called with {len(seen.arguments)} arguments")

    def consistent(self, seen: Seen) -> bool:
        """Return whether the experts that ran are the top-k of the scores that were seen."""
        return seen.choice is not None and bool((_sorted(self._topk(seen)[0]) == _sorted(seen.choice.expert)).all())

    def routed(self, seen: Seen) -> Routed:
        """Return what was recorded of a run."""
        expert, weights = self._topk(seen)
        weight, scaled = self._gate_weight, len(seen.arguments) == 1
        inputs = seen.block_inputs if scaled else seen.arguments[0]
        assert inputs is not None  # noqa: S101  (the model ran)
        shape, inside = (len(weight), weight.shape[2]), {id(parameter) for parameter in self.experts.parameters()}
        routers = (p.detach() for p in self.block.parameters() if p.shape == shape and id(p) not in inside)
        return Routed(
            expert=expert,
            topk_weights=weights,
            inputs=inputs,
            gate=self._gates(seen.calls, expert, weight.shape[1]),
            weight=weight,
            router=next(routers, None),
            scaled=scaled,
        )

    def _gates(self, calls: list[torch.Tensor], expert: Experts, neurons: int) -> torch.Tensor:
        """Return the gates of the experts that ran, (T, top_k, neurons)."""
        ids = torch.from_numpy(expert)
        if len(calls) == 1 and calls[0].dim() == 3:  # (experts, T, neurons)
            return torch.Tensor(calls[0][ids, torch.arange(len(ids))[:, None]])
        called = np.unique(expert).tolist()
        if len(called) != len(calls):
            raise self._unknown(f"called their activation {len(calls)} times for {len(called)} experts")
        gate = calls[0].new_empty((*ids.shape, neurons))
        for number, values in zip(called, calls, strict=True):
            places, tokens = torch.where((ids == number).T)  # the order in which transformers gathers the tokens
            gate[tokens, places] = values
        return gate

    def _unknown(self, what: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            "the reference knows experts that get hidden states, top-k ids and weights and call their activation once "
            f"per expert, or that run every token; those of {self.name} ({type(self.experts).__name__}) {what}. "
            "Leave out --reference"
        )


def _sorted(expert: Experts) -> Experts:
    return np.sort(expert, axis=1)


def find_moe_blocks(model: torch.nn.Module) -> dict[int, MoeBlock]:
    """Return the MoE blocks of a model by decoder layer.

    Experts hold the parameters gate_up_proj and down_proj: (experts, 2 * neurons, hidden) and (experts, hidden,
    neurons), or both transposed.
    """
    found: dict[int, MoeBlock] = {}
    modules = dict(model.named_modules())
    for name, module in modules.items():
        fused, down = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
        if not isinstance(fused, torch.nn.Parameter) or not isinstance(down, torch.nn.Parameter):
            continue
        experts, one, other = down.shape
        if fused.shape in ((experts, 2 * other, one), (experts, other, 2 * one)) and hasattr(module, "act_fn"):
            block = name.rpartition(".")[0]
            found[layer_number(name)] = MoeBlock(block, modules[block], module)
    return found
