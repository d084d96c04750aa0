"""The packed signs are those of the gate half, bit for bit, in eager mode and in compiled graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparcom_extractor.capture.op import (
    CaptureBuffer,
    CapturedActivation,
    pack_signs_numpy,
    pack_signs_torch,
)

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Both zeros, both NaNs' usual form, infinities, the smallest denormals of each dtype and values around them.
ODD_VALUES = (0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-45, -1e-45, 6e-8, -6e-8, 1e-40, -1e-40, 1.0)


@st.composite
def gate_ups(draw: st.DrawFn) -> torch.Tensor:
    """(rows, 2·neurons) of one dtype, at times a view into a larger tensor."""
    rows, neurons = draw(st.integers(0, 5)), draw(st.integers(1, 35))
    size = rows * 2 * neurons
    values = draw(st.lists(st.sampled_from(ODD_VALUES) | st.floats(-2, 2, width=16), min_size=size, max_size=size))
    wide = torch.tensor(values, dtype=torch.float64).reshape(rows, 2 * neurons)
    tensor = wide.to(draw(st.sampled_from(DTYPES)))
    if draw(st.booleans()):  # rows of a wider buffer, as the padded output of a projection
        tensor = torch.nn.functional.pad(tensor, (3, 2))[:, 3 : 3 + 2 * neurons]
    return tensor


def packed_by_hand(gate: torch.Tensor) -> list[list[int]]:
    """The rule, spelt out: neuron i is bit i % 8 of byte i // 8."""
    rows = []
    for row in gate.tolist():
        packed = [0] * -(-len(row) // 8)
        for neuron, value in enumerate(row):
            if value > 0:
                packed[neuron // 8] |= 1 << (neuron % 8)
        rows.append(packed)
    return rows


@settings(max_examples=250, deadline=None)
@given(gate_up=gate_ups())
def test_both_packings_are_the_rule_spelt_out(gate_up: torch.Tensor) -> None:
    """NumPy's and torch's packing equal a plain loop for every dtype, width, stride and odd value."""
    gate = gate_up[:, : gate_up.shape[1] // 2]
    expected = np.array(packed_by_hand(gate), dtype=np.uint8).reshape(gate.shape[0], -(-gate.shape[1] // 8))
    by_numpy, by_torch = pack_signs_numpy(gate), pack_signs_torch(gate)
    assert by_numpy.dtype == np.uint8
    assert by_torch.dtype == torch.uint8
    assert np.array_equal(by_numpy, expected)
    assert np.array_equal(by_torch.numpy(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_odd_values_are_what_they_say(dtype: torch.dtype) -> None:
    """NaN and both zeros are not active, the smallest positive number is."""
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # the smallest denormal
    gate = torch.tensor([[float("nan"), 0.0, -0.0, smallest, -smallest, float("inf"), -float("inf"), 1.0, 2.0]])
    gate = gate.to(dtype)
    assert gate[0, 3] != 0, "the denormal was lost in the cast"
    for packed in (pack_signs_numpy(gate), pack_signs_torch(gate).numpy()):
        assert packed.tolist() == [[0b10101000, 1]]


def test_packing_on_a_device_copies_nothing_from_the_host() -> None:
    """Inside a CUDA graph a tensor made from Python numbers would be a copy from the host, which capture forbids."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch():
        pack_signs_torch(torch.ones(2, 9))
    assert any("arange" in name for name in seen), "the watch saw nothing"
    assert not [name for name in seen if "lift_fresh" in name], "a tensor was made from Python numbers"


class SiluAndMul(torch.nn.Module):
    """vLLM's rule: f(first half) · second half."""

    def forward(self, gate_up: torch.Tensor) -> torch.Tensor:
        neurons = gate_up.shape[-1] // 2
        return torch.nn.functional.silu(gate_up[..., :neurons]) * gate_up[..., neurons:]


class TwoLayers(torch.nn.Module):
    """Two FFNs that share one activation module, as Gemma's do, captured or not."""

    def __init__(self, buffer: CaptureBuffer | None, neurons: int = 11) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.up = torch.nn.ParameterList(torch.randn(6, 2 * neurons, generator=generator) for _ in range(2))
        self.down = torch.nn.ParameterList(torch.randn(neurons, 6, generator=generator) for _ in range(2))
        shared = SiluAndMul()
        self.act = torch.nn.ModuleList(
            shared if buffer is None else CapturedActivation(shared, buffer.register(layer)) for layer in range(2)
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for up, act, down in zip(self.up, self.act, self.down, strict=True):
            hidden = hidden + act(hidden @ up) @ down
        return hidden

    def gates(self, hidden: torch.Tensor) -> list[torch.Tensor]:
        """The gate halves, layer by layer, computed beside the model."""
        found = []
        for up, down in zip(self.up, self.down, strict=True):
            found.append((hidden @ up)[:, : up.shape[1] // 2])
            hidden = hidden + SiluAndMul()(hidden @ up) @ down
        return found


@pytest.mark.parametrize("backend", [None, "eager", "aot_eager"])
@torch.inference_mode()
def test_capture_stays_in_a_compiled_graph(backend: str | None) -> None:
    """A compiled graph writes every layer's own signs and gives the activation's result; recompiled for new sizes."""
    buffer = CaptureBuffer(16, 2, 11, CPU)
    model, plain = TwoLayers(buffer), TwoLayers(None)
    run: Any = model if backend is None else torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    for rows in (7, 16, 3):
        hidden = torch.randn(rows, 6, generator=torch.Generator().manual_seed(rows))
        result = run(hidden)
        assert torch.equal(result, plain(hidden))
        buffer.check_step()
        for layer, gate in enumerate(model.gates(hidden)):
            assert buffer.rows(rows)[:, layer].tolist() == packed_by_hand(gate), f"layer {layer}"
        assert not np.array_equal(buffer.rows(rows)[:, 0], buffer.rows(rows)[:, 1]), "the layers must differ"


def test_rows_of_a_longer_step_before_do_not_show() -> None:
    """`rows` gives the step's rows alone; what lies past them is stale."""
    buffer = CaptureBuffer(4, 1, 8, CPU)
    buffer.store(0, torch.ones(4, 16))
    buffer.store(0, -torch.ones(2, 16))
    assert buffer.rows(2).tolist() == [[[0]], [[0]]]
    assert buffer.masks[2:].tolist() == [[[255]], [[255]]]


def test_a_layer_that_did_not_write_is_found() -> None:
    """A step in which one layer was bypassed is an error that names the layer."""
    buffer = CaptureBuffer(4, 3, 8, CPU)
    for layer in (0, 2):
        buffer.store(layer, torch.ones(1, 16))
    with pytest.raises(RuntimeError, match=r"layers \[1\] of the layer axis did not"):
        buffer.check_step()


def test_a_layer_that_wrote_twice_is_found() -> None:
    """A layer that wrote twice in a step puts the others behind."""
    buffer = CaptureBuffer(4, 3, 8, CPU)
    for layer in (0, 1, 1, 2):
        buffer.store(layer, torch.ones(1, 16))
    with pytest.raises(RuntimeError, match=r"layers \[0, 2\] of the layer axis did not"):
        buffer.check_step()


def test_a_step_in_which_no_layer_wrote_is_found() -> None:
    """A graph without capture writes nothing at all; the first step and a later one are told."""
    buffer = CaptureBuffer(4, 2, 8, CPU)
    with pytest.raises(RuntimeError, match=r"layers \[0, 1\] of the layer axis did not"):
        buffer.check_step()
    for layer in (0, 1):
        buffer.store(layer, torch.ones(1, 16))
    buffer.check_step()
    with pytest.raises(RuntimeError, match=r"layers \[0, 1\] of the layer axis did not"):
        buffer.check_step()


def test_steps_that_nobody_looks_at_do_not_matter() -> None:
    """Warm-up and steps without captured requests move all stamps; the next looked-at step passes."""
    buffer = CaptureBuffer(4, 2, 8, CPU)
    for _ in range(5):
        for layer in (0, 1):
            buffer.store(layer, torch.ones(1, 16))
    buffer.check_step()


def test_too_many_rows_are_refused() -> None:
    """More rows than the buffer holds is an error with both numbers, never a cut."""
    buffer = CaptureBuffer(4, 1, 8, CPU)
    with pytest.raises(RuntimeError, match=r"may hold 4 tokens .* got 5"):
        buffer.store(0, torch.ones(5, 16))


@pytest.mark.parametrize("shape", [(2, 14), (2, 18), (2, 3, 16)])
def test_another_width_than_the_layers_is_refused(shape: tuple[int, ...]) -> None:
    """An input that is not (rows, 2·neurons) has its gate elsewhere: an error, never other columns."""
    buffer = CaptureBuffer(4, 1, 8, CPU)
    with pytest.raises(RuntimeError, match=r"takes \(rows, 16\) here"):
        buffer.store(0, torch.ones(shape))
