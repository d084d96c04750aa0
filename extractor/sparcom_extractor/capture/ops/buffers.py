"""All buffers that a model's step is captured in, under the names of the archive's arrays.

    component               written by                                       arrays of the archive
    neuron                  the activations of dense FFNs                    neuron/active
    router                  where the experts of a layer are called          router/expert, router/weight
    expert_neuron           the chosen experts' activations                  expert_neuron/active
    shared_expert_neuron    the activations of shared experts                shared_expert_neuron/active

They share one tensor of write counters and one of flags, so that one check holds for all: every layer of every
component wrote once in the step, and no gate or weight was NaN or infinite.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sparcom_extractor.capture.ops.buffer import CaptureBuffer
from sparcom_extractor.capture.ops.routes import RouteBuffer


@dataclass(frozen=True, slots=True)
class Widths:
    """What of a model one process captures.

    layers: dense layers, neurons: of each. moe_layers, choices (k of the top-k router), expert_neurons: of one expert,
    shared_neurons: of the shared experts together; 0 where there are none.
    layer_ids, moe_layer_ids: the layers' numbers in the model, for errors; 0, 1, … where not given.
    """

    layers: int = 0
    neurons: int = 0
    moe_layers: int = 0
    choices: int = 0
    expert_neurons: int = 0
    shared_neurons: int = 0
    layer_ids: tuple[int, ...] = ()
    moe_layer_ids: tuple[int, ...] = ()

    def columns(self) -> list[LayerName]:
        """The layers of all components in the order of the write counters."""
        dense = self.layer_ids or range(self.layers)
        moe = self.moe_layer_ids or range(self.moe_layers)
        parts = ["router", "experts", *(["shared experts"] if self.shared_neurons else [])]
        return [LayerName(number, "") for number in dense] + [LayerName(n, part) for part in parts for n in moe]


@dataclass(frozen=True, slots=True)
class LayerName:
    """A layer in the model's own numbering, and the component of it; "" for a dense FFN."""

    number: int
    component: str

    def __str__(self) -> str:
        return f"layer {self.number}" + (f" ({self.component})" if self.component else "")


class StepBuffers:
    """The buffers of one model; those of components that it does not have are None."""

    def __init__(self, max_tokens: int, widths: Widths, device: torch.device) -> None:
        shared = widths.moe_layers if widths.shared_neurons else 0
        counts = (widths.layers, widths.moe_layers, widths.moe_layers, shared)
        self.writes = torch.zeros(sum(counts), dtype=torch.int64, device=device)
        self.flags = torch.zeros((max_tokens, sum(counts)), dtype=torch.uint8, device=device)
        parts = zip(torch.split(self.writes, list(counts)), torch.split(self.flags, list(counts), dim=1), strict=True)
        dense_part, route_part, expert_part, shared_part = parts

        def buffer(neurons: int, part: tuple[torch.Tensor, torch.Tensor], choices: int = 0) -> CaptureBuffer | None:
            writes, flags = part
            if not len(writes):
                return None
            return CaptureBuffer(max_tokens, len(writes), neurons, device, choices=choices, writes=writes, flags=flags)

        self.widths = widths
        self.neurons = buffer(widths.neurons, dense_part)
        self.experts = buffer(widths.expert_neurons, expert_part, widths.choices)
        self.shared = buffer(widths.shared_neurons, shared_part)
        self.routes = (
            RouteBuffer(max_tokens, widths.moe_layers, widths.choices, *route_part) if widths.moe_layers else None
        )

    @classmethod
    def of_dense(cls, buffer: CaptureBuffer) -> StepBuffers:
        """Those of a dense model whose buffer is there already."""
        buffers = cls(0, Widths(), buffer.masks.device)
        buffers.widths = Widths(buffer.masks.shape[1], buffer.neurons)
        buffers.neurons, buffers.writes, buffers.flags = buffer, buffer.writes, buffer.flags
        return buffers

    def clear(self) -> None:
        """Set write counters and flags to 0 on the current stream: what they hold next is of one step alone."""
        self.writes.zero_()
        self.flags.zero_()

    @property
    def problem(self) -> str | None:
        """Why a layer could not be captured, or None."""
        problems = [buffer.problem for buffer in self.masks]
        if self.routes is not None:
            problems.append(self.routes.problem)
        return next(filter(None, problems), None)

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
        return self.flags.nbytes + sum(array.nbytes for array in self.arrays().values())
