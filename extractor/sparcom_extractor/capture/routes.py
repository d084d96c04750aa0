"""The buffer that holds what the routers of one step chose.

    a layer's experts are called with (ids, weights) ──▶ experts[:rows, layer], weights[:rows, layer], stamps[layer]

Like the masks it lies at fixed addresses, and rows past the step's tokens are stale. It does not know how a router
chooses: ids and weights are taken where the experts get them, after all normalisation, and so are the ones that the
model combines its experts with. Where the model scales what all routed experts say together, that factor belongs to
the weights too. On a device one kernel stores a layer's routes (`route_kernel.py`); on the CPU torch does, its twin.
"""

from __future__ import annotations

import torch

from sparcom_data.schema import NO_EXPERT


class RouteBuffer:
    """Routes of one step.

    experts: uint16 (max_tokens, layers, choices). weights: float32, likewise. stamps: int64 (layers,), how often each
    layer has written.
    """

    def __init__(self, max_tokens: int, layers: int, choices: int, stamps: torch.Tensor) -> None:
        shape, device = (max_tokens, layers, choices), stamps.device
        self.experts = torch.full(shape, NO_EXPERT, dtype=torch.int32, device=device).to(torch.uint16)
        self.weights = torch.full(shape, torch.nan, dtype=torch.float32, device=device)
        self.stamps = stamps

    def store(self, layer: int, ids: torch.Tensor, weights: torch.Tensor, scale: float = 1.0) -> None:
        """Take the routes of rows [0, rows) of `layer`.

        Args:
            ids: integers (rows, choices), in the router's order. weights: (rows, choices).
            scale: what the model multiplies the sum of all routed experts with.

        Raises:
            RuntimeError: they do not fit.
        """
        rows, choices = ids.shape
        if rows > self.experts.shape[0] or choices != self.experts.shape[2] or weights.shape != ids.shape:
            raise RuntimeError(
                f"a step may hold {self.experts.shape[0]} tokens of {self.experts.shape[2]} choices; the router of a "
                f"captured layer gave {tuple(ids.shape)} experts and {tuple(weights.shape)} weights"
            )
        if self.experts.device.type == "cpu":
            self._store(layer, ids, weights, scale)
        else:
            from sparcom_extractor.capture.route_kernel import store_routes  # Triton, which the CPU does without

            store_routes(layer, ids, weights, scale, self.experts, self.weights, self.stamps)

    def _store(self, layer: int, ids: torch.Tensor, weights: torch.Tensor, scale: float) -> None:
        """The kernel's twin."""
        rows = len(ids)
        self.experts[:rows, layer].copy_(ids)
        target = self.weights[:rows, layer]
        target.copy_(weights)
        if scale != 1.0:
            target.mul_(scale)
        self.stamps[layer].add_(1)
