"""One gated FFN: of a dense layer, or the shared experts of an MoE layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sparcom_data.errors import UnsupportedModelError
from sparcom_extractor.capture.discovery.activations import ActivationSpec


@dataclass(frozen=True, slots=True)
class GatedFFN:
    """A module `parent` with an activation as `attribute`. Sizes are those of the layer and of this rank's slice."""

    layer_id: int
    name: str
    parent: torch.nn.Module
    attribute: str
    spec: ActivationSpec
    intermediate_size: int
    intermediate_size_per_partition: int


def layer_number(name: str) -> int:
    """Return the decoder layer of a module: the one number in its name."""
    numbers = [int(part) for part in name.split(".") if part.isdigit()]
    if len(numbers) != 1:
        raise UnsupportedModelError(
            f"the name of a layer's module holds one number, the layer's; {name!r} holds {len(numbers)}. "
            "This model cannot be captured yet"
        )
    return numbers[0]
