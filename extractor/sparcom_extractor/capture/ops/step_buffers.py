"""Buffers that a step writes, at fixed addresses on the model's device, because CUDA graphs replay addresses.

    component               written by                                    arrays of the archive
    neuron                  activations of dense FFNs                     neuron/active
    router                  the call of a layer's experts                 router/expert, router/weight
    expert_neuron           activations of the top-k experts              expert_neuron/active
    shared_expert_neuron    activations of shared experts                 shared_expert_neuron/active

Arrays are (token, layer, …), so the rows of a step are one block in the archive's order; later rows are stale. Neuron
i is bit i % 8 of byte i // 8. All components share write counters and nonfinite flags, so one check covers them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparcom_data.schema import NO_EXPERT, mask_bytes
from sparcom_extractor.capture.discovery.activations import ActivationSpec
from sparcom_extractor.capture.discovery.describe import Widths
from sparcom_extractor.capture.ops.activation_reference import Numerics
from sparcom_extractor.capture.ops.cpu.kernel import pack_rows, silu_and_pack

Kept = dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]]  # compiled kernels with arguments, see `launch`
WRITE = 1 << 32
"""A write of n rows adds WRITE + n to the write counter of its layer: one number counts calls and rows."""


def check_write_counters(counters: NDArray[np.int64], rows: int, names: Sequence[str], *, padded: bool) -> None:
    """Raise RuntimeError unless every layer wrote all rows of a step exactly once: stale masks would pass as data.
    counters: int64 (layers,), 0 before the step. names: of the layers, for the error. padded: a layer may write more
    rows than the step has, as CUDA graphs of fixed sizes do."""
    calls, written = counters >> 32, counters & (WRITE - 1)
    wrong = (calls != 1) | (written < rows) | ((written > rows) & (not padded))
    if not wrong.any():
        return
    layer = int(wrong.argmax())
    others = f", and {int(wrong.sum()) - 1} more layers are wrong" if wrong.sum() > 1 else ""
    remedy = "The engine bypassed the captured activation: report the model and vLLM version"
    if calls[layer] > 1:
        remedy = "The model runs a layer several times per token, and an archive has one mask per layer and token"
    raise RuntimeError(
        f"every captured layer must write once per step, {rows} rows in this one; {names[layer]} wrote "
        f"{int(calls[layer])} times, {int(written[layer])} rows in all{others}. {remedy}"
    )


class MaskBuffer:
    """Masks of one component.

    masks: uint8 (max_tokens, layers, neuron_bytes); with top_k > 0, (max_tokens, layers, top_k, neuron_bytes). Then
        activations have one row per (token, k), in that order.
    write_counters: int64 (layers,), see `WRITE`. nonfinite: uint8 (max_tokens, layers), 1 where a gate of the row is
        not finite. problem: why a layer could not be captured, or None; its write counter stays unchanged then.
    kernels: compiled for this buffer's addresses and strides.
    """

    _numbers: ClassVar[itertools.count[int]] = itertools.count()

    def __init__(self, neurons: int, top_k: int, write_counters: Tensor, nonfinite: Tensor) -> None:
        row = (top_k, mask_bytes(neurons)) if top_k else (mask_bytes(neurons),)
        self.neurons, self.top_k, self.number = neurons, top_k, next(self._numbers)
        self.masks = torch.zeros((*nonfinite.shape, *row), dtype=torch.uint8, device=nonfinite.device)
        self.write_counters, self.nonfinite = write_counters, nonfinite
        self.kernels: Kept = {}
        self.problem: str | None = None
        arrays = (self.masks, write_counters, nonfinite)
        self._host = tuple(array.numpy() for array in arrays) if nonfinite.device.type == "cpu" else None

    def fits(self, gate_up: Tensor) -> bool:
        """Return whether `gate_up` is (rows, 2·neurons) and its rows fit. If not, set `problem`; the engine runs on."""
        rows_per_token = max(1, self.top_k)
        max_rows = self.masks.shape[0] * rows_per_token
        rows, *width = gate_up.shape
        if width == [2 * self.neurons] and rows <= max_rows and rows % rows_per_token == 0:
            return True
        self.problem = (
            f"a step may hold {max_rows} rows per layer (max_num_batched_tokens), {rows_per_token} per token, of "
            f"{2 * self.neurons} values; a captured layer got {tuple(gate_up.shape)}"
        )
        return False

    def store(
        self, layer: int, gate_up: Tensor, spec: ActivationSpec, numerics: Numerics | None = None
    ) -> Tensor | None:
        """Store the signs of the gate of a CPU tensor `gate_up` (rows, 2·neurons) as rows [0, rows) of `layer`. Return
        the activation output (rows, neurons) with `PYTORCH` numerics, and None without or if rows do not fit."""
        if not self.fits(gate_up):
            return None
        rows, out = gate_up.shape[0], None
        if self.top_k:
            packed, wrong = np.empty((rows, self.masks.shape[-1]), np.uint8), np.zeros(rows, np.uint8)
            pack_rows(spec.split(gate_up)[0], spec.active_above, packed, wrong)
            self.store_packed(layer, packed, wrong)
            return None
        masks, counters, flags = self._host_arrays()
        target, wrong = masks[:rows, layer], flags[:rows, layer]
        if numerics == Numerics.PYTORCH and gate_up.dtype == torch.float32 and gate_up.stride(1) == 1:
            out = silu_and_pack(gate_up, target, wrong)
        else:
            pack_rows(spec.split(gate_up)[0], spec.active_above, target, wrong)
        counters[layer] += WRITE + rows
        return out

    def store_packed(self, layer: int, packed: NDArray[np.uint8], nonfinite: NDArray[np.uint8]) -> None:
        """Store packed signs (rows, neuron_bytes), and flags (rows,), 1 where the gate of a row is not finite."""
        masks, counters, flags = self._host_arrays()
        rows = packed.reshape(-1, self.top_k, packed.shape[-1]) if self.top_k else packed
        masks[: len(rows), layer] = rows
        if nonfinite.any():
            flags[np.flatnonzero(nonfinite) // max(1, self.top_k), layer] = 1
        counters[layer] += WRITE + len(rows)

    def _host_arrays(self) -> tuple[NDArray[Any], ...]:
        """Return masks, write counters and flags as NumPy arrays of the same memory."""
        if self._host is None:
            raise RuntimeError(f"the host can only write to buffers on the CPU; this one is on {self.masks.device}")
        return self._host


class RouteBuffer:
    """Top-k experts of one model, with weights as the kernel gets them (normalized), times the layer's scale.
    experts: uint16 (max_tokens, layers, top_k). weights: float32, same shape. Others: see `MaskBuffer`; nonfinite is 1
    where a weight or a router logit is not finite."""

    def __init__(self, top_k: int, write_counters: Tensor, nonfinite: Tensor) -> None:
        shape, device = (*nonfinite.shape, top_k), nonfinite.device
        self.experts = torch.full(shape, NO_EXPERT, dtype=torch.int32, device=device).to(torch.uint16)
        self.weights = torch.full(shape, torch.nan, dtype=torch.float32, device=device)
        self.write_counters, self.nonfinite = write_counters, nonfinite
        self.kernels: Kept = {}
        self.problem: str | None = None


class StepBuffers:
    """Buffers of one model; None for components that it does not have.

    write_counters, nonfinite: of all components; int64 (columns,), uint8 (max_tokens, columns), see `Widths.columns`.
    """

    def __init__(self, max_tokens: int, widths: Widths, device: torch.device) -> None:
        moe = len(widths.moe_layer_ids)
        columns = [len(widths.layer_ids), moe, moe, moe if widths.shared_neurons else 0]
        self.widths = widths
        self.write_counters = torch.zeros(sum(columns), dtype=torch.int64, device=device)
        self.nonfinite = torch.zeros((max_tokens, sum(columns)), dtype=torch.uint8, device=device)
        counters, flags = torch.split(self.write_counters, columns), torch.split(self.nonfinite, columns, dim=1)
        dense, routes, experts, shared = zip(counters, flags, strict=True)
        self.dense = MaskBuffer(widths.neurons, 0, *dense) if widths.layer_ids else None
        self.routes = RouteBuffer(widths.top_k, *routes) if moe else None
        self.experts = MaskBuffer(widths.expert_neurons, widths.top_k, *experts) if moe else None
        self.shared = MaskBuffer(widths.shared_neurons, 0, *shared) if columns[3] else None

    def clear(self) -> None:
        """Zero write counters and flags on the current stream."""
        self.write_counters.zero_()
        self.nonfinite.zero_()

    @property
    def problem(self) -> str | None:
        """Why a layer could not be captured, or None."""
        parts = (self.dense, self.experts, self.shared, self.routes)
        return next((part.problem for part in parts if part is not None and part.problem), None)

    def arrays(self) -> dict[str, Tensor]:
        """Return the data of a step, (max_tokens, …) each, by the names of the archive's arrays."""
        masks = {"neuron": self.dense, "expert_neuron": self.experts, "shared_expert_neuron": self.shared}
        found = {f"{name}/active": buffer.masks for name, buffer in masks.items() if buffer is not None}
        if self.routes is not None:
            found |= {"router/expert": self.routes.experts, "router/weight": self.routes.weights}
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays and flags."""
        return self.nonfinite.nbytes + sum(array.nbytes for array in self.arrays().values())
