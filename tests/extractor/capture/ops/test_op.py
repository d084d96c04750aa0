"""The packed signs are those of the gate half, bit for bit, in eager mode and in compiled graphs."""

from __future__ import annotations

import gc
import importlib
import math
import warnings
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sparcom_data.errors import UnsupportedModelError
from sparcom_extractor.capture.discovery.activations import SILU, ActivationSpec
from sparcom_extractor.capture.ops.activation_reference import pack_signs
from sparcom_extractor.capture.ops.captured_activation import CapturedActivation, LayerCapture
from sparcom_extractor.capture.ops.step_buffers import WRITE, MaskBuffer, check_write_counters

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _inductor() -> None:
    """Import PyTorch's compiler once, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("torch._inductor.compile_fx")


def mask_buffer(
    max_tokens: int, layers: int, neurons: int, device: torch.device = CPU, *, top_k: int = 0
) -> MaskBuffer:
    counters = torch.zeros(layers, dtype=torch.int64, device=device)
    return MaskBuffer(neurons, top_k, counters, torch.zeros((max_tokens, layers), dtype=torch.uint8, device=device))


def captured(activation: torch.nn.Module, buffer: MaskBuffer, layer: int, spec: ActivationSpec = SILU) -> Any:
    return CapturedActivation(LayerCapture(buffer, layer, activation, spec, None))


class SiluAndMul(torch.nn.Module):
    """vLLM's activation: f(first half) · second half."""

    def forward(self, gate_up: torch.Tensor) -> torch.Tensor:
        neurons = gate_up.shape[-1] // 2
        return torch.nn.functional.silu(gate_up[..., :neurons]) * gate_up[..., neurons:]


def check_step(buffer: MaskBuffer, rows: int) -> None:
    """Check a step and clear its write counters."""
    counters = buffer.write_counters.numpy().copy()
    buffer.write_counters.zero_()
    check_write_counters(counters, rows, [f"layer {n}" for n in range(len(counters))], padded=False)


