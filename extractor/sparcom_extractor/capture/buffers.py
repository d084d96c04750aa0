"""All buffers that a model's step is captured in, under the names of the archive's arrays.

    component               written by                                       arrays of the archive
    neuron                  the activations of dense FFNs                    neuron/active
    router                  where the experts of a layer are called          router/expert, router/weight
    expert_neuron           the chosen experts' activations                  expert_neuron/active
    shared_expert_neuron    the activations of shared experts                shared_expert_neuron/active

They share one tensor of stamps, so that one check holds for all: every layer of every component wrote in every step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sparcom_extractor.capture.buffer import CaptureBuffer
from sparcom_extractor.capture.routes import RouteBuffer


@dataclass(frozen=True, slots=True)
class Widths:
    """What of a model one process captures.

    layers: dense layers, neurons: of each. moe_layers, choices (k of the top-k router), expert_neurons: of one expert,
    shared_neurons: of the shared experts together; 0 where there are none.
    """

    layers: int = 0
    neurons: int = 0
    moe_layers: int = 0
    choices: int = 0
    expert_neurons: int = 0
    shared_neurons: int = 0


class StepBuffers:
    """The buffers of one model; those of components that it does not have are None."""

    def __init__(self, max_tokens: int, widths: Widths, device: torch.device) -> None:
        shared = widths.moe_layers if widths.shared_neurons else 0
        counts = (widths.layers, widths.moe_layers, widths.moe_layers, shared)
        self.stamps = torch.zeros(sum(counts), dtype=torch.int64, device=device)
        dense_stamps, route_stamps, expert_stamps, shared_stamps = torch.split(self.stamps, list(counts))

        def buffer(layers: int, neurons: int, stamps: torch.Tensor, choices: int = 0) -> CaptureBuffer | None:
            if not layers:
                return None
            return CaptureBuffer(max_tokens, layers, neurons, device, choices=choices, stamps=stamps)

        self.widths = widths
        self.neurons = buffer(widths.layers, widths.neurons, dense_stamps)
        self.experts = buffer(widths.moe_layers, widths.expert_neurons, expert_stamps, widths.choices)
        self.shared = buffer(shared, widths.shared_neurons, shared_stamps)
        self.routes = (
            RouteBuffer(max_tokens, widths.moe_layers, widths.choices, route_stamps) if widths.moe_layers else None
        )

    @classmethod
    def of_dense(cls, buffer: CaptureBuffer) -> StepBuffers:
        """Those of a dense model whose buffer is there already."""
        buffers = cls(0, Widths(), buffer.masks.device)
        buffers.widths = Widths(buffer.masks.shape[1], buffer.neurons)
        buffers.neurons, buffers.stamps = buffer, buffer.stamps
        return buffers

    @property
    def masks(self) -> list[CaptureBuffer]:
        """Those that hold masks."""
        return [buffer for buffer in (self.neurons, self.experts, self.shared) if buffer is not None]

    def arrays(self) -> dict[str, torch.Tensor]:
        """What a step leaves behind, (max_tokens, …) each, by the name of the archive's array."""
        found: dict[str, torch.Tensor] = {}
        if self.neurons is not None:
            found["neuron/active"] = self.neurons.masks
        if self.routes is not None:
            found |= {"router/expert": self.routes.experts, "router/weight": self.routes.weights}
        if self.experts is not None:
            found["expert_neuron/active"] = self.experts.masks
        if self.shared is not None:
            found["shared_expert_neuron/active"] = self.shared.masks
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays of a step."""
        return sum(array.nbytes for array in self.arrays().values())
