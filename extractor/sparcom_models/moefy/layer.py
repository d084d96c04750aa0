"""Cuts one gated FFN into a shared expert and routed ones (MoEfication), by what it does on given inputs.

Neurons i of the dense FFN give the output Σ_i f(gate_i · x) (up_i · x) down_i.
1. The neurons that give most, by the mean of |activation| times the length of down_i, go to the shared expert.
2. The rest is clustered by the directions of their gates into experts of one size (`clusters`).
3. The router is linear in x: least squares for how long the output of each expert is, centred for each token, then
   scaled so that its logits have a standard deviation of SPREAD for a token.
4. Expert outputs are multiplied by weights that add up to 1, so down_i of an expert begins as `chosen` times itself.
   Then all down projections are fitted to the dense output on the inputs, ridge regression towards where they began.
Gates and ups stay as they are, so a neuron of the mixture is the neuron of the dense model. Knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sparcom_models.moefy.clusters import balanced_clusters

SPREAD = 0.5
RIDGE = 0.3  # of the mean of the diagonal; 0.01 learns the texts by heart, 3 leaves a third of the gain
_ROUTER_RIDGE = 1e-2


@dataclass(frozen=True, slots=True)
class Ffn:
    """A gated FFN: gate and up (neurons, hidden), down (hidden, neurons)."""

    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor

    def activations(self, inputs: torch.Tensor) -> torch.Tensor:
        """f(gate x) (up x), float32 (T, neurons), of inputs (T, hidden)."""
        return torch.nn.functional.silu(inputs @ self.gate.T) * (inputs @ self.up.T)

    def part(self, neurons: torch.Tensor, down: torch.Tensor) -> Ffn:
        """Some neurons of it, with other down projections, given as (neurons of all, hidden)."""
        return Ffn(self.gate[neurons], self.up[neurons], down[neurons].T.contiguous())


@dataclass(frozen=True, slots=True)
class Cut:
    """How many experts of how many neurons, how many are chosen, and how many neurons are shared."""

    experts: int
    chosen: int
    shared: int
    seed: int


@dataclass(frozen=True, slots=True)
class Mixture:
    """What becomes of an FFN.

    router: (experts, hidden); neurons: which of the dense FFN each expert has, int64 (experts, width). On the inputs
    that it was fitted on: output, (T, hidden); error, the length of what is lost over that of the dense output.
    """

    shared: Ffn
    experts: list[Ffn]
    router: torch.Tensor
    neurons: torch.Tensor
    output: torch.Tensor
    error: float


def cut_ffn(ffn: Ffn, inputs: torch.Tensor, cut: Cut) -> Mixture:
    """Cut an FFN by what it does on inputs, float32 (T, hidden)."""
    activations = ffn.activations(inputs)
    shared, groups = split_neurons(ffn, activations, cut)
    router = fit_router(inputs, output_lengths(ffn, activations, groups))
    weights = combine_weights(inputs, router, cut.chosen)
    started = ffn.down.T.clone()
    started[groups.flatten()] *= cut.chosen
    weighted = activations * _neuron_weights(weights, shared, groups)
    target = activations @ ffn.down.T
    down = fit_down(weighted, target, started)
    output = weighted @ down
    error = float((output - target).norm() / target.norm())
    experts = [ffn.part(group, down) for group in groups]
    return Mixture(ffn.part(shared, down), experts, router, groups, output, error)


def split_neurons(ffn: Ffn, activations: torch.Tensor, cut: Cut) -> tuple[torch.Tensor, torch.Tensor]:
    """Shared neurons, int64 (shared,), and those of each expert, int64 (experts, width); ascending."""
    given = activations.abs().mean(dim=0) * ffn.down.norm(dim=0)
    order = given.argsort(descending=True, stable=True)
    shared, rest = order[: cut.shared].sort().values, order[cut.shared :].sort().values
    labels = torch.from_numpy(balanced_clusters(ffn.gate[rest].numpy(), cut.experts, cut.seed))
    return shared, torch.stack([rest[labels == expert] for expert in range(cut.experts)])


def output_lengths(ffn: Ffn, activations: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """How long the output of each expert is: (T, experts)."""
    return torch.stack([(activations[:, group] @ ffn.down[:, group].T).norm(dim=1) for group in groups], dim=1)


def fit_router(inputs: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Router weights (experts, hidden) whose logits follow the lengths, but for what all experts of a token share."""
    centred = lengths - lengths.mean(dim=1, keepdim=True)
    squares = inputs.T @ inputs
    squares.diagonal().add_(_ROUTER_RIDGE * squares.diagonal().mean())
    router: torch.Tensor = torch.linalg.solve(squares.double(), (inputs.T @ centred).double()).T
    logits = inputs.double() @ router.T
    spread = (logits - logits.mean(dim=1, keepdim=True)).square().mean().sqrt()
    return (router * (SPREAD / spread)).float().contiguous()


def combine_weights(inputs: torch.Tensor, router: torch.Tensor, chosen: int) -> torch.Tensor:
    """Softmax over the chosen experts' logits, 0 for the others: (T, experts)."""
    logits, experts = (inputs @ router.T).topk(chosen, dim=1)
    return torch.zeros(len(inputs), len(router)).scatter_(1, experts, logits.softmax(dim=1))


def _neuron_weights(weights: torch.Tensor, shared: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """What each neuron is multiplied by: (T, neurons)."""
    every = torch.empty(len(weights), len(shared) + groups.numel())
    every[:, shared] = 1.0
    every[:, groups.flatten()] = weights.repeat_interleave(groups.shape[1], dim=1)
    return every


def fit_down(weighted: torch.Tensor, target: torch.Tensor, started: torch.Tensor) -> torch.Tensor:
    """Down projections (neurons, hidden) that take weighted activations (T, neurons) to `target` (T, hidden)."""
    squares = weighted.T @ weighted
    squares.diagonal().add_(RIDGE * squares.diagonal().mean())
    change: torch.Tensor = torch.linalg.solve(squares, weighted.T @ (target - weighted @ started))
    return started + change
