"""The packed signs are those of the gate half, bit for bit, in eager mode and in compiled graphs."""

from __future__ import annotations

import gc
import importlib
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparcom_data.errors import UnsupportedModelError
from sparcom_extractor.capture.op import (
    CaptureBuffer,
    CapturedActivation,
    StampCheck,
    pack_signs_numpy,
    pack_signs_torch,
)

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Both zeros, both NaNs' usual form, infinities, the smallest denormals of each dtype and values around them.
ODD_VALUES = (0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-45, -1e-45, 6e-8, -6e-8, 1e-40, -1e-40, 1.0)


@pytest.fixture(scope="module", autouse=True)
def _inductor() -> None:
    """Importing PyTorch's compiler warns of its own matters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("torch._inductor.compile_fx")


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


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("backend", [None, "eager", "aot_eager", "inductor"])
@torch.inference_mode()
def test_capture_stays_in_a_compiled_graph(backend: str | None, fused: bool) -> None:
    """A compiled graph writes every layer's own signs and gives the activation's result; recompiled for new sizes."""
    buffer = CaptureBuffer(16, 2, 11, CPU)
    model, plain = TwoLayers(buffer), TwoLayers(None)
    for captured in model.act:
        captured.fused = fused  # False: the op for signs alone beside the activation, as CUDA has it
    near = {"rtol": 1e-4, "atol": 1e-4} if backend == "inductor" else {"rtol": 0, "atol": 0}  # it contracts additions
    torch._dynamo.reset()
    run: Any = model if backend is None else torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    for rows in (7, 16, 3):
        hidden = torch.randn(rows, 6, generator=torch.Generator().manual_seed(rows))
        result = run(hidden)
        torch.testing.assert_close(result, plain(hidden), **near)
        buffer.check_step()
        for layer, gate in enumerate(model.gates(hidden)):
            assert buffer.rows(rows)[:, layer].tolist() == packed_by_hand(gate), f"layer {layer}"
        assert not np.array_equal(buffer.rows(rows)[:, 0], buffer.rows(rows)[:, 1]), "the layers must differ"


@torch.inference_mode()
def test_the_layers_graphs_are_one() -> None:
    """No layer's number stands in its graph, so that a compile cache which holds one layer's graph serves all."""
    graphs: list[str] = []

    def keep(graph: Any, inputs: Any) -> Any:
        graphs.append(graph.code)
        return graph.forward

    buffer = CaptureBuffer(16, 3, 11, CPU)
    for layer in range(3):
        torch._dynamo.reset()
        captured = CapturedActivation(SiluAndMul(), buffer.register(layer))
        torch.compile(captured, backend=keep, fullgraph=True, dynamic=True)(torch.ones(4, 22))
    assert len(graphs) == 3
    assert len(set(graphs)) == 1, graphs
    assert "sparcom" in graphs[0]
    assert buffer.stamps.tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", ["gated_activation", "capture_signs"])
def test_the_op_keeps_the_rules_of_custom_ops(name: str) -> None:
    """PyTorch's own checks of schema, fake tensors and ahead-of-time graphs pass; the op has no derivative."""
    buffer = CaptureBuffer(16, 2, 11, CPU)
    captured = CapturedActivation(SiluAndMul(), buffer.register(1))
    overload = getattr(torch.ops.sparcom, name).default
    found = torch.library.opcheck(overload, (torch.randn(3, 22), captured.layer, captured.number))
    assert set(found.values()) == {"SUCCESS"}, found


def test_an_activation_without_a_gate_is_refused() -> None:
    """What is no gated activation of vLLM has no gate that capture could take signs of."""
    with pytest.raises(UnsupportedModelError, match="ReLU is none of them"):
        CapturedActivation(torch.nn.ReLU(), CaptureBuffer(4, 1, 8, CPU).register(0))


def test_layers_that_gate_differently_are_refused() -> None:
    """One buffer has one rule: a second layer with its gate elsewhere would get the first one's columns."""
    buffer = CaptureBuffer(4, 2, 8, CPU)
    CapturedActivation(SiluAndMul(), buffer.register(0))
    with pytest.raises(UnsupportedModelError, match=r"has silu, rounded as None, and silu \(place=second\)"):
        CapturedActivation(type("MulAndSilu", (torch.nn.Module,), {})(), buffer.register(1))


def test_a_layer_past_the_axis_is_refused() -> None:
    """A layer that the buffer does not have cannot be registered."""
    with pytest.raises(ValueError, match="2 layers; there is no layer 2"):
        CaptureBuffer(4, 2, 8, CPU).register(2)


def test_a_buffer_lives_as_long_as_its_model() -> None:
    """An activation keeps its buffer; when the model goes the memory goes, and a graph that is left says so."""
    captured = CapturedActivation(SiluAndMul(), CaptureBuffer(4, 1, 8, CPU).register(0))
    gc.collect()
    assert captured(torch.ones(1, 16)).shape == (1, 8)
    layer, number = captured.layer, captured.number
    del captured
    gc.collect()
    with pytest.raises(RuntimeError, match=rf"buffer {number} is gone"):
        torch.ops.sparcom.gated_activation(torch.ones(1, 16), layer, number)


def test_stamps_are_checked_without_the_device() -> None:
    """A host copy of the stamps is all that the check needs: it passes while all move, and names who did not."""
    check = StampCheck()
    check.check(np.array([3, 3, 3]))
    check.check(np.array([7, 7, 7]))
    with pytest.raises(RuntimeError, match=r"layers \[1\] of the layer axis did not"):
        check.check(np.array([8, 7, 8]))
    with pytest.raises(RuntimeError, match=r"layers \[0, 1, 2\] of the layer axis did not"):
        check.check(np.array([7, 7, 7]))


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
    with pytest.raises(RuntimeError, match=r"may hold 4 rows of a layer .* got 5"):
        buffer.store(0, torch.ones(5, 16))


@pytest.mark.parametrize("shape", [(2, 14), (2, 18), (2, 3, 16)])
def test_another_width_than_the_layers_is_refused(shape: tuple[int, ...]) -> None:
    """An input that is not (rows, 2·neurons) has its gate elsewhere: an error, never other columns."""
    buffer = CaptureBuffer(4, 1, 8, CPU)
    with pytest.raises(RuntimeError, match=r"takes \(rows, 16\) here"):
        buffer.store(0, torch.ones(shape))
