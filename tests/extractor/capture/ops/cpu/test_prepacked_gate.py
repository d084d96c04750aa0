"""Gates computed from vLLM's prepacked weights equal gates from the original weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

from sparcom_data.errors import UnsupportedModelError
from sparcom_extractor.capture.ops.cpu import prepacked_gate
from sparcom_extractor.capture.ops.cpu.prepacked_gate import PrepackedGate, check_packing


def packed_by_vllm(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Pad gate and up (experts, neurons, hidden) to 32 neurons and pack them with vLLM's own kernel."""
    from vllm._custom_ops import cpu_prepack_moe_weight

    missing = -gate.shape[1] % 32
    padded = [torch.nn.functional.pad(half, (0, 0, 0, missing)) for half in (gate, up)]
    return cpu_prepack_moe_weight(torch.cat(padded, dim=1), "vec")


def unpacked(masks: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return np.unpackbits(masks, axis=-1, bitorder="little").astype(bool)


def random_ids(tokens: int, experts: int, top_k: int, generator: torch.Generator) -> torch.Tensor:
    return torch.stack([torch.randperm(experts, generator=generator)[:top_k] for _ in range(tokens)]).int()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("neurons", "hidden", "top_k"), [(32, 32, 1), (112, 64, 4), (70, 96, 3)])
def test_masks_are_those_of_the_weights_before_packing(
    neurons: int, hidden: int, top_k: int, dtype: torch.dtype
) -> None:
    """For each token and expert, in the order of the ids, masks are the signs of that expert's gate; spare bits are
    0."""
    generator = torch.Generator().manual_seed(neurons)
    gate, up = (torch.randn(6, neurons, hidden, generator=generator).to(dtype) for _ in range(2))
    rows = torch.randn(40, hidden, generator=generator).to(dtype)
    ids = random_ids(40, 6, top_k, generator)
    masks, nonfinite = PrepackedGate(packed_by_vllm(gate, up), neurons, "vec").masks(rows, ids)
    assert not nonfinite.any()
    expected = torch.einsum("rh,rcnh->rcn", rows.double(), gate[ids.long()].double()) > 0
    got = unpacked(masks)
    assert not got[:, neurons:].any()
    np.testing.assert_array_equal(got[:, :neurons], expected.reshape(-1, neurons).numpy())


def test_bias_and_threshold_are_applied() -> None:
    """A neuron is active where gate plus bias exceeds the threshold."""
    gate = torch.zeros(2, 32, 32)
    bias = torch.arange(128.0).view(2, 64) % 7 - 3
    gates = PrepackedGate(packed_by_vllm(gate, gate), 32, "vec", bias, active_above=1.0)
    masks, _ = gates.masks(torch.ones(2, 32), torch.tensor([[1], [0]]))
    np.testing.assert_array_equal(unpacked(masks), (bias[[1, 0], :32] > 1).numpy())


@pytest.mark.parametrize(
    ("neurons", "hidden", "top_k", "tokens"), [(70, 32, 3, 0), (70, 32, 3, 1), (112, 96, 2, 61), (256, 160, 4, 300)]
)
def test_masks_and_flags_with_a_bias(neurons: int, hidden: int, top_k: int, tokens: int) -> None:
    """With a bias, noncontiguous rows and groups of any size, masks are right. A NaN flags only its own token."""
    generator = torch.Generator().manual_seed(tokens)
    gate, up = (torch.randn(7, neurons, hidden, generator=generator) for _ in range(2))
    packed = packed_by_vllm(gate, up)
    bias = torch.randn(7, packed.shape[1], generator=generator)
    rows = torch.randn(tokens, 2 * hidden, generator=generator)[:, :hidden]
    ids = random_ids(tokens, 7, top_k, generator) if tokens else torch.zeros(0, top_k, dtype=torch.int32)
    if tokens:
        rows[tokens // 2, 3] = torch.nan
    masks, nonfinite = PrepackedGate(packed, neurons, "vec", bias, active_above=0.25).masks(rows, ids)
    assert np.flatnonzero(nonfinite).tolist() == [tokens // 2 * top_k + n for n in range(top_k)] * bool(tokens)
    exact = torch.einsum("rh,rcnh->rcn", rows.double(), gate[ids.long()].double()) + bias[ids.long(), :neurons]
    exact = exact.reshape(-1, neurons)
    sure = ((exact - 0.25).abs() > 1e-4).numpy() | exact.isnan().numpy()
    assert sure.sum() > 0.99 * sure.size or not tokens
    np.testing.assert_array_equal(unpacked(masks)[:, :neurons][sure], (exact > 0.25).numpy()[sure])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_a_weight_that_is_not_finite_flags_the_rows_of_its_expert(dtype: torch.dtype, wrong: float) -> None:
    """One bad weight of one neuron of expert 2 flags every (token, k) of that expert and no other."""
    generator = torch.Generator().manual_seed(8)
    gate = torch.randn(5, 70, 32, generator=generator)
    gate[2, 69, 7] = wrong
    up = torch.randn(5, 70, 32, generator=generator)
    up[1] = wrong  # the up half does not matter
    rows = torch.randn(21, 32, generator=generator)
    ids = random_ids(21, 5, 2, generator)
    gates = PrepackedGate(packed_by_vllm(gate.to(dtype), up.to(dtype)), 70, "vec")
    _, nonfinite = gates.masks(rows.to(dtype), ids)
    assert nonfinite.tolist() == (ids.reshape(-1) == 2).tolist()


def test_experts_that_no_token_selects_are_not_computed() -> None:
    """One product runs per selected expert, over the rows that selected it."""
    seen: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "_linear_pointwise" in str(func):
                seen.append(len(args[0]))
            return func(*args, **(kwargs or {}))

    ones = torch.ones(8, 32, 32)
    gate = PrepackedGate(packed_by_vllm(ones, ones), 32, "vec")
    with Watch():
        gate.masks(torch.ones(3, 32), torch.tensor([[5, 2], [2, 7], [5, 2]]))
    assert seen == [3, 2, 1]


def test_the_installed_vllm_packs_as_expected() -> None:
    """The packing is compared with vLLM's own kernel when a model is loaded."""
    check_packing(packed_by_vllm(torch.ones(2, 112, 48), torch.ones(2, 112, 48)), "vec")


@pytest.mark.parametrize("shape", [(2, 48, 32), (2, 64, 32)])
def test_another_packing_is_refused(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    """A gate that ends within a packed block, or a vLLM that packs differently, is refused with an error."""
    if shape[1] % 32 == 0:
        monkeypatch.setattr(prepacked_gate, "PACKED_ROWS", 8)
    with pytest.raises(UnsupportedModelError, match="in another way"):
        check_packing(torch.ones(shape), "vec")
