"""Record one MoE layer of a transformers model while a prompt runs, and let the caller decide between tied experts.

Experts are found by structure: a module with the gate and up projections of all experts in one parameter and the down
projections in another. Its parent is the MoE block. Two layouts are supported. In most models, the experts get hidden
states, top-k ids and top-k weights, and call the activation once per picked expert, in order of ids. In Llama-4, every
expert gets every token, scaled by the router's score (0 if not picked), and the activation is called once.

Every router of transformers 5 picks its experts by `torch.topk` over (T, experts), and `MoeRecord` intercepts the call.
Its input is the ranked scores. In group-limited routing, `masked_fill` made that input from the ranked scores, and an
earlier `topk` ranked the groups. Raw logits become a softmax, which has the same order, so that one tolerance applies.
The caller may return other experts; the router then computes their weights itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode

from sparcom_data.errors import UnsupportedModelError
from sparcom_verification.reference.bits import Gates
from sparcom_verification.reference.routing import Groups, Routing, TopkIds

Follow = Callable[[int, Routing], TopkIds]
"""Returns the experts to run, int64 (T, top_k), from the index of an MoE layer on the layer axis and its routing."""


@dataclass(frozen=True, slots=True)
class RoutedExperts:
    """The routed experts of one MoE layer over a prompt of T tokens.

    topk_ids: int64 (T, top_k), the experts that ran. topk_weights: float32 (T, top_k). inputs: (T, hidden). scaled:
    whether experts get inputs times their weights. gate: (T, top_k, neurons). weight: gate projections, (experts,
    neurons, hidden). router: (experts, hidden), None if not found.
    """

    topk_ids: TopkIds
    topk_weights: NDArray[np.float32]
    inputs: torch.Tensor
    gate: torch.Tensor
    weight: torch.Tensor
    router: torch.Tensor | None
    scaled: bool

    def gates(self, expert: int, token: torch.Tensor, k: torch.Tensor) -> Gates:
        """Return the gates of one expert for pairs of token and index in the top-k, int64 (rows,) each."""
        inputs = self.inputs[token]
        if self.scaled:
            inputs = inputs * torch.from_numpy(self.topk_weights)[token, k, None]
        return Gates(inputs, self.gate[token, k], self.weight[expert])


class MoeRecord(TorchFunctionMode):
    """Record of one run of an MoE block; intercepts the router's `topk` while it is active.

    routing: the router's own top-k, None until seen. block_inputs: (T, hidden). arguments: arguments of the experts'
    call. gates: inputs of the activation, one per call.
    """

    def __init__(self, experts: int, decide: Callable[[Routing], TopkIds]) -> None:
        super().__init__()
        self.routing: Routing | None = None
        self.block_inputs = torch.empty(0)
        self.arguments: tuple[torch.Tensor, ...] = ()
        self.gates: list[torch.Tensor] = []
        self._experts, self._decide = experts, decide
        self._normalized = False  # after a softmax or a sigmoid, scores are not raw logits
        self._masked: tuple[Any, Any] = (None, None)  # result and input of the last masked_fill
        self._groups: Groups | None = None

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Call the function; intercept `topk` and the functions that make its input."""
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in ("softmax", "sigmoid"):
            self._normalized = True
        elif name == "masked_fill":
            self._masked = (result, args[0])
        elif name == "topk" and args[0].dim() == 2 and args[0].shape[1] == self._experts:
            return self._route(args[0], result)
        elif name == "topk" and args[0].dim() == 2:
            self._groups = Groups(args[0].float().numpy(), result.indices.shape[1])
        return result

    def _route(self, scores: torch.Tensor, result: Any) -> Any:
        """Return the top-k for the router to use."""
        masked, unmasked = self._masked
        ranked, groups = (unmasked, self._groups) if scores is masked else (scores, None)
        shown = ranked.float() if self._normalized else ranked.float().softmax(dim=-1)
        total = shown.sum(dim=-1)
        probabilities = bool((shown >= 0).all() and torch.allclose(total, torch.ones_like(total), atol=1e-2))
        self.routing = Routing(result.indices.long().numpy(), shown.numpy(), groups, probabilities)
        expert = torch.from_numpy(self._decide(self.routing))
        if torch.equal(expert, result.indices):
            return result
        return torch.return_types.topk((ranked.gather(1, expert), expert))


