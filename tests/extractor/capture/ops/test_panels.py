"""Gates computed from the weights that vLLM packed, against the weights before they were packed."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from sparcom_data.errors import UnsupportedModelError
from sparcom_extractor.capture.ops import panels
from sparcom_extractor.capture.ops.cores import process_cores, run_shares
from sparcom_extractor.capture.ops.panels import PanelGate, check_packing


def packed_by_vllm(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """What vLLM makes of gate and up, (experts, neurons, hidden): padded to 32 neurons and packed by its own kernel."""
    from vllm._custom_ops import cpu_prepack_moe_weight

    missing = -gate.shape[1] % 32
    padded = [torch.nn.functional.pad(half, (0, 0, 0, missing)) for half in (gate, up)]
    return cpu_prepack_moe_weight(torch.cat(padded, dim=1), "vec")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("neurons", "hidden", "choices"), [(32, 32, 1), (112, 64, 4), (70, 96, 3)])
def test_masks_are_those_of_the_weights_before_packing(
    neurons: int, hidden: int, choices: int, dtype: torch.dtype
) -> None:
    """For each token and choice, in the order of the ids, the signs of that expert's own gate; spare bits are 0."""
    generator = torch.Generator().manual_seed(neurons)
    gate, up = (torch.randn(6, neurons, hidden, generator=generator).to(dtype) for _ in range(2))
    rows = torch.randn(40, hidden, generator=generator).to(dtype)
    ids = torch.stack([torch.randperm(6, generator=generator)[:choices] for _ in range(40)]).int()
    masks, nonfinite = PanelGate(packed_by_vllm(gate, up), neurons).masks(rows, ids)
    assert not nonfinite.any()
    expected = torch.einsum("rh,rcnh->rcn", rows.double(), gate[ids.long()].double()) > 0
    got = np.unpackbits(masks, axis=-1, bitorder="little").astype(bool)
    assert not got[:, neurons:].any()
    np.testing.assert_array_equal(got[:, :neurons], expected.reshape(-1, neurons).numpy())


def test_a_bias_and_a_threshold_are_heeded() -> None:
    """A neuron is active where gate and bias together are above the threshold."""
    gate = torch.zeros(2, 32, 32)
    bias = torch.arange(128.0).view(2, 64) % 7 - 3
    masks, _ = PanelGate(packed_by_vllm(gate, gate), 32, bias, above=1.0).masks(
        torch.ones(2, 32), torch.tensor([[1], [0]])
    )
    got = np.unpackbits(masks, axis=-1, bitorder="little").astype(bool)
    np.testing.assert_array_equal(got, (bias[[1, 0], :32] > 1).numpy())


