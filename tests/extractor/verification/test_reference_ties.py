"""Ties of ranked scores: counted, followed by the reference, and distinguished from wrong experts."""

from __future__ import annotations

from typing import Any

import pytest
from numpy.typing import NDArray

Array = NDArray[Any]
FIRST_PROMPT = 9  # tokens


class Tied:
    """A case in which two experts of a token tie, and the archive holds the one that the reference does not pick."""

    def __init__(self, case: Any, row: int, gap: float) -> None:
        import torch

        self.case, self.row = case, row
        block = case.reference._model.model.layers[0].mlp
        inputs = torch.from_numpy(case.family.inputs(case.ids[1])[0][row - FIRST_PROMPT]).float()
        router = block.gate.weight.detach()
        logits = router @ inputs
        order = logits.argsort(descending=True)
        self.last, self.next = int(order[3]), int(order[4])
        changed = router.clone()
        changed[self.next] += inputs * (logits[self.last] * (1 - gap) - logits[self.next]) / inputs.square().sum()
        router.copy_(changed)
        self.rows = self._tied_rows(changed)

    def _tied_rows(self, router: Any) -> Any:
        """Return rows of a model that runs the other expert, and continues with its output."""
        family = self.case.family
        family._model.model.layers[0].mlp.gate.weight.data.copy_(router)
        family._weights["model.layers.0.mlp.gate.weight"] = router.double().numpy()
        handle = family._model.model.layers[0].mlp.experts.register_forward_pre_hook(self._swap)
        route = family.route
        family.route = lambda inputs, layer: self._swapped(*route(inputs, layer), layer)  # type: ignore[method-assign]
        parts = []
        for index, ids in enumerate(self.case.ids):
            self.prompt = index
            parts.append(family.rows(ids))
        handle.remove()
        family.route = route  # type: ignore[method-assign]
        return self.case.rows.joined(parts)

    def _swap(self, _module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, expert, weight = inputs
        return (hidden, self._other(expert.clone()), weight)

    def _swapped(self, expert: Array, weight: Array, layer: int) -> tuple[Array, Array]:
        return (self._other(expert.copy()) if layer == 0 else expert), weight

    def _other(self, expert: Any) -> Any:
        if self.prompt == 1:
            picked = expert[self.row - FIRST_PROMPT]
            picked[picked == self.last], picked[picked == self.next] = -1, self.last
            picked[picked == -1] = self.next
        return expert


def test_a_tie_is_counted_and_followed(own_case: Any) -> None:
    """The other of two tied experts counts as a tie. Later layers and tokens are compared with a reference that ran the
    same expert."""
    tied = Tied(own_case, FIRST_PROMPT + 4, 5e-6)
    result = own_case.compare(tied.rows)
    assert (result.experts.ties, result.experts.unexplained, result.experts.weights_unexplained) == (1, 0, 0)
    assert result.differing <= 1
    assert result.unexplained == 0


def test_a_tie_changes_later_layers(own_case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the reference does not follow a tie in the first layer, many bits of later layers are unexplained."""
    from sparcom_verification.reference.experts import ExpertComparison

    tied = Tied(own_case, FIRST_PROMPT + 4, 5e-6)
    follow = ExpertComparison.follow
    monkeypatch.setattr(ExpertComparison, "follow", lambda *arguments: (follow(*arguments), arguments[-1].topk_ids)[1])
    assert own_case.compare(tied.rows).unexplained > 20


def test_other_experts_without_a_tie_are_not_followed(own_case: Any) -> None:
    """If the two scores differ, the route and bits of later layers are unexplained."""
    tied = Tied(own_case, FIRST_PROMPT + 4, 1e-2)
    result = own_case.compare(tied.rows)
    assert (result.experts.ties, result.experts.unexplained >= 1) == (0, True)
    assert result.unexplained > 20
