"""Everything that a step writes, at fixed addresses on the model's device: CUDA graphs replay addresses.

    component               written by                                    arrays of the archive
    neuron                  activations of dense FFNs                     neuron/active
    router                  the calls of a layer's experts                router/expert, router/weight
    expert_neuron           activations of the chosen experts             expert_neuron/active
    shared_expert_neuron    activations of shared experts                 shared_expert_neuron/active

Arrays are (token, layer, …), so that the rows of a step are one block in the archive's own order; rows past those of
the step are stale. Neuron i is bit i % 8 of byte i // 8. All components share one tensor of write counters and one of
nonfinite flags. So one check covers all: every layer wrote once per step, and no gate or weight was NaN or infinite.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from sparcom_data.schema import NO_EXPERT, mask_bytes
from sparcom_extractor.capture.discovery.activations import ActivationSpec
from sparcom_extractor.capture.discovery.describe import Widths
from sparcom_extractor.capture.ops.activation_reference import nonfinite_rows, pack_signs

WRITE = 1 << 32
"""A write of n rows adds WRITE + n to the write counter of its layer: one number counts calls and rows."""


def check_write_counters(counters: NDArray[np.int64], rows: int, names: Sequence[str], *, padded: bool) -> None:
    """Check that every layer wrote once in a step, and all rows of the step.

    This finds layers that were left out (a graph compiled without capture, a path around the activation), that ran
    several times, or that saw fewer rows. Otherwise stale masks would be read as data.

    Args:
        counters: int64 (layers,), 0 before the step.
        rows: number of rows of the step.
        names: of the layers, for the error.
        padded: a layer may write more rows than the step has, as CUDA graphs of fixed sizes do.

    Raises:
        RuntimeError: a layer did not write, wrote several times, or wrote other rows.
    """
    calls, written = counters >> 32, counters & (WRITE - 1)
    wrong = (calls != 1) | (written < rows) | ((written > rows) & (not padded))
    if not wrong.any():
        return
    layer = int(wrong.argmax())
    others = f", and {int(wrong.sum()) - 1} more layers are wrong" if wrong.sum() > 1 else ""
    remedy = "The engine ran a path around the captured activation: report the model and vLLM version"
    if calls[layer] > 1:
        remedy = "The model runs a layer several times per token, and an archive has one mask per layer and token"
    raise RuntimeError(
        f"every captured layer must write once per step, {rows} rows in this one; {names[layer]} wrote "
        f"{int(calls[layer])} times, {int(written[layer])} rows in all{others}. {remedy}"
    )


class MaskBuffer:
    """Masks of one component.

    masks: uint8 (max_tokens, layers, neuron_bytes), for routed experts (max_tokens, layers, top_k, neuron_bytes).
        Their activation then has one row per (token, choice), in that order.
    write_counters: int64 (layers,), see `WRITE`. nonfinite: uint8 (max_tokens, layers), 1 where a gate of the row is
        NaN or infinite; whoever reads it clears it before the step.
    problem: why a layer could not be captured, or None. Its write counter has not moved then.
    number: identifies the buffer in compiled graphs.
    """

    _numbers: ClassVar[itertools.count[int]] = itertools.count()

    def __init__(
        self,
        max_tokens: int,
        layers: int,
        neurons: int,
        device: torch.device,
        top_k: int = 0,
        write_counters: torch.Tensor | None = None,
        nonfinite: torch.Tensor | None = None,
    ) -> None:
        """write_counters, nonfinite: this component's part of a model's, or None for tensors of its own."""
        row = (layers, top_k, mask_bytes(neurons)) if top_k else (layers, mask_bytes(neurons))
        self.neurons, self.top_k, self.number = neurons, top_k, next(self._numbers)
        self.masks = torch.zeros((max_tokens, *row), dtype=torch.uint8, device=device)
        if write_counters is None:
            write_counters = torch.zeros(layers, dtype=torch.int64, device=device)
        if nonfinite is None:
            nonfinite = torch.zeros((max_tokens, layers), dtype=torch.uint8, device=device)
        self.write_counters, self.nonfinite = write_counters, nonfinite
        self.problem: str | None = None
        arrays = (self.masks, write_counters, nonfinite)
        self._host = tuple(array.numpy() for array in arrays) if device.type == "cpu" else None

    def fits(self, gate_up: torch.Tensor) -> bool:
        """Return whether `gate_up` is (rows, 2·neurons) and its rows fit; if not, `problem` says why.

        A layer that does not fit must not stop the engine. Its write counter stays, which fails the jobs of the step
        and, at start-up, refuses the model.
        """
        rows_per_token = max(1, self.top_k)
        max_rows = self.masks.shape[0] * rows_per_token
        if gate_up.shape[1:] != (2 * self.neurons,):
            self.problem = (
                f"a gated activation takes (rows, {2 * self.neurons}) here; a captured layer got {tuple(gate_up.shape)}"
            )
        elif gate_up.shape[0] > max_rows or gate_up.shape[0] % rows_per_token:
            self.problem = (
                f"a step may hold {max_rows} rows of a layer (max_num_batched_tokens), {rows_per_token} per token; "
                f"a captured layer got {gate_up.shape[0]}"
            )
        else:
            return True
        return False

    def store(self, layer: int, gate_up: torch.Tensor, spec: ActivationSpec) -> None:
        """Store the signs of the gate of a CPU tensor `gate_up` (rows, 2·neurons) as rows [0, rows) of `layer`."""
        if self.fits(gate_up):
            gate = spec.gate(gate_up)
            self.store_packed(layer, pack_signs(gate, spec.active_above), nonfinite_rows(gate))

    def store_packed(self, layer: int, packed: NDArray[np.uint8], nonfinite: NDArray[np.bool_]) -> None:
        """Store packed signs, uint8 (rows, neuron_bytes), and which rows have a nonfinite gate, bool (rows,)."""
        if self._host is None:
            raise RuntimeError(f"the host writes to buffers on the CPU; this one is on {self.masks.device}")
        masks, counters, flags = self._host
        rows = packed.reshape(-1, self.top_k, packed.shape[-1]) if self.top_k else packed
        masks[: len(rows), layer] = rows
        if nonfinite.any():
            flags[np.flatnonzero(nonfinite) // max(1, self.top_k), layer] = 1
        counters[layer] += WRITE + len(rows)


class RouteBuffer:
    """Top-k experts of all MoE layers, as the experts get them: after normalization, times the layer's scale.

    experts: uint16 (max_tokens, layers, top_k). weights: float32, likewise. write_counters, nonfinite, problem: as in
    `MaskBuffer`; a row is flagged where a weight or a router logit is not finite.
    """

    def __init__(
        self, max_tokens: int, layers: int, top_k: int, counters: torch.Tensor, nonfinite: torch.Tensor | None = None
    ) -> None:
        shape, device = (max_tokens, layers, top_k), counters.device
        self.experts = torch.full(shape, NO_EXPERT, dtype=torch.int32, device=device).to(torch.uint16)
        self.weights = torch.full(shape, torch.nan, dtype=torch.float32, device=device)
        if nonfinite is None:
            nonfinite = torch.zeros((max_tokens, layers), dtype=torch.uint8, device=device)
        self.write_counters, self.nonfinite = counters, nonfinite
        self.problem: str | None = None

    def store(
        self,
        layer: int,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor,
        scale: float = 1.0,
        logits: torch.Tensor | None = None,
    ) -> None:
        """Store the routes of rows [0, rows) of `layer`. If they do not fit, `problem` alone is set.

        Args:
            topk_ids: integers (rows, top_k), in the router's order. topk_weights: (rows, top_k).
            scale: the model multiplies the sum of the routed experts by it.
            logits: of the router (rows, experts), if known. Logits of other rows are ignored.
        """
        max_tokens, _, top_k = self.experts.shape
        if logits is not None and logits.shape[:1] != topk_ids.shape[:1]:
            logits = None
        if len(topk_ids) > max_tokens or topk_ids.shape[1] != top_k or topk_weights.shape != topk_ids.shape:
            self.problem = (
                f"a step may hold {max_tokens} tokens with top_k {top_k}; the router of a captured layer gave "
                f"{tuple(topk_ids.shape)} experts and {tuple(topk_weights.shape)} weights"
            )
        elif self.experts.device.type == "cpu":
            self._store_reference(layer, topk_ids, topk_weights, scale, logits)
        else:
            from sparcom_extractor.capture.ops.topk_kernel import store_topk  # needs Triton

            arrays = (self.experts, self.weights, self.write_counters, self.nonfinite)
            store_topk(layer, topk_ids, topk_weights, scale, *arrays, logits)

    def _store_reference(
        self, layer: int, topk_ids: torch.Tensor, topk_weights: torch.Tensor, scale: float, logits: torch.Tensor | None
    ) -> None:
        """The kernel's CPU reference."""
        rows = len(topk_ids)
        self.experts[:rows, layer].copy_(topk_ids)
        target = self.weights[:rows, layer]
        target.copy_(topk_weights)
        if scale != 1.0:
            target.mul_(scale)
        nonfinite = ~torch.isfinite(target).all(dim=1)
        if logits is not None:
            nonfinite |= ~torch.isfinite(logits).all(dim=1)
        self.nonfinite[:rows, layer] |= nonfinite
        self.write_counters[layer].add_(WRITE + rows)


