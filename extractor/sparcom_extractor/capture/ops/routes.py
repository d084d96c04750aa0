"""The buffer that holds what the routers of one step chose.

    a layer's experts are called with (ids, weights) ──▶ experts[:rows, layer], weights[:rows, layer], writes[layer]
    where a weight or a router's logit is not finite ──▶ flags[:rows, layer]

Like the masks it lies at fixed addresses, and rows past the step's tokens are stale. It does not know how a router
chooses: ids and weights are taken where the experts get them, after all normalisation, and so are the ones that the
model combines its experts with. Where the model scales what all routed experts say together, that factor belongs to
the weights too. On a device one kernel stores a layer's routes (`route_kernel.py`); on the CPU torch does, its twin.
"""

from __future__ import annotations

import torch

from sparcom_data.schema import NO_EXPERT
from sparcom_extractor.capture.ops.buffer import WRITE


class RouteBuffer:
    """Routes of one step.

    experts: uint16 (max_tokens, layers, choices). weights: float32, likewise. writes, flags, problem: as those of
    `CaptureBuffer`; a row is flagged where a weight or a logit is not finite.
    """

    def __init__(
        self, max_tokens: int, layers: int, choices: int, writes: torch.Tensor, flags: torch.Tensor | None = None
    ) -> None:
        shape, device = (max_tokens, layers, choices), writes.device
        self.experts = torch.full(shape, NO_EXPERT, dtype=torch.int32, device=device).to(torch.uint16)
        self.weights = torch.full(shape, torch.nan, dtype=torch.float32, device=device)
        self.writes = writes
        self.flags = torch.zeros((max_tokens, layers), dtype=torch.uint8, device=device) if flags is None else flags
        self.problem: str | None = None

    def store(
        self,
        layer: int,
        ids: torch.Tensor,
        weights: torch.Tensor,
        scale: float = 1.0,
        logits: torch.Tensor | None = None,
    ) -> None:
        """Take the routes of rows [0, rows) of `layer`.

        Args:
            ids: integers (rows, choices), in the router's order. weights: (rows, choices).
            scale: what the model multiplies the sum of all routed experts with.
            logits: of the router, (rows, experts), where they are known.

        Where they do not fit, nothing is written but `problem`, and the write counter tells.
        """
        rows, choices = ids.shape
        if logits is not None and logits.shape[:1] != ids.shape[:1]:
            logits = None  # of other rows: the weights are looked at all the same
        if rows > self.experts.shape[0] or choices != self.experts.shape[2] or weights.shape != ids.shape:
            self.problem = (
                f"a step may hold {self.experts.shape[0]} tokens of {self.experts.shape[2]} choices; the router of a "
                f"captured layer gave {tuple(ids.shape)} experts and {tuple(weights.shape)} weights"
            )
        elif self.experts.device.type == "cpu":
            self._store(layer, ids, weights, scale, logits)
        else:
            from sparcom_extractor.capture.ops.route_kernel import store_routes  # Triton, which the CPU does without

            store_routes(layer, ids, weights, scale, self.experts, self.weights, self.writes, self.flags, logits)

    def _store(
        self, layer: int, ids: torch.Tensor, weights: torch.Tensor, scale: float, logits: torch.Tensor | None
    ) -> None:
        """The kernel's CPU reference."""
        rows = len(ids)
        self.experts[:rows, layer].copy_(ids)
        target = self.weights[:rows, layer]
        target.copy_(weights)
        if scale != 1.0:
            target.mul_(scale)
        nonfinite = ~torch.isfinite(target).all(dim=1)
        if logits is not None:
            nonfinite |= ~torch.isfinite(logits).all(dim=1)
        self.flags[:rows, layer] |= nonfinite
        self.writes[layer].add_(WRITE + rows)