@pytest.mark.parametrize(
    ("neurons", "hidden", "choices", "tokens"), [(70, 32, 3, 1), (112, 96, 2, 61), (256, 160, 4, 300)]
)
def test_both_ways_give_the_same_bits(neurons: int, hidden: int, choices: int, tokens: int) -> None:
    """Our machine code and torch, with a bias, rows that lie apart, groups of any size, on one thread and several."""
    generator = torch.Generator().manual_seed(tokens)
    gate, up = (torch.randn(7, neurons, hidden, generator=generator) for _ in range(2))
    packed = packed_by_vllm(gate, up)
    bias = torch.randn(7, packed.shape[1], generator=generator)
    gates = PanelGate(packed, neurons, bias, above=0.25)
    rows = torch.randn(tokens, 2 * hidden, generator=generator)[:, :hidden]
    ids = torch.stack([torch.randperm(7, generator=generator)[:choices] for _ in range(tokens)]).int()
    rows[tokens // 2, 3] = torch.nan  # its gates, and no others
    fast, nonfinite = gates.masks(rows, ids)
    assert np.flatnonzero(nonfinite).tolist() == [tokens // 2 * choices + choice for choice in range(choices)]
    for place, expert in enumerate(ids.reshape(-1).tolist()):
        slow = gates._of_expert(expert, rows[place // choices : place // choices + 1])
        np.testing.assert_array_equal(fast[place], slow[0][0])
        assert slow[1].tolist() == [nonfinite[place]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_a_weight_that_is_not_finite_flags_who_chose_its_expert(dtype: torch.dtype, wrong: float) -> None:
    """One weight of one neuron of expert 2: every (token, choice) of that expert and no other, by both ways."""
    generator = torch.Generator().manual_seed(8)
    gate = torch.randn(5, 70, 32, generator=generator)
    gate[2, 69, 7] = wrong
    up = torch.randn(5, 70, 32, generator=generator)
    up[1] = wrong  # the up half does not matter
    rows = torch.randn(21, 32, generator=generator)
    ids = torch.stack([torch.randperm(5, generator=generator)[:2] for _ in range(21)]).int()
    gates = PanelGate(packed_by_vllm(gate.to(dtype), up.to(dtype)), 70)
    _, nonfinite = gates.masks(rows.to(dtype), ids)
    assert nonfinite.tolist() == (ids.reshape(-1) == 2).tolist()


def test_work_is_shared_without_gaps() -> None:
    """Shares begin and end on borders, follow one another, and an error of one reaches the caller."""
    seen: list[tuple[int, int]] = []
    run_shares(lambda first, stop: seen.append((first, stop)), 10, 4)
    assert [place for first, stop in sorted(seen) for place in range(first, stop)] == list(range(10))
    assert all(first % 4 == 0 for first, _ in seen)
    with pytest.raises(ZeroDivisionError):
        run_shares(lambda first, _: [1 // first].clear(), 8, 2)


def test_threads_run_on_the_cores_of_the_process() -> None:
    """Each thread is bound to one of them, whatever core the calling thread is bound to."""
    bound: list[set[int]] = []
    run_shares(lambda *_: bound.append(os.sched_getaffinity(0)), torch.get_num_threads(), 1)
    assert all(len(cores) == 1 for cores in bound)
    assert set().union(*bound) <= set(process_cores())


def test_experts_that_nobody_chose_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One product for each expert that any token chose, over the rows that did."""
    seen: list[tuple[int, int]] = []
    real = PanelGate._of_expert

    def watched(self: PanelGate, expert: int, rows: torch.Tensor) -> np.ndarray:
        seen.append((expert, len(rows)))
        return real(self, expert, rows)

    monkeypatch.setattr(PanelGate, "_of_expert", watched)
    ones = torch.ones(8, 32, 32, dtype=torch.bfloat16)
    gate = PanelGate(packed_by_vllm(ones, ones), 32)
    gate.masks(torch.ones(3, 32, dtype=torch.bfloat16), torch.tensor([[5, 2], [2, 7], [5, 2]]))
    assert seen == [(2, 3), (5, 2), (7, 1)]


def test_no_copy_of_the_weights_is_kept() -> None:
    """The panels are a view of what vLLM holds: capture takes no memory for them."""
    packed = packed_by_vllm(torch.ones(2, 64, 32), torch.ones(2, 64, 32))
    assert PanelGate(packed, 64)._panels.untyped_storage().data_ptr() == packed.untyped_storage().data_ptr()


def test_the_installed_vllm_packs_as_we_know_it() -> None:
    """The packing is held against vLLM's own kernel when a model is loaded."""
    check_packing(packed_by_vllm(torch.ones(2, 112, 48), torch.ones(2, 112, 48)), "vec")


@pytest.mark.parametrize("shape", [(2, 48, 32), (2, 64, 32)])
def test_another_packing_is_refused(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    """A gate that ends within a panel, or a version of vLLM that packs differently, is an error that says so."""
    if shape[1] % 32 == 0:
        monkeypatch.setattr(panels, "PANEL", 8)
    with pytest.raises(UnsupportedModelError, match="in another way"):
        check_packing(torch.ones(shape), "vec")
