"""Compare the routes of an archive, and the neurons of its top-k experts, with the reference.

Two implementations may list the same experts in another order, so experts are matched by id. Differing experts are a
tie if their ranked scores tie in the reference (`routing`), and otherwise unexplained. A tie changes the hidden state
of its token and, through attention, of every later token. The reference therefore follows ties: it runs the archive's
experts with the weights of its own router, and later layers need no allowance. It follows neither unexplained experts
nor ties at positions without rows (the prompt, if only the response was captured).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from sparcom_verification.limits import WEIGHT_TOLERANCE
from sparcom_verification.reference.bits import MAX_EXAMPLES, BitComparison, rounding_bound
from sparcom_verification.reference.model import Run
from sparcom_verification.reference.moe import RoutedExperts
from sparcom_verification.reference.routing import Routing, TopkIds


@dataclass(frozen=True, slots=True)
class CapturedExperts:
    """Captured rows of the MoE layers for one instruction.

    first: position of the first row. topk_ids: int64 (rows, moe_layer, top_k). topk_weights: float32, same shape.
    active: bool (rows, moe_layer, top_k, neuron). shared: bool (rows, moe_layer, neuron), None without shared experts.
    name: describes a row and an index on the moe_layer axis.
    """

    first: int
    topk_ids: TopkIds
    topk_weights: NDArray[np.float32]
    active: NDArray[np.bool_]
    shared: NDArray[np.bool_] | None
    name: Callable[[int, int], str]


@dataclass(slots=True)
class ExpertComparison:
    """Totals of a comparison of routes (top-k sets: tokens × MoE layers), their weights and the experts' bits.

    reordered: routes with the same experts in another order. ties: routes with other experts of tied scores.
    unexplained: other routes with differing experts. weights_out_of_tolerance: weights off by more than
    `weight_tolerance`. weights_unexplained: those that rounding does not explain. largest_weight_error: absolute.
    experts, shared: bits of routed and shared experts. unjudged: decoder layers without visible scores.
    """

    dtype: str = "float32"
    routes: int = 0
    reordered: int = 0
    ties: int = 0
    unexplained: int = 0
    weights: int = 0
    weights_out_of_tolerance: int = 0
    weights_unexplained: int = 0
    largest_weight_error: float = 0.0
    experts: BitComparison = field(default_factory=BitComparison)
    shared: BitComparison = field(default_factory=BitComparison)
    unjudged: list[int] = field(default_factory=list)
    route_examples: list[str] = field(default_factory=list)
    weight_examples: list[str] = field(default_factory=list)

    @property
    def weight_tolerance(self) -> float:
        """Largest allowed difference of two weights in this dtype."""
        return WEIGHT_TOLERANCE.get(self.dtype, 0.0)

    def follow(self, captured: CapturedExperts, index: int, routing: Routing) -> TopkIds:
        """Count the routes of one MoE layer; return the experts to run, int64 (T, top_k): the captured ones in ties."""
        found, own = captured.topk_ids[:, index], routing.topk_ids[captured.first :]
        same = (np.sort(found, axis=1) == np.sort(own, axis=1)).all(axis=1)
        self.routes += len(found)
        self.reordered += int((same & (found != own).any(axis=1)).sum())
        followed = routing.topk_ids.copy()
        for row in np.flatnonzero(~same).tolist():
            token = captured.first + row
            # The reference's own experts must be possible too; otherwise its scores were misread.
            if all(routing.allows(token, topk_ids, self.dtype) for topk_ids in (found[row], own[row])):
                self.ties += 1
                followed[token] = found[row]
                continue
            self.unexplained += 1
            if len(self.route_examples) < MAX_EXAMPLES:
                experts, expected = np.sort(found[row]).tolist(), np.sort(own[row]).tolist()
                self.route_examples.append(
                    f"{captured.name(row, index)}: experts {experts}, {expected} in the reference"
                )
        return followed

    def add(self, captured: CapturedExperts, run: Run) -> None:
        """Compare weights and bits of one instruction after a run with `follow`."""
        for index, routed in enumerate(run.routed):
            self._add_weights(captured, index, routed)
            row, k, own_k = _pairs(captured, index, routed)
            expert = captured.topk_ids[row, index, k]
            for one in np.unique(expert).tolist():  # the rounding bound needs the expert's weight
                these = expert == one
                mask = torch.from_numpy(captured.active[row[these], index, k[these]])
                token = torch.from_numpy(captured.first + row[these])
                gates = routed.gates(one, token, torch.from_numpy(own_k[these]))
                self.experts.add(mask, gates, _namer(captured, index, f", expert {one}", row[these]))
        if captured.shared is not None:
            for index, gates in enumerate(run.shared):
                mask, rows = torch.from_numpy(captured.shared[:, index]), np.arange(len(captured.shared))
                self.shared.add(
                    mask, gates.rows_from(captured.first), _namer(captured, index, ", shared experts", rows)
                )

    def _add_weights(self, captured: CapturedExperts, index: int, routed: RoutedExperts) -> None:
        row, k, own_k = _pairs(captured, index, routed)
        token = captured.first + row
        found, expected = captured.topk_weights[row, index, k], routed.topk_weights[token, own_k]
        error = np.abs(found - expected)
        self.weights += len(error)
        self.largest_weight_error = float(np.maximum(self.largest_weight_error, error.max(initial=0.0)))
        off = np.flatnonzero(~(error <= self.weight_tolerance))  # NaN is off
        self.weights_out_of_tolerance += len(off)
        if not len(off):
            return
        explained = self.weight_tolerance + self._rounding(routed, token[off], expected[off])
        off = off[~(error[off] <= explained)]
        self.weights_unexplained += len(off)
        self.weight_examples.extend(
            f"{captured.name(row[at], index)}, expert {captured.topk_ids[row[at], index, k[at]]}: {found[at]:.6g} "
            f"instead of {expected[at]:.6g}"
            for at in off[: MAX_EXAMPLES - len(self.weight_examples)]
        )

    def _rounding(
        self, routed: RoutedExperts, token: NDArray[np.int64], weight: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Return how far rounding may move these weights, float64 (weights,).

        Weights are a softmax or sigmoid, scaled or normalized over the top-k. If every logit moves by at most d, the
        logarithm of a weight moves by at most 2 d. In 16 bits this bound is too wide to use, and the result is 0.
        """
        if self.dtype != "float32" or routed.router is None:
            return np.zeros(len(token))
        logits = rounding_bound(routed.inputs[torch.from_numpy(token)], routed.router).amax(dim=1)
        return np.asarray(2 * weight * logits.numpy(), dtype=np.float64)


def _pairs(captured: CapturedExperts, index: int, routed: RoutedExperts) -> tuple[NDArray[np.int64], ...]:
    """Return row, index in the captured top-k and index in the reference's top-k of every expert that both picked."""
    own = routed.topk_ids[captured.first :]
    return np.nonzero(captured.topk_ids[:, index, :, None] == own[:, None, :])


def _namer(captured: CapturedExperts, index: int, part: str, rows: NDArray[np.int64]) -> Callable[[int], str]:
    return lambda at: captured.name(int(rows[at]), index) + part
