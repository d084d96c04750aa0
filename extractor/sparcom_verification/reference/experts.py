"""Do an archive's routes and the neurons of its top-k experts agree with the reference?

Two implementations may list the same experts in another order, so a route is compared as a map from expert to weight
and mask; rows of another order are counted apart. Where the sets differ, experts whose ranked scores tie in the
reference (`reference_choice`) are counted as a tie, any others as unexplained. A tie changes the hidden state of its
token, and through attention that of every later one, so the reference follows it: it runs the archive's experts, with
the weights that its router gives them, and everything after is compared without allowance. Unexplained experts are not
followed; what they change later counts against the archive. Where ties cannot be judged nothing is a tie.

Steps, at every MoE layer: 1. `Follower` compares the sets and returns the experts to run. 2. After the run
`ExpertComparison.add` compares weights and bits of the experts that both have. Ties in rows that the archive does not
hold (the prompt, where only the response was captured) cannot be seen and so not be followed.
It takes arrays and does not depend on a model or an archive.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from sparcom_verification.reference.bits import MOST_EXAMPLES, Bits, rounding_bound
from sparcom_verification.reference.choice import Choice
from sparcom_verification.reference.model import Gates
from sparcom_verification.reference.moe import Routed

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
    name: names a row and an index of the moe_layer axis, for findings; shared: bool (rows, moe_layer, neuron), None
    without shared experts.
    """

    expert: NDArray[np.uint16]
    weight: NDArray[np.float32]
    active: NDArray[np.bool_]
    name: Callable[[int, int], str]
    shared: NDArray[np.bool_] | None = None