class StepBuffers:
    """Buffers of one model; None for components that it does not have.

    write_counters: int64 (columns,). nonfinite: uint8 (max_tokens, columns). Columns are those of `Widths.columns`.
    """

    def __init__(self, max_tokens: int, widths: Widths, device: torch.device) -> None:
        moe = widths.moe_layers
        columns = [widths.layers, moe, moe, moe if widths.shared_neurons else 0]
        self.widths = widths
        self.write_counters = torch.zeros(sum(columns), dtype=torch.int64, device=device)
        self.nonfinite = torch.zeros((max_tokens, sum(columns)), dtype=torch.uint8, device=device)
        counters, flags = torch.split(self.write_counters, columns), torch.split(self.nonfinite, columns, dim=1)

        def masks(part: int, neurons: int, top_k: int = 0) -> MaskBuffer | None:
            own = (counters[part], flags[part])
            return MaskBuffer(max_tokens, columns[part], neurons, device, top_k, *own) if columns[part] else None

        self.dense = masks(0, widths.neurons)
        self.routes = RouteBuffer(max_tokens, moe, widths.top_k, counters[1], flags[1]) if moe else None
        self.experts = masks(2, widths.expert_neurons, widths.top_k)
        self.shared = masks(3, widths.shared_neurons)

    def clear(self) -> None:
        """Zero write counters and flags on the current stream."""
        self.write_counters.zero_()
        self.nonfinite.zero_()

    @property
    def problem(self) -> str | None:
        """Why a layer could not be captured, or None."""
        parts = (self.dense, self.experts, self.shared, self.routes)
        return next((part.problem for part in parts if part is not None and part.problem), None)

    def arrays(self) -> dict[str, torch.Tensor]:
        """Return the data of a step, (max_tokens, …) each, by the names of the archive's arrays."""
        found: dict[str, torch.Tensor] = {}
        if self.dense is not None:
            found["neuron/active"] = self.dense.masks
        if self.routes is not None:
            found |= {"router/expert": self.routes.experts, "router/weight": self.routes.weights}
        if self.experts is not None:
            found["expert_neuron/active"] = self.experts.masks
        if self.shared is not None:
            found["shared_expert_neuron/active"] = self.shared.masks
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays and flags."""
        return self.nonfinite.nbytes + sum(array.nbytes for array in self.arrays().values())
