"""Store the top-k experts of a step's rows: by `topk_kernel` on a device, by its reference on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from sparcom_extractor.capture.ops.step_buffers import WRITE, RouteBuffer


def store_topk(
    routes: RouteBuffer, layer: int, ids: Tensor, weights: Tensor, scale: float = 1.0, logits: Tensor | None = None
) -> None:
    """Store the top-k experts of rows [0, rows) of `layer`, without waiting. If they do not fit, only set `problem`.
    ids: integers (rows, top_k). weights: floats, same shape. scale: factor of the sum of the routed experts.
    logits: of the router (rows, experts), if known; ignored if their number of rows differs."""
    max_tokens, _, top_k = routes.experts.shape
    if logits is not None and len(logits) != len(ids):
        logits = None
    if len(ids) > max_tokens or ids.shape[1] != top_k or weights.shape != ids.shape:
        routes.problem = (
            f"a step may hold {max_tokens} tokens with top_k {top_k}; the router of a captured layer gave "
            f"{tuple(ids.shape)} experts and {tuple(weights.shape)} weights"
        )
        return
    if routes.experts.device.type != "cpu":
        from sparcom_extractor.capture.ops.topk_kernel import launch_topk  # needs Triton

        launch_topk(routes, layer, ids, weights, scale, logits)
        return
    rows = len(ids)
    routes.experts[:rows, layer].copy_(ids)
    target = routes.weights[:rows, layer]
    target.copy_(weights)
    target.mul_(scale)
    nonfinite = ~torch.isfinite(target).all(dim=1)
    if logits is not None:
        nonfinite |= ~torch.isfinite(logits).all(dim=1)
    routes.nonfinite[:rows, layer] |= nonfinite
    routes.write_counters[layer].add_(WRITE + rows)
