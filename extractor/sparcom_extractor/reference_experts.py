"""Do an archive's routes and the neurons of its chosen experts agree with the reference?

Two implementations may list one choice in another order, so choices are compared as maps from expert to weight and
mask; how many rows are ordered otherwise is told apart. Where the sets differ, a choice that swaps experts whose scores
tie in the reference (`reference_choice`) is counted as a tie, any other as unexplained. A tie changes the hidden state
of its token, and through attention that of every later one, so the reference is made to follow it: there it runs the
archive's experts, with the weights that it would give them, and everything after rests on the same choice and is
compared without allowance. An unexplained choice is not followed; what it changes later counts against the archive.

Steps, at every mixture of experts in layer order: 1. `Follower` compares the sets and answers with the choice to run.
2. After the run `ExpertComparison.add` compares weights and bits of the experts that both have. Ties in rows that the
archive does not hold (the prompt, where only the response was captured) cannot be seen and so not be followed.
Knows arrays, no model and no archive.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from sparcom_extractor.reference_bits import Bits, rounding_bound
from sparcom_extractor.reference_choice import (
    Tolerance,
    could_be_chosen,
    weight_factor,
    weight_slope,
    weights_of_choice,
)
from sparcom_extractor.reference_model import Choice, Gates, Routed

# How far two combine weights may be apart. In float32 also as far as rounding of the router's logits explains, by the
# bound that bits are judged by: of 9,564 tokens of the mixture made of SmolLM2 one, in which roundings grow through the
# layers, reached 172 of its 256 units (4.9e-5 in the last layer), most stay within 7. Of 16-bit types: what 999 of
# 1,000 weights of tiny models keep to between transformers in that type and in float32 (at most 0.039 and 0.28; of the
# mixture made of SmolLM2 0.003 and 0.023).
WEIGHT_TOLERANCE = {"float32": 1e-5, "float16": 4e-2, "bfloat16": 0.25}


@dataclass(frozen=True, slots=True)
class CapturedExperts:
    """What an archive holds of the mixtures, for the `rows` captured tokens of one instruction.

    expert: uint16 (rows, moe_layer, choice); weight: float32, likewise; active: bool (rows, moe_layer, choice, neuron);
    shared: bool (rows, moe_layer, neuron), None without shared experts.
    """

    expert: NDArray[np.uint16]
    weight: NDArray[np.float32]
    active: NDArray[np.bool_]
    shared: NDArray[np.bool_] | None = None


@dataclass(slots=True)
class ExpertComparison:
    """What a comparison of mixtures of experts found. A route is the choice for one token in one layer.

    routes: those compared. reordered: of them, the same experts in another order. ties: other experts, which score
    alike in the reference. unexplained: other experts, which do not. weights: combine weights compared.
    apart_weights: those off by more than `weight_tolerance`. off_weights: of them, those that rounding does not
    explain. largest_weight: how far the worst is off.
    experts, shared: bits of the routed and the shared experts.
    """

    dtype: str = "float32"
    routes: int = 0
    reordered: int = 0
    ties: int = 0
    unexplained: int = 0
    weights: int = 0
    apart_weights: int = 0
    off_weights: int = 0
    largest_weight: float = 0.0
    experts: Bits = field(default_factory=Bits)
    shared: Bits = field(default_factory=Bits)

    @property
    def weight_tolerance(self) -> float:
        """How far two combine weights of this dtype may be apart."""
        return WEIGHT_TOLERANCE.get(self.dtype, 0.0)

    def follower(self, captured: CapturedExperts, first: int) -> Follower:
        """Counts one instruction's routes while the reference runs; its captured rows begin at token `first`."""
        return Follower(self, captured.expert.astype(np.int64), first)

    def add(self, captured: CapturedExperts, routed: list[Routed], shared: list[Gates], first: int) -> None:
        """Compare weights and bits of one instruction, after the reference ran it with `follower`."""
        for place, layer in enumerate(routed):
            pairs = _Pairs.of(captured.expert[:, place].astype(np.int64), layer.choice.expert[first:])
            self._add_weights(captured.weight[:, place], layer, pairs, first)
            self._add_bits(captured.active[:, place], layer, pairs, first)
        for place, gates in enumerate(shared if captured.shared is not None else []):
            assert captured.shared is not None  # noqa: S101  (the loop is empty otherwise)
            mask = torch.from_numpy(captured.shared[:, place])
            self.shared.compare(mask, gates.inputs[first:], gates.gate[first:], gates.weight)

    def _add_weights(self, captured: NDArray[np.float32], layer: Routed, pairs: _Pairs, first: int) -> None:
        weight = layer.choice.weight[first:]
        apart = np.abs(captured[pairs.row, pairs.captured] - weight[pairs.row, pairs.reference])
        beyond = ~(apart <= self.weight_tolerance)  # NaN is off
        self.weights += len(apart)
        self.apart_weights += int(beyond.sum())
        if len(apart):
            self.largest_weight = float(np.maximum(self.largest_weight, apart.max()))
        if beyond.any():
            allowed = self._rounding(layer, first + pairs.row[beyond], pairs.reference[beyond])
            self.off_weights += int((~(apart[beyond] <= self.weight_tolerance + allowed)).sum())

    def _rounding(self, layer: Routed, token: NDArray[np.int64], place: NDArray[np.int64]) -> NDArray[np.float64]:
        """How far rounding may move these weights: float64 (weights,). In 16 bits the bound is no bound."""
        if self.dtype != "float32":
            return np.zeros(len(token))
        choice = layer.choice
        factor = weight_factor(choice.scores[token], choice.expert[token], choice.weight[token])
        slope = weight_slope(choice.weight[token], factor)[np.arange(len(token)), place]
        logits = rounding_bound(layer.inputs[torch.from_numpy(token)], layer.router).amax(dim=1)
        return np.asarray(slope * logits.numpy(), dtype=np.float64)

    def _add_bits(self, captured: NDArray[np.bool_], layer: Routed, pairs: _Pairs, first: int) -> None:
        """By expert, since a bound is a product with the expert's weights."""
        for expert in np.unique(pairs.expert):
            these = pairs.expert == expert
            rows, tokens = pairs.row[these], torch.from_numpy(first + pairs.row[these])
            gate = layer.gate[tokens, torch.from_numpy(pairs.reference[these])]
            mask = torch.from_numpy(captured[rows, pairs.captured[these]])
            self.experts.compare(mask, layer.inputs[tokens], gate, layer.weight[int(expert)])


