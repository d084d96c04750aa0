"""Whether the kernel may make the product is decided from what is known, and for the safe way where it is not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sparcom_extractor.capture.discovery.activations import SILU, GatedActivation
from sparcom_extractor.capture.discovery.findings import GatedFFN
from sparcom_extractor.capture.discovery.moe import MoeLayer
from sparcom_extractor.capture.ops.buffer import CaptureBuffer
from sparcom_extractor.capture.ops.install import (
    choose_experts_rounding,
    choose_rounding,
    expected_rounding,
    install_capture,
    is_compiled,
    is_quantised,
)
from sparcom_extractor.capture.ops.op import CapturedActivation


class SiluAndMul(nn.Module):
    """Bound to its methods as vLLM's `CustomOp` binds them."""

    def __init__(self, bound: str = "native") -> None:
        super().__init__()
        self._forward_method: Any = {
            "cuda": self.forward_cuda,
            "native": self.forward_native,
            "compiled": torch.compile(self.forward_native, backend="eager"),
            "hip": lambda x: x,
        }[bound]

    def forward_cuda(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def forward_native(self, x: torch.Tensor) -> torch.Tensor:
        neurons = x.shape[-1] // 2
        return nn.functional.silu(x[:, :neurons]) * x[:, neurons:]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self._forward_method(x)
        return result


class UnquantizedLinearMethod:
    """Named as vLLM's."""


class Fp8LinearMethod:
    """Named as vLLM's."""


def ffn_of(bound: str = "cuda", down: type = UnquantizedLinearMethod, rule: GatedActivation = SILU) -> GatedFFN:
    parent = nn.Module()
    parent.act = SiluAndMul(bound)
    for name, method in (("up", UnquantizedLinearMethod), ("down", down)):
        linear = nn.Module()
        linear.input_size, linear.quant_method = 8, method()  # type: ignore[assignment]
        setattr(parent, name, linear)
    return GatedFFN(layer_id=0, name="mlp", parent=parent, attribute="act", rule=rule, neurons=8, neurons_here=8)


@pytest.mark.parametrize(
    ("bound", "compiled", "rounding"),
    [
        ("cuda", False, "kernel"),
        ("cuda", True, "kernel"),
        ("native", True, "compiled"),
        ("native", False, None),
        ("compiled", False, "compiled"),
        ("compiled", True, "compiled"),
        ("hip", True, None),
    ],
)
def test_the_rounding_is_that_of_the_method_vllm_bound(bound: str, compiled: bool, rounding: str | None) -> None:
    """vLLM's kernel, TorchInductor's code, or neither: eager code is left alone."""
    assert expected_rounding(SiluAndMul(bound), compiled=compiled) == rounding


def never(*arguments: Any) -> int:
    raise AssertionError("this needs no comparison")


def test_the_product_is_the_kernels_where_it_was_found_equal() -> None:
    """No difference: the kernel's rounding. One number that differs: the signs alone, and the log says so."""
    assert choose_rounding(ffn_of("cuda"), torch.bfloat16, compiled=False, compare=lambda *_: 0) == "kernel"
    assert choose_rounding(ffn_of("native"), torch.bfloat16, compiled=True, compare=lambda *_: 0) == "compiled"
    assert choose_rounding(ffn_of("cuda"), torch.bfloat16, compiled=False, compare=lambda *_: 1) is None


def test_a_comparison_that_fails_is_no_reason_to_trust(caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be compared is not used."""

    def broken(*arguments: Any) -> int:
        raise RuntimeError("no such kernel")

    assert choose_rounding(ffn_of(), torch.bfloat16, compiled=False, compare=broken) is None
    assert "could not be compared: RuntimeError: no such kernel" in caplog.text


@pytest.mark.parametrize(
    "ffn",
    [
        ffn_of(down=Fp8LinearMethod),
        ffn_of(rule=GatedActivation("swiglu_step", limit=7.0)),
        ffn_of("native"),
        ffn_of("hip"),
    ],
    ids=["quantised", "a kind that the kernel lacks", "eager", "another platform's"],
)
def test_otherwise_the_signs_are_taken_beside_it(ffn: GatedFFN) -> None:
    """Where the product could round differently, nothing is even compared."""
    assert choose_rounding(ffn, torch.bfloat16, compiled=False, compare=never) is None


def test_a_projection_of_unknown_kind_counts_as_quantised() -> None:
    """Only what vLLM calls unquantised is: a wrapper (LoRA) has no method of that name."""
    assert not is_quantised(ffn_of())
    ffn = ffn_of()
    del ffn.parent.down.quant_method
    assert is_quantised(ffn)


@pytest.mark.parametrize(
    ("attributes", "compiled"),
    [({}, False), ({"do_not_compile": True}, False), ({"do_not_compile": False}, True)],
)
def test_a_compiled_model_is_known_by_vllms_mark(attributes: dict[str, bool], compiled: bool) -> None:
    """vLLM's decorator leaves `do_not_compile` on the module it compiles; with its eager backend nothing is."""
    model = nn.Module()
    model.inner = nn.Module()
    for backend in ("inductor", "eager"):
        for name, value in attributes.items():
            setattr(model.inner, name, value)
        model.inner.compilation_config = SimpleNamespace(backend=backend)  # type: ignore[assignment]
        assert is_compiled(model) == (compiled and backend != "eager")


class TritonExperts:
    """Named as vLLM's."""

    def __init__(self, limit: float | None = None) -> None:
        self.quant_config = SimpleNamespace(block_shape=None)
        self.activation_config = SimpleNamespace(clamp_limit=limit)


def moe_layers(*experts: TritonExperts, rule: GatedActivation = SILU) -> list[MoeLayer]:
    layers = []
    for number, item in enumerate(experts):
        method = SimpleNamespace(moe_kernel=SimpleNamespace(fused_experts=item))
        runner = SimpleNamespace(routed_experts=SimpleNamespace(quant_method=method), activation="silu")
        layers.append(MoeLayer(number, "mlp", runner, rule, 8, 2, 16, 16, scale=1.0, shared=None))
    return layers


def test_experts_gate_by_the_kernel_where_it_was_found_equal() -> None:
    """Compared once for all layers, with the experts' own activation and its kind; any difference: signs alone."""
    first, second = TritonExperts(), TritonExperts()
    told: list[tuple[Any, ...]] = []

    def compare(*arguments: Any) -> int:
        told.append(arguments)
        return 0

    layers = moe_layers(first, second)
    assert choose_experts_rounding(layers, torch.bfloat16, compare=compare) == "kernel"
    assert told == [(first, "silu", SILU, torch.bfloat16)]
    assert choose_experts_rounding(layers, torch.bfloat16, compare=lambda *_: 1) is None


def test_experts_that_cut_are_not_compared() -> None:
    """A limit in any layer, or an activation that the kernel lacks: the signs are taken beside vLLM's."""
    limited = moe_layers(TritonExperts(), TritonExperts(limit=7.0))
    assert choose_experts_rounding(limited, torch.bfloat16, compare=never) is None
    other = moe_layers(TritonExperts(), rule=GatedActivation("swiglu_step", limit=7.0))
    assert choose_experts_rounding(other, torch.bfloat16, compare=never) is None


def test_experts_that_cannot_be_compared_are_not_trusted(caplog: pytest.LogCaptureFixture) -> None:
    """As with dense layers, and the log says why."""

    def broken(*arguments: Any) -> int:
        raise RuntimeError("no such kernel")

    assert choose_experts_rounding(moe_layers(TritonExperts()), torch.bfloat16, compare=broken) is None
    assert "could not be compared: RuntimeError: no such kernel" in caplog.text


def test_on_the_cpu_every_layer_calls_its_own_module() -> None:
    """Installed on the CPU: each FFN has an activation of its own, and the product is the module's."""
    ffns = [ffn_of("native"), ffn_of("native")]
    own = [ffn.parent.act for ffn in ffns]
    buffer = CaptureBuffer(4, 2, 8, torch.device("cpu"))
    assert install_capture(nn.Module(), ffns, buffer, torch.float32) == "module"
    gate_up = torch.randn(3, 16)
    for ffn, module in zip(ffns, own, strict=True):
        assert isinstance(ffn.parent.act, CapturedActivation)
        assert ffn.parent.act.activation is module
        assert torch.equal(ffn.parent.act(gate_up), module(gate_up))
    buffer.check_step(3)
