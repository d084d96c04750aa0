"""Split one gated FFN into a shared expert and routed experts (MoEfication), fitted on given inputs.

The dense FFN computes Σ_i f(gate_i · x) (up_i · x) down_i over its neurons i.
1. The neurons with the largest contribution form the shared expert. The contribution is the mean |activation| times
   the norm of down_i.
2. The other neurons are clustered by the directions of their gates into experts of equal size.
3. The router is linear in x. Least squares fits the norm of each expert's output, centered per token. The logits are
   then scaled to a standard deviation per token of LOGIT_STD.
4. Expert outputs are multiplied by weights that sum to 1, so down_i of an expert starts as `top_k` times the dense one.
   Ridge regression towards that start then fits all down projections to the dense output on the inputs.
Gate and up projections do not change, so each neuron of the MoE layer is a neuron of the dense FFN.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sparcom_models.moefy.clusters import balanced_clusters

LOGIT_STD = 0.5
RIDGE = 0.3  # times the mean of the diagonal; 0.01 overfits the texts, 3 loses two thirds of the improvement
_ROUTER_RIDGE = 1e-2


@dataclass(frozen=True, slots=True)
class Ffn:
    """A gated FFN: gate and up (intermediate_size, hidden), down (hidden, intermediate_size)."""

    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor

    def activations(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return f(gate x) (up x), float32 (T, intermediate_size), for inputs (T, hidden)."""
        return torch.nn.functional.silu(inputs @ self.gate.T) * (inputs @ self.up.T)

    def part(self, neurons: torch.Tensor, down: torch.Tensor) -> Ffn:
        """Return the FFN of some neurons. `down` is new: (intermediate_size, hidden), for the whole FFN."""
        return Ffn(self.gate[neurons], self.up[neurons], down[neurons].T.contiguous())


@dataclass(frozen=True, slots=True)
class SplitSizes:
    """Number of routed experts, of experts per token and of shared neurons, and the seed of the clustering."""

    experts: int
    top_k: int
    shared: int
    seed: int


@dataclass(frozen=True, slots=True)
class MoeFfn:
    """The MoE layer made from an FFN.

    router: (experts, hidden). neurons: indices of each expert's neurons in the dense FFN, int64 (experts, width).
    output: on the fitted inputs, (T, hidden). error: norm of the output's error, relative to that of the dense output.
    """

    shared: Ffn
    experts: list[Ffn]
    router: torch.Tensor
    neurons: torch.Tensor
    output: torch.Tensor
    error: float


def split_ffn(ffn: Ffn, inputs: torch.Tensor, sizes: SplitSizes) -> MoeFfn:
    """Split an FFN, and fit the parts on inputs, float32 (T, hidden)."""
    activations = ffn.activations(inputs)
    shared, groups = split_neurons(ffn, activations, sizes)
    lengths = [(activations[:, group] @ ffn.down[:, group].T).norm(dim=1) for group in groups]
    router = fit_router(inputs, torch.stack(lengths, dim=1))
    weighted = activations.clone()
    weighted[:, groups.flatten()] *= combine_weights(inputs, router, sizes.top_k).repeat_interleave(
        groups.shape[1], dim=1
    )
    start = ffn.down.T.clone()
    start[groups.flatten()] *= sizes.top_k
    target = activations @ ffn.down.T
    down = start + _ridge(weighted, target - weighted @ start, RIDGE)
    output = weighted @ down
    error = float((output - target).norm() / target.norm())
    return MoeFfn(ffn.part(shared, down), [ffn.part(group, down) for group in groups], router, groups, output, error)


def split_neurons(ffn: Ffn, activations: torch.Tensor, sizes: SplitSizes) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ascending neuron indices of the shared expert, int64 (shared,), and of experts, (experts, width)."""
    contribution = activations.abs().mean(dim=0) * ffn.down.norm(dim=0)
    order = contribution.argsort(descending=True, stable=True)
    shared, rest = order[: sizes.shared].sort().values, order[sizes.shared :].sort().values
    labels = torch.from_numpy(balanced_clusters(ffn.gate[rest].numpy(), sizes.experts, sizes.seed))
    return shared, torch.stack([rest[labels == expert] for expert in range(sizes.experts)])


def fit_router(inputs: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return router weights (experts, hidden) whose logits follow the centered lengths (T, experts)."""
    router = _ridge(inputs, lengths - lengths.mean(dim=1, keepdim=True), _ROUTER_RIDGE, torch.float64).T
    logits = inputs.double() @ router.T
    std = (logits - logits.mean(dim=1, keepdim=True)).square().mean().sqrt()
    return (router * (LOGIT_STD / std)).float().contiguous()


def combine_weights(inputs: torch.Tensor, router: torch.Tensor, top_k: int) -> torch.Tensor:
    """Return the softmax over the logits of the top-k experts and 0 for the others: (T, experts)."""
    logits, experts = (inputs @ router.T).topk(top_k, dim=1)
    return torch.zeros(len(inputs), len(router)).scatter_(1, experts, logits.softmax(dim=1))


def _ridge(inputs: torch.Tensor, targets: torch.Tensor, ridge: float, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Solve inputs (T, n) · W ≈ targets (T, m) for W (n, m); `ridge` is relative to the mean of the diagonal."""
    squares = inputs.T @ inputs
    squares.diagonal().add_(ridge * squares.diagonal().mean())
    solution: torch.Tensor = torch.linalg.solve(squares.to(dtype), (inputs.T @ targets).to(dtype))
    return solution
