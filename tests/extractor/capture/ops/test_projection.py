"""In a quantized FFN the activation module stays in place, and signs are taken behind the projection."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparcom_extractor.capture.discovery.activations import SILU, GatedFFN
from sparcom_extractor.capture.discovery.describe import Widths
from sparcom_extractor.capture.discovery.findings import Findings
from sparcom_extractor.capture.ops.activation_reference import pack_signs
from sparcom_extractor.capture.ops.captured_activation import CapturedActivation
from sparcom_extractor.capture.ops.install import install_all
from sparcom_extractor.capture.ops.step_buffers import WRITE, StepBuffers

HIDDEN, NEURONS, ROWS = 16, 24, 5


class SiluAndMul(nn.Module):
    """Named like vLLM's class."""

    def forward(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return nn.functional.silu(gate) * up


class UnquantizedLinearMethod:
    """Named like vLLM's class."""


class Fp8LinearMethod:
    """Named like vLLM's class."""


class Linear(nn.Linear):
    """A linear layer with the attributes of vLLM's."""

    def __init__(self, input_size: int, output_size: int, method: object, *, return_bias: bool) -> None:
        super().__init__(input_size, output_size, bias=False)
        self.input_size, self.output_size, self.quant_method = input_size, output_size, method
        self.return_bias = return_bias

    def forward(self, x: Tensor) -> Any:
        result = super().forward(x)
        return (result, None) if self.return_bias else result


class MLP(nn.Module):
    """An FFN that fuses its activation by the type of the module, like vLLM's `maybe_fused_act_quant`."""

    def __init__(self, method: object, *, scale: float | None = None, return_bias: bool = True) -> None:
        super().__init__()
        self.gate_up_proj = Linear(HIDDEN, 2 * NEURONS, method, return_bias=return_bias)
        self.down_proj = Linear(NEURONS, HIDDEN, method, return_bias=return_bias)
        self.act_fn = SiluAndMul()
        self.scale, self.fused = scale, 0

    def forward(self, x: Tensor) -> Tensor:
        found = self.gate_up_proj(x)
        gate_up = found[0] if isinstance(found, tuple) else found
        gate_up = gate_up if self.scale is None else gate_up * self.scale
        if type(self.act_fn) is SiluAndMul:
            self.fused += 1
            return gate_up[..., :NEURONS]
        return self.act_fn(gate_up)  # type: ignore[no-any-return]


class TwoInputs(MLP):
    """An FFN that cannot be called with one tensor."""

    def forward(self, x: Tensor, other: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x + other)


class Model(nn.Module):
    """A chain of FFNs and its buffers, with capture installed."""

    def __init__(self, *ffns: MLP) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.ModuleList(ffns)
        found = [GatedFFN(i, f"layers.{i}", ffn, "act_fn", SILU, NEURONS, NEURONS) for i, ffn in enumerate(ffns)]
        self.buffers = StepBuffers(ROWS, Widths(range(len(ffns)), NEURONS), torch.device("cpu"))
        assert self.buffers.dense is not None
        self.requires_grad_(False)
        self.mode = install_all(self, Findings(found, []), self.buffers, torch.float32)
        self.mode = self.mode.removesuffix(f"-{self.buffers.dense.number}")

    def forward(self, x: Tensor) -> list[Tensor]:
        return [layer(x) for layer in self.layers]

    def check_masks(self, x: Tensor) -> None:
        """Compare the masks with the signs of each FFN's gate."""
        assert self.buffers.dense is not None
        assert self.buffers.write_counters.tolist() == [WRITE + ROWS] * len(self.layers)
        for index, layer in enumerate(self.layers):
            gate = nn.functional.linear(x, layer.gate_up_proj.weight)[:, :NEURONS] * (layer.scale or 1.0)
            assert 0 < int((gate > 0).sum()) < gate.numel()
            np.testing.assert_array_equal(self.buffers.dense.masks[:, index].numpy(), pack_signs(gate, 0.0))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(ROWS, HIDDEN, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("return_bias", [True, False])
def test_a_quantized_ffn_keeps_its_activation(x: Tensor, return_bias: bool) -> None:
    """vLLM finds the activation's own type and fuses it; masks are those of the projection's output."""
    model = Model(*(MLP(Fp8LinearMethod(), return_bias=return_bias) for _ in range(2)))
    model(x)
    assert model.mode == "projection"
    for layer in model.layers:
        assert type(layer.act_fn) is SiluAndMul
        assert type(layer.gate_up_proj) is Linear
        assert layer.fused == 1
    model.check_masks(x)


def test_other_layers_are_replaced(x: Tensor) -> None:
    """Where some layers are quantized, the others are captured as usual."""
    model = Model(MLP(UnquantizedLinearMethod()), MLP(Fp8LinearMethod()))
    model(x)
    assert model.mode == "module/projection"
    assert [type(layer.act_fn) for layer in model.layers] == [CapturedActivation, SiluAndMul]
    model.check_masks(x)


@pytest.mark.parametrize("case", ["changed", "two inputs"])
def test_an_unknown_ffn_is_replaced(x: Tensor, case: str, caplog: pytest.LogCaptureFixture) -> None:
    """If the activation may get something else than the projection's output, it is replaced, and the log reports it."""
    ffn = MLP(Fp8LinearMethod(), scale=-2.0) if case == "changed" else TwoInputs(Fp8LinearMethod())
    model = Model(ffn)
    assert model.mode == "module"
    assert isinstance(ffn.act_fn, CapturedActivation)
    assert "layers.0, which is quantized" in caplog.text
    if case == "changed":
        model(x)
        model.check_masks(x)


def test_the_projection_is_captured_in_a_compiled_model(x: Tensor) -> None:
    """torch.compile traces the hook without a graph break, and captures each layer into its own row."""
    model = Model(*(MLP(Fp8LinearMethod()) for _ in range(3)))
    torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    model.check_masks(x)
