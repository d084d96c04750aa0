"""Compare bits with the gates of a reference, allowing for rounding.

Two correct implementations round differently, so a gate near zero may fall on either side of it. A differing bit is
explained if the reference's gate lies within

    bound = ROUNDINGS · eps(dtype) · Σ_k |x_k| |W_ik|

of zero, where x is the input and W the weight of the gate projection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from sparcom_verification import limits

MAX_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Gates:
    """Input (T, hidden), output (T, neurons) and weight (neurons, hidden) of one gate projection over T rows."""

    inputs: torch.Tensor
    gate: torch.Tensor
    weight: torch.Tensor

    def rows_from(self, first: int) -> Gates:
        """Return rows [first, T)."""
        return Gates(self.inputs[first:], self.gate[first:], self.weight)


@dataclass(slots=True)
class BitComparison:
    """Totals of a comparison of bits. unexplained: differing bits beyond the bound. examples: of unexplained bits."""

    bits: int = 0
    differing: int = 0
    unexplained: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Fraction of bits that differ."""
        return self.differing / self.bits if self.bits else 0.0

    def add(self, captured: torch.Tensor, gates: Gates, name: Callable[[int], str]) -> None:
        """Compare the bits of one FFN, bool (T, neurons); `name` describes a row in examples."""
        differs = (gates.gate > 0) != captured
        rows = differs.any(dim=1).nonzero()[:, 0]
        differs = differs[rows]
        excess = gates.gate[rows].double().abs() / rounding_bound(gates.inputs[rows], gates.weight)
        wrong = differs & ~(excess <= 1)  # NaN is not explained
        self.bits += captured.numel()
        self.differing += int(differs.sum())
        self.unexplained += int(wrong.sum())
        for at, neuron in wrong.nonzero()[: MAX_EXAMPLES - len(self.examples)].tolist():
            row = int(rows[at])
            value = float(gates.gate[row, neuron])
            self.examples.append(f"{name(row)}, neuron {neuron} (gate {value:.3g} in the reference)")

    def include(self, part: BitComparison) -> None:
        """Add the totals of another comparison."""
        self.bits += part.bits
        self.differing += part.differing
        self.unexplained += part.unexplained
        self.examples.extend(part.examples)


def rounding_bound(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the bound, float64 (rows, neurons), for inputs (rows, hidden) and weight (neurons, hidden)."""
    return limits.ROUNDINGS * torch.finfo(inputs.dtype).eps * (inputs.double().abs() @ weight.double().abs().T)
