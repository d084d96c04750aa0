"""Stored routes are the arguments of the experts, in the layer's own slice; anything else is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sparcom_data.schema import NO_EXPERT
from sparcom_extractor.capture.ops.experts import sort_by_weight_desc
from sparcom_extractor.capture.ops.step_buffers import WRITE, RouteBuffer
from sparcom_extractor.capture.ops.topk_reference import store_topk


def route_buffer(max_tokens: int = 5, layers: int = 3, top_k: int = 2, device: str = "cpu") -> RouteBuffer:
    counters = torch.zeros(layers, dtype=torch.int64, device=device)
    return RouteBuffer(top_k, counters, torch.zeros((max_tokens, layers), dtype=torch.uint8, device=device))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint32], ids=str)
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_routes_are_stored_unchanged(dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    """Ids up to 65,534 and weights in float32 are stored; other layers and later rows stay unchanged."""
    found = route_buffer()
    ids = torch.tensor([[0, 65534], [300, 7]]).to(dtype)
    weights = torch.tensor([[0.75, 0.1], [2.0, -0.0]]).to(weight_dtype)
    store_topk(found, 1, ids, weights)
    assert found.experts[:2, 1].tolist() == ids.tolist()
    assert torch.equal(found.weights[:2, 1], weights.float())
    assert found.write_counters.tolist() == [0, WRITE + 2, 0]
    assert not found.nonfinite.any()
    others = torch.ones(5, 3, dtype=torch.bool)
    others[:2, 1] = False
    assert (found.experts.numpy()[others.numpy()] == NO_EXPERT).all()
    assert np.isnan(found.weights.numpy()[others.numpy()]).all()


def test_weights_include_the_models_scale() -> None:
    """Where the model scales the sum of all experts, each weight is scaled too, in float32."""
    found = route_buffer()
    weights = torch.tensor([[0.3, 0.1]])
    store_topk(found, 0, torch.tensor([[1, 2]]), weights, scale=2.5)
    assert torch.equal(found.weights[:1, 0], weights * 2.5)


def test_an_id_without_a_local_expert_becomes_no_expert() -> None:
    """vLLM's id -1, for an expert that is not on this rank, becomes the archive's id for no expert."""
    found = route_buffer()
    store_topk(found, 0, torch.tensor([[-1, 2]], dtype=torch.int32), torch.zeros(1, 2))
    assert found.experts[0, 0].tolist() == [NO_EXPERT, 2]


@pytest.mark.parametrize(
    ("ids", "weights"), [((6, 2), (6, 2)), ((2, 3), (2, 3)), ((2, 2), (2, 1)), ((2, 2), (1, 2))], ids=str
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_routes_that_do_not_fit_are_refused(device: str, ids: Any, weights: Any) -> None:
    """Too many rows, another top_k or another shape of the weights is refused by the shapes alone, on any device. A
    kernel would silently write out of bounds. The write counter stays, and the reason is kept.
    """
    found = route_buffer(5, 3, 2, device)
    store_topk(found, 0, torch.zeros(ids, dtype=torch.int32, device=device), torch.zeros(weights, device=device))
    assert "5 tokens with top_k 2; the router of a captured layer gave" in (found.problem or "")
    if device == "cpu":
        assert found.write_counters.tolist() == [0, 0, 0]


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_weights_and_logits_that_are_not_finite_flag_their_row(wrong: float) -> None:
    """A nonfinite weight, or a finite weight with a nonfinite logit, flags its row."""
    found = route_buffer()
    weights, logits = torch.ones(4, 2), torch.zeros(4, 7)
    weights[1, 1], logits[3, 6] = wrong, wrong
    store_topk(found, 2, torch.zeros(4, 2, dtype=torch.int32), weights, 1.5, logits)
    assert found.nonfinite.tolist() == [[0, 0, int(row in (1, 3))] for row in range(5)]
    store_topk(found, 0, torch.zeros(4, 2, dtype=torch.int32), torch.ones(4, 2), 1.5, logits[:3])
    assert found.write_counters.tolist() == [WRITE + 4, 0, WRITE + 4], "logits of other rows are left out"


def test_the_expert_of_largest_weight_comes_first() -> None:
    """The top-k experts are sorted by descending weight, ids with their weights; equal weights keep their order."""
    ids, weights = sort_by_weight_desc(
        torch.tensor([[5, 9, 1], [4, 3, 2]]), torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.5, 0.6]])
    )
    assert ids.tolist() == [[9, 1, 5], [2, 4, 3]]
    assert torch.equal(weights, torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.5, 0.5]]))
