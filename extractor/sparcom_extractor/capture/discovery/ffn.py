"""One gated FFN of a model: a dense layer's, or the shared experts of a layer that has routed ones as well."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sparcom_data.errors import UnsupportedModelError
from sparcom_extractor.capture.discovery.activations import GatedActivation


@dataclass(frozen=True, slots=True)
class GatedFFN:
    """One FFN: where its activation hangs, how it gates, the layer it belongs to, and its width.

    neurons: width of the whole layer; neurons_here: width of this tensor-parallel rank's slice.
    """

    layer_id: int
    name: str
    parent: torch.nn.Module
    attribute: str
    rule: GatedActivation
    neurons: int
    neurons_here: int

    @property
    def activation(self) -> str:
        """The archive's name for the activation function."""
        return self.rule.kind


def layer_number(name: str) -> int:
    """The decoder layer a module belongs to: the one number in its name."""
    numbers = [int(part) for part in name.split(".") if part.isdigit()]
    if len(numbers) != 1:
        raise UnsupportedModelError(
            f"the name of a layer's module holds one number, the layer's; {name!r} holds {len(numbers)}. "
            "This model cannot be captured yet"
        )
    return numbers[0]
