"""The reference runs attention eagerly if transformers' sdpa does not support it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"attn_logit_softcapping": 50.0}, True),
        ({"attn_logit_softcapping": None, "final_logit_softcapping": None}, False),
        ({"attention_sink_size": 4}, True),
        ({"sliding_window": 4096}, False),
    ],
)
def test_configurations_that_need_eager_attention(config: dict[str, Any], expected: bool) -> None:
    """Soft-capping and sinks need it; a window is a mask, which every implementation supports."""
    from sparcom_verification.reference.model import needs_eager_attention

    assert needs_eager_attention(config) is expected


def test_soft_capping_is_computed(tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma-2's gates equal those of a model with an explicit cap, and differ without the cap."""
    import torch
    from transformers.models.gemma2 import modeling_gemma2

    from sparcom_verification.reference.model import ReferenceModel

    ids = np.arange(5, 60, dtype=np.int32)

    def gates() -> Any:
        reference = ReferenceModel(str(tiny_model("gemma2")), "float32", [0, 1, 2])
        return torch.stack([gates.gate for gates in reference.run(ids).dense])

    def written_out(
        module: Any, query: Any, key: Any, value: Any, mask: Any, *, cap: float, scaling: float, **_: Any
    ) -> tuple[Any, None]:
        key, value = (part.repeat_interleave(2, dim=1) for part in (key, value))
        scores = torch.tanh(query @ key.mT * scaling / cap) * cap
        causal = torch.ones(scores.shape[-2:]).tril().bool()
        return (scores.masked_fill(~causal, -torch.inf).softmax(dim=-1) @ value).transpose(1, 2), None

    found = gates()
    for cap, same in ((1.0, True), (1e6, False)):
        monkeypatch.setattr(modeling_gemma2, "eager_attention_forward", partial(written_out, cap=cap))
        assert torch.allclose(gates(), found, atol=1e-3) is same