class Follower:
    """A `Follow`: counts routes against the archive's, and has the reference take the archive's where scores tie."""

    def __init__(self, result: ExpertComparison, expert: NDArray[np.int64], first: int) -> None:
        self._result = result
        self._expert = expert
        self._first = first
        self._tolerance = Tolerance.of(result.dtype)

    def __call__(self, place: int, choice: Choice) -> Choice:
        captured, own = self._expert[:, place], choice.expert[self._first :]
        same = (np.sort(captured, axis=1) == np.sort(own, axis=1)).all(axis=1)
        self._result.routes += len(captured)
        self._result.reordered += int((same & (captured != own).any(axis=1)).sum())
        expert, weight = choice.expert.copy(), choice.weight.copy()
        for row in np.flatnonzero(~same):
            token = self._first + int(row)
            if not self._tied(choice, token, captured[row]):
                self._result.unexplained += 1
                continue
            self._result.ties += 1
            expert[token] = captured[row]
            weight[token] = weights_of_choice(
                choice.scores[token], captured[row], choice.expert[token], choice.weight[token]
            )
        return replace(choice, expert=expert, weight=weight)

    def _tied(self, choice: Choice, token: int, captured: NDArray[np.int64]) -> bool:
        """Both choices must be such as the scores allow: where the reference's own is not, they are not understood."""
        return all(
            could_be_chosen(choice.scores[token], chosen, choice.groups, self._tolerance)
            for chosen in (captured, choice.expert[token])
        )


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Experts that both chose, int64 (pairs,) each: the row, the expert, and its place in either choice."""

    row: NDArray[np.int64]
    expert: NDArray[np.int64]
    captured: NDArray[np.int64]
    reference: NDArray[np.int64]

    @classmethod
    def of(cls, captured: NDArray[np.int64], reference: NDArray[np.int64]) -> _Pairs:
        """Of two choices, int64 (rows, choices). An expert that one names twice is paired twice."""
        row, left, right = np.nonzero(captured[:, :, None] == reference[:, None, :])
        return cls(row, captured[row, left], left, right)
