"""The CPU kernel packs as a plain loop does, and its SiLU equals PyTorch's to the last bit."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparcom_extractor.capture.ops.activation_reference import nonfinite_rows, pack_signs
from sparcom_extractor.capture.ops.cpu import kernel
from sparcom_extractor.capture.ops.cpu.kernel import pack_rows, silu_and_pack, silu_lanes

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Both zeros, the usual NaNs, infinities, the smallest subnormals of each dtype and values around them.
ODD_VALUES = (0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-45, -1e-45, 6e-8, -6e-8, 1e-40, -1e-40, 1.0)


@st.composite
def gate_ups(draw: st.DrawFn) -> torch.Tensor:
    """Draw (rows, 2·neurons) of one dtype, sometimes a view of a larger tensor."""
    rows, neurons = draw(st.integers(0, 5)), draw(st.integers(1, 35))
    size = rows * 2 * neurons
    values = draw(st.lists(st.sampled_from(ODD_VALUES) | st.floats(-2, 2, width=16), min_size=size, max_size=size))
    wide = torch.tensor(values, dtype=torch.float64).reshape(rows, 2 * neurons)
    tensor = wide.to(draw(st.sampled_from(DTYPES)))
    if draw(st.booleans()):  # rows of a wider buffer, like a projection's padded output
        tensor = torch.nn.functional.pad(tensor, (3, 2))[:, 3 : 3 + 2 * neurons]
    return tensor


def packed_by_hand(gate: torch.Tensor) -> list[list[int]]:
    """Pack with a plain loop: neuron i is bit i % 8 of byte i // 8."""
    rows = []
    for row in gate.tolist():
        packed = [0] * -(-len(row) // 8)
        for neuron, value in enumerate(row):
            if value > 0:
                packed[neuron // 8] |= 1 << (neuron % 8)
        rows.append(packed)
    return rows


def packed_signs(gate: torch.Tensor, threshold: float = 0.0) -> tuple[NDArray[np.uint8], list[bool]]:
    """Pack between bytes of other layers, which must stay. Return the masks, and whether each row is flagged."""
    rows, width = gate.shape[0], -(-gate.shape[1] // 8)
    masks, flags = np.full((rows, 3, width), 0xA5, np.uint8), np.zeros((rows, 3), np.uint8)
    pack_rows(gate, threshold, masks[:, 1], flags[:, 1])
    assert (masks[:, ::2] == 0xA5).all()
    assert not flags[:, ::2].any()
    return masks[:, 1], flags[:, 1].astype(bool).tolist()


@settings(max_examples=250, deadline=None)
@given(gate_up=gate_ups(), interleaved=st.booleans())
def test_packing_equals_a_plain_loop(gate_up: torch.Tensor, interleaved: bool) -> None:
    """Packing equals a plain loop for every dtype, width, stride and special value."""
    neurons = gate_up.shape[1] // 2
    gate = gate_up[:, ::2] if interleaved else gate_up[:, :neurons]
    expected = np.array(packed_by_hand(gate), dtype=np.uint8).reshape(gate.shape[0], -(-gate.shape[1] // 8))
    for threshold in (0.0, 0.5):
        packed, flagged = packed_signs(gate, threshold)
        assert np.array_equal(packed, pack_signs(gate, threshold))
        assert flagged == nonfinite_rows(gate).tolist()
    assert np.array_equal(packed_signs(gate)[0], expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values_pack_by_their_sign(dtype: torch.dtype) -> None:
    """NaN and both zeros are inactive; the smallest positive number is active."""
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # the smallest subnormal
    gate = torch.tensor([[float("nan"), 0.0, -0.0, smallest, -smallest, float("inf"), -float("inf"), 1.0, 2.0]])
    gate = gate.to(dtype)
    assert gate[0, 3] != 0, "the denormal was lost in the cast"
    assert packed_signs(gate)[0].tolist() == [[0b10101000, 1]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_finite_gates_whose_sum_overflows_are_finite(dtype: torch.dtype) -> None:
    """The largest numbers of a dtype sum to infinity, but each is finite."""
    gate = torch.full((2, 64), torch.finfo(dtype).max, dtype=dtype)
    gate[1] = -gate[1]
    assert packed_signs(gate)[1] == [False, False]
    gate[1, 3] = -math.inf
    assert packed_signs(gate)[1] == [False, True]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_pattern_of_16_bits_packs_as_torch_says(dtype: torch.dtype) -> None:
    """For all 65,536 numbers, the 16-bit integer comparison equals gate > 0; NaN of either sign is inactive."""
    kinds = [torch.bfloat16, torch.float16] if dtype == torch.float32 else [dtype]
    for kind in kinds:
        gate = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(kind).to(dtype).reshape(64, -1)
        expected = np.packbits((gate > 0).numpy(), axis=-1, bitorder="little")
        packed, flagged = packed_signs(gate)
        assert np.array_equal(packed, expected)
        assert flagged == (~torch.isfinite(gate)).any(dim=1).tolist()


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_every_number_of_threads_packs_the_same(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are cut among OpenMP's threads, sometimes within a row."""
    monkeypatch.setattr(kernel, "_BYTES_PER_THREAD", 64)
    torch.set_num_threads(threads)
    for rows in (0, 1, 2, 5, 64):
        gate = torch.randn(rows, 100, generator=torch.Generator().manual_seed(rows))
        gate[rows // 2 :, 7] = math.nan
        packed, flagged = packed_signs(gate)
        assert np.array_equal(packed, pack_signs(gate))
        assert flagged == nonfinite_rows(gate).tolist()


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_silu_equals_pytorchs_to_the_last_bit(threads: int) -> None:
    """PyTorch treats the ends of rows, and of the shares of threads, by another function; so does the kernel."""
    torch.set_num_threads(threads)
    if silu_lanes():  # elsewhere capture runs vLLM's module
        check_silu()


def check_silu() -> None:
    """Compare shapes that PyTorch cuts in different ways, with special values, against its own operations."""
    generator = torch.Generator().manual_seed(3)
    for rows in (0, 1, 2, 7, 37, 130):
        for neurons in (8, 11, 100, 176, 1003, 1376):
            wide = torch.randn((rows, 2 * neurons + 3), generator=generator) * 5
            gate_up = wide[:, 1 : 1 + 2 * neurons]  # rows of a wider buffer
            if rows > 1:
                gate_up[1, : len(ODD_VALUES)] = torch.tensor(ODD_VALUES)[: 2 * neurons]
            masks, flags = np.zeros((rows, -(-neurons // 8)), np.uint8), np.zeros(rows, np.uint8)
            found = silu_and_pack(gate_up, masks, flags)
            gate, up = gate_up.chunk(2, dim=1)
            expected = torch.nn.functional.silu(gate) * up
            assert torch.equal(found.isnan(), expected.isnan()), (rows, neurons)
            assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0)), (rows, neurons)
            assert np.array_equal(masks, pack_signs(gate)), (rows, neurons)
            assert flags.astype(bool).tolist() == nonfinite_rows(gate).tolist(), (rows, neurons)


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_every_capability_of_pytorch_is_known_or_left_alone(capability: str) -> None:
    """With AVX2, vectors have eight floats. Without vectors, the kernel only packs."""
    if capability == "avx2" and not silu_lanes():
        capability = "default"  # this processor lacks AVX2
    code = "import test_cpu_kernel as test; print(test.silu_lanes()); test.silu_lanes() and test.check_silu()"
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, env=environment, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["8" if capability == "avx2" else "0"]


def test_masks_and_flags_that_do_not_fit_are_refused() -> None:
    """The kernel writes to addresses, so it checks every shape before."""
    gate, masks, flags = torch.ones(3, 16), np.zeros((3, 2), np.uint8), np.zeros(3, np.uint8)
    for wrong in ((masks[:2], flags), (masks[:, :1], flags), (masks, flags[:2]), (masks.T.copy().T, flags)):
        with pytest.raises(ValueError, match="must fit gates"):
            pack_rows(gate, 0.0, *wrong)
