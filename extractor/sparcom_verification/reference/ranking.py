"""Record the scores that a router of transformers ranks, and let a caller decide between tied experts.

Every router of transformers 5 picks its experts by `torch.topk` over (T, experts). `Ranking` is active while the MoE
block runs and sees that call, whatever the scoring function, bias and groups:

1. The input of the call is the ranked scores. Where it was made by `masked_fill` (group-limited routing) the input of
   that is kept, and the scores of the groups are the input of the `topk` before it.
2. Raw logits are turned into a softmax, which ranks alike, so that one tolerance holds.
3. `decide` may return other experts. The router goes on with them and computes their weights by its own rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode

from sparcom_verification.reference.choice import Choice, Groups

Decide = Callable[[Choice], NDArray[np.int64]]
"""Given what a router ranks and its own top-k: the experts to run, int64 (T, top_k)."""


class Ranking(TorchFunctionMode):
    """Watches one MoE block; `decide` is called at each `topk` over the experts."""

    def __init__(self, experts: int, decide: Decide) -> None:
        super().__init__()
        self._experts, self._decide = experts, decide
        self._normalized = False  # a softmax or a sigmoid was applied: the scores are no raw logits
        self._masked: tuple[Any, Any] = (None, None)  # result and input of the last masked_fill
        self._groups: tuple[torch.Tensor, int] | None = None

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Call the function; look at `topk` and at what makes its input."""
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in ("softmax", "sigmoid"):
            self._normalized = True
        elif name == "masked_fill":
            self._masked = (result, args[0])
        elif name == "topk" and args[0].dim() == 2:
            return self._seen(args[0], result)
        return result

    def _seen(self, scores: torch.Tensor, result: Any) -> Any:
        """Look at one `topk` over (T, groups) or (T, experts); return what the router is to go on with."""
        own = result.indices
        masked, before = self._masked
        if scores.shape[1] != self._experts:
            self._groups = (scores, own.shape[1])
            return result
        ranked = before if scores is masked else scores
        expert = torch.from_numpy(self._decide(self._choice(ranked, own, grouped=scores is masked)))
        if torch.equal(expert, own):
            return result
        return torch.return_types.topk((ranked.gather(1, expert), expert))

    def _choice(self, ranked: torch.Tensor, own: torch.Tensor, *, grouped: bool) -> Choice:
        scores = ranked.float() if self._normalized else ranked.float().softmax(dim=-1)
        groups = Groups(self._groups[0].float().numpy(), self._groups[1]) if grouped and self._groups else None
        total = scores.sum(dim=-1)
        probabilities = bool((scores >= 0).all() and torch.allclose(total, torch.ones_like(total), atol=1e-2))
        return Choice(own.long().numpy(), scores.numpy(), groups, probabilities)
