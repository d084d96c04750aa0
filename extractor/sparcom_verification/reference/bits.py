"""Do bits agree with the reference's gates, but for rounding?

Two correct implementations round differently, so a neuron whose gate is within rounding of zero may fall on either
side. That is judged, not assumed: for every bit that differs the reference's own gate value must be within

    bound = ROUNDINGS · eps(dtype) · Σ_k |x_k| |W_ik|

of zero, where x is the gate projection's input and W its weights: the size of the terms that cancel in that sum, times
the unit of rounding, times an allowance for the roundings of the layers before (measured on SmolLM2: DECISIONS.md).
Knows arrays, no model and no archive.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

ROUNDINGS = 256.0
MOST_EXAMPLES = 3


@dataclass(slots=True)
class Bits:
    """What a comparison of bits found.

    excess: for each differing bit, |gate| / bound; above 1 is not explained. examples: some that are not explained.
    """

    bits: int = 0
    excess: list[float] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)

    @property
    def differing(self) -> int:
        """Bits that differ."""
        return len(self.excess)

    @property
    def unexplained(self) -> int:
        """Differing bits whose gate in the reference is not within the bound of zero."""
        return sum(not value <= 1 for value in self.excess)

    @property
    def share(self) -> float:
        """Differing bits as a share of all."""
        return self.differing / self.bits if self.bits else 0.0

    def compare(
        self,
        captured: torch.Tensor,
        inputs: torch.Tensor,
        gate: torch.Tensor,
        weight: torch.Tensor,
        name: Callable[[int], str],
    ) -> None:
        """Add the bits of one FFN.

        Args:
            captured: bool (rows, neurons).
            inputs: (rows, hidden), of the gate projection.
            gate: (rows, neurons), what it gave in the reference.
            weight: (neurons, hidden), its weights.
            name: names a row, for findings: its instruction, token and layer.
        """
        differs = (gate > 0) != captured
        self.bits += captured.numel()
        rows = differs.any(dim=1).nonzero()[:, 0]
        excess = gate[rows].double().abs() / rounding_bound(inputs[rows], weight)
        self.excess.extend(excess[differs[rows]].tolist())
        wrong = differs[rows] & ~(excess <= 1)
        for row, neuron in wrong.nonzero()[: MOST_EXAMPLES - len(self.examples)].tolist():
            at = int(rows[row])
            self.examples.append(f"{name(at)}, neuron {neuron} (gate {float(gate[at, neuron]):.3g} in the reference)")


def rounding_bound(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """How far from zero rounding may explain a gate to lie: float64 (rows, neurons).

    Args:
        inputs: (rows, hidden), of the gate projection.
        weight: (neurons, hidden), of the neurons that are asked for.
    """
    return ROUNDINGS * torch.finfo(inputs.dtype).eps * (inputs.double().abs() @ weight.double().abs().T)
