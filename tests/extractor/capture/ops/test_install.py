"""The kernel's activation output is used only where it is known to equal vLLM's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sparcom_extractor.capture.discovery.activations import SILU, ActivationSpec, GatedFFN
from sparcom_extractor.capture.discovery.describe import Widths
from sparcom_extractor.capture.discovery.findings import Findings
from sparcom_extractor.capture.discovery.moe import MoeLayer
from sparcom_extractor.capture.ops import install
from sparcom_extractor.capture.ops.activation_reference import Numerics
from sparcom_extractor.capture.ops.captured_activation import CapturedActivation
from sparcom_extractor.capture.ops.cpu.kernel import silu_lanes
from sparcom_extractor.capture.ops.install import expected_numerics, expert_numerics, ffn_numerics, install_all
from sparcom_extractor.capture.ops.step_buffers import WRITE, StepBuffers
from sparcom_extractor.vllm_surface.activations import is_compiled, is_unquantized, linear_layers


class SiluAndMul(nn.Module):
    """An activation bound to its methods as vLLM's `CustomOp` binds them."""

    def __init__(self, bound: str = "native") -> None:
        super().__init__()
        self._forward_method: Any = {
            "cuda": self.forward_cuda,
            "native": self.forward_native,
            "cpu": self.forward_cpu,
            "compiled": torch.compile(self.forward_native, backend="eager"),
            "hip": lambda x: x,
        }[bound]

    def forward_cuda(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def forward_cpu(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_native(x)

    def forward_native(self, x: torch.Tensor) -> torch.Tensor:
        neurons = x.shape[-1] // 2
        return nn.functional.silu(x[:, :neurons]) * x[:, neurons:]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self._forward_method(x)
        return result


class UnquantizedLinearMethod:
    """Named like vLLM's class."""


class Fp8LinearMethod:
    """Named like vLLM's class."""


def ffn_of(bound: str = "cuda", down: type = UnquantizedLinearMethod, spec: ActivationSpec = SILU) -> GatedFFN:
    parent = nn.Module()
    parent.act = SiluAndMul(bound)
    for name, method in (("up", UnquantizedLinearMethod), ("down", down)):
        linear = nn.Module()
        linear.input_size, linear.quant_method = 8, method()  # type: ignore[assignment]
        setattr(parent, name, linear)
    return GatedFFN(
        layer_id=0,
        name="mlp",
        parent=parent,
        attribute="act",
        spec=spec,
        intermediate_size=8,
        intermediate_size_per_partition=8,
    )


@pytest.mark.parametrize(
    ("bound", "compiled", "numerics"),
    [
        ("cuda", False, Numerics.VLLM_KERNEL),
        ("cuda", True, Numerics.VLLM_KERNEL),
        ("native", True, Numerics.INDUCTOR),
        ("native", False, None),
        ("compiled", False, Numerics.INDUCTOR),
        ("compiled", True, Numerics.INDUCTOR),
        ("hip", True, None),
    ],
)
def test_numerics_follow_from_the_method_that_vllm_bound(bound: str, compiled: bool, numerics: Numerics | None) -> None:
    """The bound method selects vLLM's kernel, TorchInductor's code, or neither for eager code."""
    assert expected_numerics(SiluAndMul(bound), compiled=compiled) == numerics


def never(*arguments: Any) -> int:
    raise AssertionError("this needs no comparison")


def test_the_kernels_output_is_used_where_it_was_found_equal() -> None:
    """Without differences the kernel computes the output. One different number limits it to signs, and the log reports
    this."""
    assert ffn_numerics(ffn_of("cuda"), torch.bfloat16, compiled=False, compare=lambda *_: 0) == Numerics.VLLM_KERNEL
    assert ffn_numerics(ffn_of("native"), torch.bfloat16, compiled=True, compare=lambda *_: 0) == Numerics.INDUCTOR
    assert ffn_numerics(ffn_of("cuda"), torch.bfloat16, compiled=False, compare=lambda *_: 1) is None


@pytest.mark.parametrize(
    ("bound", "dtype", "compiled", "spec", "lanes", "numerics"),
    [
        ("cpu", torch.float32, False, SILU, 16, Numerics.PYTORCH),
        ("native", torch.float32, False, SILU, 8, Numerics.PYTORCH),
        ("cpu", torch.float32, False, SILU, 0, None),
        ("cpu", torch.bfloat16, False, SILU, 16, None),
        ("cpu", torch.float32, True, SILU, 16, None),
        ("compiled", torch.float32, False, SILU, 16, None),
        ("cuda", torch.float32, False, SILU, 16, None),
        ("cpu", torch.float32, False, ActivationSpec("gelu"), 16, None),
        ("cpu", torch.float32, False, ActivationSpec("silu", "second"), 16, None),
    ],
)
def test_on_a_cpu_the_kernel_computes_eager_silu_in_float32(
    bound: str,
    dtype: torch.dtype,
    compiled: bool,
    spec: ActivationSpec,
    lanes: int,
    numerics: Numerics | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Compiled code, other activations, 16-bit numbers, and processors with unknown vectors run vLLM's module."""
    monkeypatch.setattr(install, "silu_lanes", lambda: lanes)
    ffn = ffn_of(bound, spec=spec)
    compare = never if numerics is None else lambda *_: 0
    assert ffn_numerics(ffn, dtype, compiled=compiled, cuda=False, compare=compare) == numerics


def test_a_failed_comparison_limits_capture_to_signs(caplog: pytest.LogCaptureFixture) -> None:
    """An output that cannot be compared is not used."""

    def broken(*arguments: Any) -> int:
        raise RuntimeError("no such kernel")

    assert ffn_numerics(ffn_of(), torch.bfloat16, compiled=False, compare=broken) is None
    assert "comparison failed: RuntimeError: no such kernel" in caplog.text


@pytest.mark.parametrize(
    "ffn",
    [
        ffn_of(down=Fp8LinearMethod),
        ffn_of(spec=ActivationSpec("swiglu_step", limit=7.0)),
        ffn_of("native"),
        ffn_of("hip"),
    ],
    ids=["quantized", "a kind that the kernel lacks", "eager", "another platform's"],
)
def test_otherwise_only_signs_are_captured(ffn: GatedFFN) -> None:
    """Where the output could round differently, the comparison is not even run."""
    assert ffn_numerics(ffn, torch.bfloat16, compiled=False, compare=never) is None


def test_a_projection_of_unknown_kind_counts_as_quantized() -> None:
    """Only vLLM's unquantized method counts as unquantized: a wrapper (LoRA) has no method of that name."""
    ffn = ffn_of()
    assert all(map(is_unquantized, linear_layers(ffn.parent)))
    del ffn.parent.down.quant_method
    assert ffn_numerics(ffn, torch.bfloat16, compiled=False, compare=never) is None


@pytest.mark.parametrize(
    ("attributes", "compiled"),
    [({}, False), ({"do_not_compile": True}, False), ({"do_not_compile": False}, True)],
)
def test_a_compiled_model_is_known_by_vllms_mark(attributes: dict[str, bool], compiled: bool) -> None:
    """vLLM's decorator leaves `do_not_compile` on the module it compiles; its eager backend compiles nothing."""
    model = nn.Module()
    model.inner = nn.Module()
    for backend in ("inductor", "eager"):
        for name, value in attributes.items():
            setattr(model.inner, name, value)
        model.inner.compilation_config = SimpleNamespace(backend=backend)  # type: ignore[assignment]
        assert is_compiled(model) == (compiled and backend != "eager")


class TritonExperts:
    """Named like vLLM's class."""

    def __init__(self, limit: float | None = None) -> None:
        self.quant_config = SimpleNamespace(block_shape=None)
        self.activation_config = SimpleNamespace(clamp_limit=limit)
        self.called: list[str] = []

    def activation(self, kind: str, output: torch.Tensor, gate_up: torch.Tensor) -> None:
        self.called.append(kind)


def moe_layers(*experts: TritonExperts, spec: ActivationSpec = SILU) -> list[MoeLayer]:
    layers = []
    for number, item in enumerate(experts):
        method = SimpleNamespace(moe_kernel=SimpleNamespace(fused_experts=item))
        runner = SimpleNamespace(routed_experts=SimpleNamespace(quant_method=method), activation="silu")
        layers.append(MoeLayer(number, "mlp", runner, spec, 8, 2, 16, 16, scale=1.0, shared=None))
    return layers


def test_experts_use_the_kernels_output_where_it_is_equal() -> None:
    """One comparison serves all layers, with the experts' own activation and its kind. Any difference limits capture to
    signs."""
    first, second = TritonExperts(), TritonExperts()
    compared: list[tuple[Any, ...]] = []

    def compare(*arguments: Any) -> int:
        compared.append(arguments)
        return 0

    layers = moe_layers(first, second)
    assert expert_numerics(layers, torch.bfloat16, compare=compare) == Numerics.VLLM_KERNEL
    (output, *others) = compared[0]
    assert others == [SILU, Numerics.VLLM_KERNEL, torch.bfloat16]
    output(torch.ones(2, 8))
    assert first.called == ["silu"]
    assert len(compared) == 1
    assert not second.called
    assert expert_numerics(layers, torch.bfloat16, compare=lambda *_: 1) is None


def test_experts_with_a_clamp_limit_are_not_compared() -> None:
    """With a limit in any layer, or an activation that the kernel lacks, only signs are captured."""
    limited = moe_layers(TritonExperts(), TritonExperts(limit=7.0))
    assert expert_numerics(limited, torch.bfloat16, compare=never) is None
    other = moe_layers(TritonExperts(), spec=ActivationSpec("swiglu_step", limit=7.0))
    assert expert_numerics(other, torch.bfloat16, compare=never) is None


def test_experts_that_cannot_be_compared_are_not_trusted(caplog: pytest.LogCaptureFixture) -> None:
    """Experts that cannot be compared are treated like dense layers, and the log gives the reason."""

    def broken(*arguments: Any) -> int:
        raise RuntimeError("no such kernel")

    assert expert_numerics(moe_layers(TritonExperts()), torch.bfloat16, compare=broken) is None
    assert "comparison failed: RuntimeError: no such kernel" in caplog.text


@pytest.mark.parametrize("lanes", [0, silu_lanes()])
def test_on_the_cpu_every_layer_returns_its_modules_output(lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each FFN has its own replacement. The kernel computes the same output where it knows the processor."""
    monkeypatch.setattr(install, "silu_lanes", lambda: lanes)
    ffns = [ffn_of("native"), ffn_of("native")]
    own = [ffn.parent.act for ffn in ffns]
    buffers = StepBuffers(4, Widths(range(2), 8), torch.device("cpu"))
    assert buffers.dense is not None
    mode = install_all(nn.Module(), Findings(ffns, []), buffers, torch.float32)
    assert mode == f"{'pytorch' if lanes else 'module'}-{buffers.dense.number}"
    gate_up = torch.randn(3, 16)
    for ffn, module in zip(ffns, own, strict=True):
        assert isinstance(ffn.parent.act, CapturedActivation)
        assert ffn.parent.act.activation is module
        assert torch.equal(ffn.parent.act(gate_up), module(gate_up))
    assert buffers.write_counters.tolist() == [WRITE + 3] * 2