class TwoLayers(torch.nn.Module):
    """Two FFNs that share one activation module, like Gemma's, captured or not."""

    def __init__(self, buffer: MaskBuffer | None, neurons: int = 11) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.up = torch.nn.ParameterList(torch.randn(6, 2 * neurons, generator=generator) for _ in range(2))
        self.down = torch.nn.ParameterList(torch.randn(neurons, 6, generator=generator) for _ in range(2))
        shared = SiluAndMul()
        self.act = torch.nn.ModuleList(
            shared if buffer is None else captured(shared, buffer, layer) for layer in range(2)
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for up, act, down in zip(self.up, self.act, self.down, strict=True):
            hidden = hidden + act(hidden @ up) @ down
        return hidden

    def gates(self, hidden: torch.Tensor) -> list[torch.Tensor]:
        """Return the gate halves per layer, computed outside the model."""
        found = []
        for up, down in zip(self.up, self.down, strict=True):
            found.append((hidden @ up)[:, : up.shape[1] // 2])
            hidden = hidden + SiluAndMul()(hidden @ up) @ down
        return found


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("backend", [None, "eager", "aot_eager", "inductor"])
@torch.inference_mode()
def test_capture_stays_in_a_compiled_graph(backend: str | None, fused: bool) -> None:
    """A compiled graph writes every layer's own signs and returns the activation's result; it recompiles for new
    sizes."""
    buffer = mask_buffer(16, 2, 11, CPU)
    model, plain = TwoLayers(buffer), TwoLayers(None)
    for item in model.act:
        item.fused = fused  # False: the op captures only, as on CUDA with numerics None
    near = {"rtol": 1e-4, "atol": 1e-4} if backend == "inductor" else {"rtol": 0, "atol": 0}  # it contracts additions
    torch._dynamo.reset()
    run: Any = model if backend is None else torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    for rows in (7, 16, 3):
        hidden = torch.randn(rows, 6, generator=torch.Generator().manual_seed(rows))
        result = run(hidden)
        torch.testing.assert_close(result, plain(hidden), **near)
        check_step(buffer, rows)
        for layer, gate in enumerate(model.gates(hidden)):
            assert buffer.masks[:rows, layer].tolist() == pack_signs(gate).tolist(), f"layer {layer}"
        assert not np.array_equal(buffer.masks[:rows, 0], buffer.masks[:rows, 1]), "the layers must differ"


@torch.inference_mode()
def test_the_layers_graphs_are_one() -> None:
    """No layer number appears in a layer's graph, so one entry of a compile cache serves all layers."""
    graphs: list[str] = []

    def keep(graph: Any, inputs: Any) -> Any:
        graphs.append(graph.code)
        return graph.forward

    buffer = mask_buffer(16, 3, 11, CPU)
    for layer in range(3):
        torch._dynamo.reset()
        module = captured(SiluAndMul(), buffer, layer)
        torch.compile(module, backend=keep, fullgraph=True, dynamic=True)(torch.ones(4, 22))
    assert len(graphs) == 3
    assert len(set(graphs)) == 1, graphs
    assert "sparcom" in graphs[0]
    assert buffer.write_counters.tolist() == [WRITE + 4] * 3


@pytest.mark.parametrize("name", ["gated_activation", "capture_signs"])
def test_the_op_keeps_the_rules_of_custom_ops(name: str) -> None:
    """PyTorch's checks of schema, fake tensors and ahead-of-time graphs pass; the op has no derivative."""
    buffer = mask_buffer(16, 2, 11, CPU)
    module = captured(SiluAndMul(), buffer, 1)
    overload = getattr(torch.ops.sparcom, name).default
    found = torch.library.opcheck(overload, (torch.randn(3, 22), module.layer, module.number))
    assert set(found.values()) == {"SUCCESS"}, found


def test_layers_with_different_specs_are_refused() -> None:
    """A buffer has one spec: a second layer with another gate layout would read the wrong columns."""
    buffer = mask_buffer(4, 2, 8, CPU)
    first = captured(SiluAndMul(), buffer, 0)
    with pytest.raises(UnsupportedModelError, match=r"has silu with numerics None, and silu \(layout=second\)"):
        captured(SiluAndMul(), buffer, 1, ActivationSpec("silu", "second"))
    assert first.capture.layer == 0


def test_a_layer_past_the_axis_is_refused() -> None:
    """A layer that the buffer does not have cannot be captured."""
    with pytest.raises(ValueError, match="2 layers; there is no layer 2"):
        captured(SiluAndMul(), mask_buffer(4, 2, 8, CPU), 2)


def test_a_buffer_lives_as_long_as_its_model() -> None:
    """An activation keeps its buffer alive. When the model is deleted, the memory is freed, and a remaining graph
    reports it."""
    module = captured(SiluAndMul(), mask_buffer(4, 1, 8, CPU), 0)
    gc.collect()
    assert module(torch.ones(1, 16)).shape == (1, 8)
    layer, number = module.layer, module.number
    del module
    gc.collect()
    with pytest.raises(RuntimeError, match=rf"buffer {number} is gone"):
        torch.ops.sparcom.gated_activation(torch.ones(1, 16), layer, number)


@pytest.mark.parametrize(
    ("calls", "rows", "padded", "found"),
    [
        ([1, 1, 1], [4, 4, 4], False, None),
        ([1, 1, 1], [8, 8, 8], True, None),
        ([1, 1, 1], [4, 8, 4], False, r"layer 9 \(experts\) wrote 1 times, 8 rows"),
        ([1, 1, 1], [4, 3, 4], True, r"layer 9 \(experts\) wrote 1 times, 3 rows"),
        (
            [1, 2, 1],
            [4, 8, 4],
            True,
            r"layer 9 \(experts\) wrote 2 times, 8 rows in all\. The model runs a",
        ),
        ([1, 2, 1], [4, 4, 4], True, r"layer 9 \(experts\) wrote 2 times, 4 rows"),
        ([2, 2, 2], [8, 8, 8], True, r"layer 0 wrote 2 times, 8 rows in all, and 2 more layers"),
        (
            [1, 0, 1],
            [4, 0, 4],
            True,
            r"layer 9 \(experts\) wrote 0 times, 0 rows in all\. The engine bypassed",
        ),
        ([0, 0, 0], [0, 0, 0], False, r"layer 0 wrote 0 times"),
    ],
)
def test_a_layer_writes_once_and_all_rows(calls: list[int], rows: list[int], padded: bool, found: str | None) -> None:
    """A step of 4 rows passes with one write of 4 rows per layer, or more where graphs pad; errors name the layer."""
    counters = np.array(calls) * WRITE + np.array(rows)
    names = ["layer 0", "layer 9 (experts)", "layer 9 (router)"]
    with nullcontext() if found is None else pytest.raises(RuntimeError, match=found):
        check_write_counters(counters, 4, names, padded=padded)


def test_rows_of_a_longer_step_before_do_not_show() -> None:
    """A step writes only its own rows; later rows are stale."""
    buffer = mask_buffer(4, 1, 8, CPU)
    buffer.store(0, torch.ones(4, 16), SILU)
    buffer.store(0, -torch.ones(2, 16), SILU)
    assert buffer.masks[:2].tolist() == [[[0]], [[0]]]
    assert buffer.masks[2:].tolist() == [[[255]], [[255]]]


@pytest.mark.parametrize("layers", [(0, 2), (0, 1, 1, 2), ()])
def test_a_layer_that_did_not_write_once_is_found(layers: tuple[int, ...]) -> None:
    """A step that bypassed a layer, ran it twice or captured nothing is an error."""
    buffer = mask_buffer(4, 3, 8, CPU)
    for layer in layers:
        buffer.store(layer, torch.ones(2, 16), SILU)
    with pytest.raises(RuntimeError, match=f"layer {1 if layers else 0} wrote {2 if 1 in layers else 0} times"):
        check_step(buffer, 2)
    for layer in range(3):
        buffer.store(layer, torch.ones(2, 16), SILU)
    check_step(buffer, 2)


@pytest.mark.parametrize("shape", [(5, 16), (2, 14), (2, 18), (2, 3, 16)])
def test_rows_that_do_not_fit_are_not_stored(shape: tuple[int, ...]) -> None:
    """Too many rows, or another width, leave the write counter unchanged and set the problem; the engine runs on."""
    buffer = mask_buffer(4, 1, 8, CPU)
    buffer.store(0, torch.ones(shape), SILU)
    assert buffer.write_counters.tolist() == [0]
    assert not buffer.masks.any()
    assert "a captured layer got" in (buffer.problem or "")


@pytest.mark.parametrize("fused", [True, False])
@torch.inference_mode()
def test_leading_dimensions_are_rows(fused: bool) -> None:
    """vLLM's Transformers backend passes (1, rows, 2·neurons): same masks, and a result of the same shape."""
    flat, batched = mask_buffer(6, 1, 11, CPU), mask_buffer(6, 1, 11, CPU)
    gate_up = torch.randn(6, 22, generator=torch.Generator().manual_seed(3))
    modules = [captured(SiluAndMul(), buffer, 0) for buffer in (flat, batched)]
    for module in modules:
        module.fused = fused
    expected, result = modules[0](gate_up), modules[1](gate_up[None])
    assert result.shape == (1, 6, 11)
    assert torch.equal(result[0], expected)
    assert torch.equal(flat.masks, batched.masks)
    assert batched.write_counters.tolist() == [WRITE + 6]
    if fused:
        fake = FakeTensorMode()
        batch, layer = fake.from_tensor(gate_up[None].clone()), fake.from_tensor(modules[1].layer)
        assert torch.ops.sparcom.gated_activation(batch, layer, batched.number).shape == (1, 6, 11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_gate_that_is_not_finite_flags_its_row(dtype: torch.dtype, wrong: float) -> None:
    """One NaN or infinity among 300 gates flags the row in its layer; the up half does not matter."""
    buffer = mask_buffer(4, 2, 300, CPU)
    gate_up = torch.randn(3, 600, generator=torch.Generator().manual_seed(1)).to(dtype)
    gate_up[0, 450] = wrong
    gate_up[2, 299] = wrong
    buffer.store(0, torch.ones(3, 600, dtype=dtype), SILU)
    buffer.store(1, gate_up, SILU)
    assert buffer.nonfinite.tolist() == [[0, 0], [0, 0], [0, 1], [0, 0]]
    packed = (gate_up[:, :300] > 0).numpy()
    assert np.array_equal(buffer.masks[:3, 1].numpy(), np.packbits(packed, axis=-1, bitorder="little"))


def test_an_expert_row_that_is_not_finite_flags_its_token() -> None:
    """Row r of an MoE layer belongs to token r // 2 and k = r % 2."""
    buffer = mask_buffer(4, 1, 8, CPU, top_k=2)
    gate_up = torch.ones(6, 16)
    gate_up[3, 0] = math.nan
    buffer.store(0, gate_up, SILU)
    assert buffer.nonfinite[:, 0].tolist() == [0, 1, 0, 0]
    assert buffer.write_counters.tolist() == [WRITE + 3]