@dataclass(slots=True)
class MoeBlock:
    """An MoE block.

    shows_scores: whether the experts of the first run were the top-k of the recorded scores; None before that run.
    """

    name: str
    block: Any
    experts: Any
    shows_scores: bool | None = None

    @contextmanager
    def recorded(self, index: int, follow: Follow | None) -> Iterator[MoeRecord]:
        """Record one run; `follow` decides between tied experts."""

        def decide(routing: Routing) -> TopkIds:
            return follow(index, routing) if follow and self.shows_scores else routing.topk_ids

        def run(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            record.block_inputs = hidden.flatten(0, -2)
            with record:
                return forward(hidden, *args, **kwargs)

        def on_experts(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            record.arguments = (*args, *kwargs.values())

        def on_gate(gate: torch.Tensor) -> Any:
            record.gates.append(gate)
            return activation(gate)

        record, forward = MoeRecord(len(self.experts.down_proj), decide), self.block.forward
        activation = self.experts.act_fn
        hook = self.experts.register_forward_pre_hook(on_experts, with_kwargs=True)
        del self.experts.act_fn  # PyTorch cannot replace a module by a function
        self.block.forward, self.experts.act_fn = run, on_gate
        try:
            yield record
            topk_ids, seen = self._topk(record)[0], record.routing
            if self.shows_scores is None:
                sets = (np.sort(ids, axis=1) for ids in (topk_ids, seen.topk_ids)) if seen else ([0], [1])
                self.shows_scores = np.array_equal(*sets)
            elif follow and not self.shows_scores:  # counts the routes; without scores there are no ties
                follow(index, Routing(topk_ids))
        finally:
            hook.remove()
            del self.block.forward
            self.experts.act_fn = activation

    def _topk(self, record: MoeRecord) -> tuple[TopkIds, NDArray[np.float32]]:
        """Return ids and weights of the experts that ran, (T, top_k) each."""
        if len(record.arguments) == 3:
            _, expert, weight = record.arguments
            return expert.long().numpy(), weight.float().numpy()
        if len(record.arguments) == 1 and record.routing is not None:
            hidden, scaled = record.block_inputs.double(), record.arguments[0].double()
            scores = (scaled.view(-1, *hidden.shape) * hidden).sum(dim=-1).T / hidden.square().sum(dim=-1)[:, None]
            expert = scores.topk(record.routing.topk_ids.shape[1], dim=-1).indices
            return expert.numpy(), scores.gather(1, expert).float().numpy()
        raise self._refusal(f"are called with {len(record.arguments)} arguments")

    def routed(self, record: MoeRecord) -> RoutedExperts:
        """Return the routed experts of a run."""
        topk_ids, topk_weights = self._topk(record)
        fused = self.experts.gate_up_proj.detach()
        transposed = fused.shape[1] == self.experts.down_proj.shape[2]  # (experts, hidden, 2 * neurons)
        weight = (fused.transpose(1, 2) if transposed else fused).chunk(2, dim=1)[0]
        scaled = len(record.arguments) == 1
        inputs = record.block_inputs if scaled else record.arguments[0]
        shape, inside = (len(weight), weight.shape[2]), {id(parameter) for parameter in self.experts.parameters()}
        routers = (p.detach() for p in self.block.parameters() if p.shape == shape and id(p) not in inside)
        gate = self._gates(record.gates, topk_ids, weight.shape[1])
        return RoutedExperts(topk_ids, topk_weights, inputs, gate, weight, next(routers, None), scaled)

    def _gates(self, calls: list[torch.Tensor], topk_ids: TopkIds, neurons: int) -> torch.Tensor:
        """Return the gates of the experts that ran, (T, top_k, neurons)."""
        ids = torch.from_numpy(topk_ids)
        if len(calls) == 1 and calls[0].dim() == 3:  # (experts, T, neurons)
            return torch.Tensor(calls[0][ids, torch.arange(len(ids))[:, None]])
        called = np.unique(topk_ids).tolist()
        if len(called) != len(calls):
            raise self._refusal(f"called their activation {len(calls)} times for {len(called)} experts")
        gate = calls[0].new_empty((*ids.shape, neurons))
        for expert, values in zip(called, calls, strict=True):
            k, token = torch.where((ids == expert).T)  # the order in which transformers gathers the tokens
            gate[token, k] = values
        return gate

    def _refusal(self, problem: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            "the reference supports experts that get hidden states, top-k ids and weights and call their activation "
            f"once per expert, or that run all tokens; those of {self.name} ({type(self.experts).__name__}) {problem}. "
            "Leave out --reference"
        )


def layer_of(name: str) -> int:
    """Return the decoder layer of a module, which is the only number in its name."""
    numbers = [int(part) for part in name.split(".") if part.isdigit()]
    if len(numbers) != 1:
        raise UnsupportedModelError(
            f"the reference supports module names with one number, that of the layer; {name!r} has {len(numbers)}. "
            "Leave out --reference"
        )
    return numbers[0]


def find_moe_blocks(model: torch.nn.Module) -> dict[int, MoeBlock]:
    """Return the MoE blocks of a model by decoder layer.

    Experts hold gate_up_proj (experts, 2·neurons, hidden) and down_proj (experts, hidden, neurons), or both transposed.
    """
    found: dict[int, MoeBlock] = {}
    modules = dict(model.named_modules())
    for name, module in modules.items():
        fused, down = (getattr(module, part, None) for part in ("gate_up_proj", "down_proj"))
        if not isinstance(fused, torch.nn.Parameter) or not isinstance(down, torch.nn.Parameter):
            continue
        experts, one, other = down.shape
        if fused.shape in ((experts, 2 * other, one), (experts, other, 2 * one)) and hasattr(module, "act_fn"):
            block = name.rpartition(".")[0]
            found[layer_of(name)] = MoeBlock(block, modules[block], module)
    return found
