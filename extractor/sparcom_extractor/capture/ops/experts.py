"""Capture the top-k experts of one MoE layer and their neurons, at the kernel that runs the experts.

    router.select_experts(logits) ─▶ experts.apply(x, ids, weights)     stores topk_ids and topk_weights
        ├─ Triton: GEMM ─▶ experts.activation(kind, out, gate_up) ─▶ GEMM        stores signs
        └─ CPU: one native call on prepacked weights; capture computes the gates a second time

vLLM calls these methods in an op that torch.compile does not trace into. Capture replaces them on these objects only.
Rows of Triton's gate_up are (token, k), in the order of topk_ids. CUDA graphs record the kernels that they launch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparcom_data.errors import UnsupportedModelError
from sparcom_extractor.capture.discovery.moe import MoeLayer
from sparcom_extractor.capture.ops.activation_reference import Numerics
from sparcom_extractor.capture.ops.captured_activation import LayerCapture
from sparcom_extractor.capture.ops.cpu.prepacked_gate import PrepackedGate
from sparcom_extractor.capture.ops.step_buffers import MaskBuffer, RouteBuffer
from sparcom_extractor.capture.ops.topk_reference import store_topk
from sparcom_extractor.vllm_surface import moe as vllm_moe


def install_experts(
    layer: MoeLayer, index: int, routes: RouteBuffer, masks: MaskBuffer, numerics: Numerics | None = None
) -> str:
    """Replace methods of a layer's experts and router. index: on the layer axis. Return how neurons are captured.
    "vllm_kernel": one kernel makes signs and activation output. "signs": capture runs next to vLLM's activation.
    "gate": capture computes the gates a second time."""
    experts = capturable_experts(layer)
    apply = experts.apply
    logits = _keep_logits(layer.runner.router)
    gate: PrepackedGate | None = None
    if type(experts).__name__ == vllm_moe.TRITON_EXPERTS:
        capture = LayerCapture(masks, index, experts.activation, layer.spec, numerics)
        experts.activation = _captured_activation(capture, layer.runner.activation)
    else:
        packed, size = layer.runner.routed_experts.w13_weight, layer.intermediate_size_per_partition
        gate = PrepackedGate(packed, size, experts.isa, experts.w1_bias, layer.spec.active_above)

    def captured_apply(**arguments: Any) -> Any:  # vLLM passes all arguments by name
        ids, weights = arguments["topk_ids"], arguments["topk_weights"]
        if gate is not None:
            ids, weights = sort_by_weight_desc(ids, weights)
            masks.store_packed(index, *gate.masks(arguments["hidden_states"], ids))
        store_topk(routes, index, ids, weights, layer.scale, logits.pop() if logits else None)
        return apply(**arguments)

    experts.apply = captured_apply
    return "gate" if gate is not None else numerics or "signs"


def capturable_experts(layer: MoeLayer) -> vllm_moe.ExpertsLike:
    """Return the object that runs the experts of a layer; refuse one that does not expose their neurons."""
    method = layer.runner.routed_experts.quant_method
    experts = None if method.moe_kernel is None else method.moe_kernel.fused_experts
    name = type(method if experts is None else experts).__name__
    if experts is not None and name == vllm_moe.TRITON_EXPERTS:
        if experts.quant_config.block_shape is not None:
            raise UnsupportedModelError(
                f"{layer.name} computes the activation and its block quantization in one kernel, which does not "
                "expose neurons. Use a checkpoint that is not quantized in blocks"
            )
        return experts
    if experts is not None and name == vllm_moe.CPU_EXPERTS and vllm_moe.has_known_cpu_weights(experts):
        return experts
    raise UnsupportedModelError(
        f"{name} runs the experts of {layer.name}, and does not expose their neurons. On a GPU start the engine with "
        "moe_backend 'triton', and without quantization if this backend does not support it. On a CPU use dtype "
        "'float32' and vLLM 0.32 or later"
    )


def sort_by_weight_desc(ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Sort the top-k experts of each row by descending weight. Only vLLM's CPU router leaves them unordered."""
    weights, order = weights.sort(dim=1, descending=True, stable=True)
    return ids.gather(1, order), weights


def _keep_logits(router: vllm_moe.RouterLike) -> list[Tensor]:
    """Make `select_experts` keep its logits (rows, experts) in the returned list.
    Finite weights may hide nonfinite logits."""
    select, kept = router.select_experts, list[Tensor]()

    def select_experts(*arguments: Any, **named: Any) -> Any:
        logits = named.get("router_logits", arguments[1] if len(arguments) > 1 else None)
        kept[:] = [] if logits is None else [logits]
        return select(*arguments, **named)

    router.select_experts = select_experts
    return kept


def _captured_activation(capture: LayerCapture, kind: Any) -> Callable[..., Any]:
    """Return the replacement for `activation` of Triton experts. kind: the MoEActivation that was compared."""

    def activation(called: Any, output: Tensor, input: Tensor, **further: Any) -> Any:  # noqa: A002
        shape = (input.shape[0], input.shape[1] // 2)
        fits = output.shape == shape and output.dtype == input.dtype and output.is_contiguous()
        if capture.numerics and called == kind and fits and not further and capture.buffer.fits(input):
            capture.run_kernel(input, capture.index, capture.numerics, output)
            return None
        torch.ops.sparcom.capture_signs(input, capture.index, capture.buffer.number)
        return capture.activation(called, output, input, **further)

    return activation