@dataclass(slots=True)
class ExpertComparison:
    """What a comparison of mixtures of experts found. A route is the choice for one token in one layer.

    routes: those compared. reordered: of them, the same experts in another order. ties: other experts, which score
    alike in the reference. unexplained: other experts, which do not. weights: combine weights compared.
    apart_weights: those off by more than `weight_tolerance`. off_weights: of them, those that rounding does not
    explain. largest_weight: how far the worst is off.
    experts, shared: bits of the routed and the shared experts.
    unjudged: MoE layers whose ties cannot be judged, numbered as in the model.
    route_examples, weight_examples: some routes that are unexplained, some weights that are off.
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
    unjudged: list[int] = field(default_factory=list)
    route_examples: list[str] = field(default_factory=list)
    weight_examples: list[str] = field(default_factory=list)

    @property
    def weight_tolerance(self) -> float:
        """How far two combine weights of this dtype may be apart."""
        return WEIGHT_TOLERANCE.get(self.dtype, 0.0)

    def follower(self, captured: CapturedExperts, first: int) -> Follower:
        """Return the `Follow` that counts one instruction's routes; its captured rows begin at token `first`."""
        return Follower(self, captured, first)

    def add(self, captured: CapturedExperts, routed: list[Routed], shared: list[Gates], first: int) -> None:
        """Compare weights and bits of one instruction, after the reference ran it with `follower`."""
        for place, layer in enumerate(routed):
            pairs = _Pairs.of(captured.expert[:, place].astype(np.int64), layer.expert[first:])
            self._add_weights(captured, place, layer, pairs, first)
            self._add_bits(captured, place, layer, pairs, first)
        for place, gates in enumerate(shared if captured.shared is not None else []):
            assert captured.shared is not None  # noqa: S101  (the loop is empty otherwise)
            mask = torch.from_numpy(captured.shared[:, place])
            name = _Named(captured.name, place, ", shared experts")
            self.shared.compare(mask, gates.inputs[first:], gates.gate[first:], gates.weight, name)

    def _add_weights(self, captured: CapturedExperts, place: int, layer: Routed, pairs: _Pairs, first: int) -> None:
        found = captured.weight[pairs.row, place, pairs.captured]
        expected = layer.topk_weights[first + pairs.row, pairs.reference]
        apart = np.abs(found - expected)
        beyond = np.flatnonzero(~(apart <= self.weight_tolerance))  # NaN is off
        self.weights += len(apart)
        self.apart_weights += len(beyond)
        if len(apart):
            self.largest_weight = float(np.maximum(self.largest_weight, apart.max()))
        if len(beyond):
            allowed = self._rounding(layer, first + pairs.row[beyond], pairs.reference[beyond])
            off = beyond[~(apart[beyond] <= self.weight_tolerance + allowed)]
            self.off_weights += len(off)
            self.weight_examples.extend(
                f"{captured.name(pairs.row[pair], place)}, expert {pairs.expert[pair]}: {found[pair]:.6g} in place of "
                f"{expected[pair]:.6g}"
                for pair in off[: MOST_EXAMPLES - len(self.weight_examples)]
            )

    def _rounding(self, layer: Routed, token: NDArray[np.int64], place: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return how far rounding may move these weights: float64 (weights,). In 16 bits the bound is no bound.

        Where every logit moves by at most d, the logarithm of a weight moves by at most 2 d: a softmax or sigmoid,
        scaled or normalized over the top-k.
        """
        if self.dtype != "float32" or layer.router is None:
            return np.zeros(len(token))
        logits = rounding_bound(layer.inputs[torch.from_numpy(token)], layer.router).amax(dim=1)
        return np.asarray(2 * layer.topk_weights[token, place] * logits.numpy(), dtype=np.float64)

    def _add_bits(self, captured: CapturedExperts, place: int, layer: Routed, pairs: _Pairs, first: int) -> None:
        """Compare expert by expert, since a bound is a product with the expert's weights."""
        for expert in np.unique(pairs.expert):
            these = pairs.expert == expert
            rows, tokens = pairs.row[these], torch.from_numpy(first + pairs.row[these])
            places = torch.from_numpy(pairs.reference[these])
            mask = torch.from_numpy(captured.active[rows, place, pairs.captured[these]])
            inputs, gate = layer.expert_inputs(tokens, places), layer.gate[tokens, places]
            name = _Named(captured.name, place, f", expert {expert}", rows)
            self.experts.compare(mask, inputs, gate, layer.weight[int(expert)], name)


@dataclass(frozen=True, slots=True)
class _Named:
    """Names a row of one MoE layer; `rows` are the captured rows that are compared, all where not given."""

    name: Callable[[int, int], str]
    place: int
    what: str
    rows: NDArray[np.int64] | None = None

    def __call__(self, row: int) -> str:
        return self.name(row if self.rows is None else int(self.rows[row]), self.place) + self.what


class Follower:
    """A `Follow`: counts routes against the archive's; where experts tie the reference runs the archive's."""

    def __init__(self, result: ExpertComparison, captured: CapturedExperts, first: int) -> None:
        self._result, self._captured, self._first = result, captured, first
        self._expert = captured.expert.astype(np.int64)

    def __call__(self, place: int, choice: Choice) -> NDArray[np.int64]:
        """Return the experts to run, int64 (T, top_k)."""
        captured, own = self._expert[:, place], choice.expert[self._first :]
        same = (np.sort(captured, axis=1) == np.sort(own, axis=1)).all(axis=1)
        self._result.routes += len(captured)
        self._result.reordered += int((same & (captured != own).any(axis=1)).sum())
        expert = choice.expert.copy()
        for row in np.flatnonzero(~same):
            token = self._first + int(row)
            if self._tied(choice, token, captured[row]):
                self._result.ties += 1
                expert[token] = captured[row]
            else:
                self._unexplained(int(row), place, own[row])
        return expert

    def _tied(self, choice: Choice, token: int, captured: NDArray[np.int64]) -> bool:
        """Both must be possible: where the reference's own experts are not, its scores are not understood."""
        return all(choice.allows(token, chosen, self._result.dtype) for chosen in (captured, choice.expert[token]))

    def _unexplained(self, row: int, place: int, own: NDArray[np.int64]) -> None:
        self._result.unexplained += 1
        if len(self._result.route_examples) < MOST_EXAMPLES:
            captured = np.sort(self._expert[row, place]).tolist()
            self._result.route_examples.append(
                f"{self._captured.name(row, place)}: experts {captured}, {np.sort(own).tolist()} in the reference"
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
