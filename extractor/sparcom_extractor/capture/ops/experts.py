"""Capture the routes and the neurons of the chosen experts of one layer, at the kernel that runs its experts.

    router.select_experts(logits) ─▶ (ids, weights)                   are all logits finite?
                 ─▶ experts.apply(x, ids, weights, …)                 ids and weights are taken here
                                  ├─ Triton: GEMM ─▶ experts.activation(kind, out, gate_up) ─▶ GEMM    signs from here
                                  └─ CPU: one native call over packed weights    gates are computed beside it

vLLM calls these methods of its router and its experts object in every step, inside an operator that torch.compile does
not look into, so the methods of these objects are replaced; no class is changed, and other engines stay as they are.
The rows of Triton's gate_up are (token, choice) in the order of the ids. Under CUDA graphs the calls run once, at
capture, and the copies and kernels that they launch are in the graph. Where the product is known to be that of
capture's own kernel (`install.py` finds out), one kernel reads the gates once, takes the signs and puts the product
where vLLM wants it; otherwise the signs are taken beside vLLM's activation. A kernel that shows neither is refused:
zeros never stand in for data. Should a step take a path around the replaced methods, its write counters tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from sparcom_data.errors import UnsupportedModelError
from sparcom_extractor.capture.discovery.moe import MoeLayer
from sparcom_extractor.capture.ops.buffer import CaptureBuffer
from sparcom_extractor.capture.ops.op import run_kernel
from sparcom_extractor.capture.ops.panels import PanelGate
from sparcom_extractor.capture.ops.reference import Rounding
from sparcom_extractor.capture.ops.routes import RouteBuffer

TRITON = "TritonExperts"
NATIVE = "CPUUnquantizedExperts"
NATIVE_VECTOR = "vec"  # its portable instruction set, whose packing is known


class Gate(Protocol):
    """Computes the gates of chosen experts."""

    def masks(self, rows: torch.Tensor, ids: torch.Tensor) -> Any:
        """Which neurons of the chosen experts are active, uint8 (rows × choices, neuron_bytes), and which of these rows
        have a gate that is not finite, bool (rows × choices,)."""


@dataclass(frozen=True, slots=True)
class ExpertSlots:
    """Where one layer of experts writes: its place on the moe_layer axis of the buffers."""

    layer: int
    routes: RouteBuffer
    experts: CaptureBuffer


def install_experts(layer: MoeLayer, slots: ExpertSlots, rounding: Rounding | None = None) -> str:
    """Replace the methods of a layer's experts.

    Args:
        layer: of a loaded model.
        slots: where it writes.
        rounding: for Triton experts, whose arithmetic the op's own product follows. None: signs beside vLLM's.

    Returns:
        How the neurons are seen: "kernel" (the signs with the product), "signs" (beside vLLM's activation) or "gate"
        (gates computed a second time).

    Raises:
        UnsupportedModelError: the kernel shows no neurons.
    """
    experts, router = shown_experts(layer), layer.runner.router
    select = router.select_experts = _Select(router.select_experts)
    if type(experts).__name__ == TRITON:
        slots.experts.attach(slots.layer, layer.rule, rounding, experts)
        experts.activation = _TritonActivation(experts.activation, layer, slots, fused=rounding is not None)
        experts.apply = _Apply(experts.apply, layer, slots, select, None)
        return rounding or "signs"
    slots.experts.attach(slots.layer, layer.rule, None, experts)
    experts.apply = _Apply(experts.apply, layer, slots, select, PanelGate.of(layer, experts))
    return "gate"


def shown_experts(layer: MoeLayer) -> Any:
    """The object that runs the experts of a layer, if it shows their neurons.

    Raises:
        UnsupportedModelError: it does not; the message names the setting that helps.
    """
    kernel = layer.runner.routed_experts.quant_method.moe_kernel
    experts = kernel.fused_experts if kernel is not None else None
    name = type(experts).__name__ if experts is not None else type(layer.runner.routed_experts.quant_method).__name__
    if experts is not None and name == TRITON:
        if experts.quant_config.block_shape is not None:
            raise UnsupportedModelError(
                f"{layer.name} makes the activation and its quantisation in blocks in one kernel, which shows no "
                "neurons. Use a checkpoint that is not quantised in blocks"
            )
        return experts
    if experts is not None and name == NATIVE and experts.isa == NATIVE_VECTOR and not experts._use_zentorch:
        return experts
    raise UnsupportedModelError(
        f"the experts of {layer.name} are run by {name}, which shows no neurons of the chosen experts. On a GPU start "
        "the engine with moe_backend 'triton', and without quantisation if that kernel does not take it; on a CPU use "
        "dtype 'float32' and vLLM 0.32 or later"
    )


def is_plain(experts: Any) -> bool:
    """Whether Triton experts gate by their activation alone: with a limit vLLM runs another kernel, which cuts.

    vLLM keeps the limit in `activation_config`, before 0.32 in the experts themselves.
    """
    try:
        config = getattr(experts, "activation_config", None)
        limit = experts.gemm1_clamp_limit if config is None else config.clamp_limit
    except AttributeError:
        return False  # not known: then the signs are taken beside it
    return limit is None


class _Select:
    """Stands in for `select_experts` of a layer's router, and keeps the logits for `_Apply`.

    A router may give a finite weight for a logit that is not finite.
    """

    def __init__(self, select: Any) -> None:
        self._select = select
        self._logits: torch.Tensor | None = None

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self._logits = named.get("router_logits", arguments[1] if len(arguments) > 1 else None)
        return self._select(*arguments, **named)

    def take(self) -> torch.Tensor | None:
        """The logits of the last call, (rows, experts), once."""
        logits, self._logits = self._logits, None
        return logits


class _Apply:
    """Stands in for `apply` of a layer's experts. vLLM passes its arguments by name."""

    def __init__(self, apply: Any, layer: MoeLayer, slots: ExpertSlots, select: _Select, gate: Gate | None) -> None:
        self._apply, self._slots, self._gate, self._scale = apply, slots, gate, layer.scale
        self._select = select

    def __call__(self, **arguments: Any) -> Any:
        ids, weights, slots = arguments["topk_ids"], arguments["topk_weights"], self._slots
        if self._gate is not None:
            ids, weights = in_falling_weight(ids, weights)
            slots.experts.store_packed(slots.layer, *self._gate.masks(arguments["hidden_states"], ids))
        slots.routes.store(slots.layer, ids, weights, self._scale, self._select.take())
        return self._apply(**arguments)


def in_falling_weight(ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Choices with the heaviest first. vLLM's router for CPUs lists them in no order, its others as they fall."""
    weights, order = weights.sort(dim=1, descending=True, stable=True)
    return ids.gather(1, order), weights


class _TritonActivation:
    """Stands in for `activation` of a layer's Triton experts: the signs of the gates, and the product."""

    def __init__(self, activation: Any, layer: MoeLayer, slots: ExpertSlots, *, fused: bool) -> None:
        self._activation, self._buffer = activation, slots.experts
        self._kind = layer.runner.activation if fused else None
        device = slots.experts.masks.device
        self._layer = torch.tensor(slots.layer, dtype=torch.int64, device=device)

    def __call__(self, activation: Any, output: torch.Tensor, input: torch.Tensor, **further: Any) -> Any:  # noqa: A002
        if activation == self._kind and not further and _is_for(output, input) and self._buffer.fits(input):
            run_kernel(input, self._layer, self._buffer, out=output)
            return None
        torch.ops.sparcom.capture_signs(input, self._layer, self._buffer.number)
        return self._activation(activation, output, input, **further)


def _is_for(output: torch.Tensor, gate_up: torch.Tensor) -> bool:
    """Whether the kernel can put the product of `gate_up` there."""
    shape = (gate_up.shape[0], gate_up.shape[1] // 2)
    return output.shape == shape and output.dtype == gate_up.dtype and output.is_contiguous()
