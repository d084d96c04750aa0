"""The spec of every gated activation of vLLM matches its output, or the activation is refused with a reason."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch

from sparcom_data.errors import UnsupportedModelError
from sparcom_extractor.capture.discovery.activations import GATED, SILU, ActivationSpec, spec_of
from sparcom_extractor.capture.ops.captured_activation import CapturedActivation, LayerCapture
from sparcom_extractor.capture.ops.step_buffers import MaskBuffer

# vLLM's classes, arguments and the expected spec.
CASES: dict[str, tuple[str, dict[str, Any], ActivationSpec]] = {
    "SiluAndMul": ("SiluAndMul", {}, SILU),
    "MulAndSilu": ("MulAndSilu", {}, ActivationSpec("silu", "second")),
    "GeluAndMul": ("GeluAndMul", {}, ActivationSpec("gelu")),
    "GeluAndMul tanh": ("GeluAndMul", {"approximate": "tanh"}, ActivationSpec("gelu_tanh")),
    "FatreluAndMul": ("FatreluAndMul", {"threshold": 0.01}, ActivationSpec("fatrelu", threshold=0.01)),
    "FatreluAndMul below": ("FatreluAndMul", {"threshold": -0.5}, ActivationSpec("fatrelu", threshold=-0.5)),
    "SiluAndMulWithClamp": (
        "SiluAndMulWithClamp",
        {"swiglu_limit": 7.0, "alpha": 1.702, "beta": 1.0},
        ActivationSpec("swiglu_clamp", limit=7.0, alpha=1.702, beta=1.0),
    ),
    "SwigluOAIAndMul": (
        "SwigluOAIAndMul",
        {"alpha": 1.5, "limit": 6.0},
        ActivationSpec("swiglu_oai", "interleaved", limit=6.0, alpha=1.5, beta=1.0),
    ),
    "SwigluStepAndMul": ("SwigluStepAndMul", {"limit": 5.0}, ActivationSpec("swiglu_step", limit=5.0)),
    "SituAndMul": ("SituAndMul", {"beta": 2.0}, ActivationSpec("situ", beta=2.0)),
    "SituAndMul linear": (
        "SituAndMul",
        {"beta": 2.0, "linear_beta": 3.0},
        ActivationSpec("situ", beta=2.0, linear_beta=3.0),
    ),
}


@pytest.fixture(scope="module")
def make() -> Iterator[Callable[[str, dict[str, Any]], torch.nn.Module]]:
    """Return vLLM's own activations, in eager mode."""
    with ExitStack() as stack:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # importing vLLM raises warnings
            from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
            from vllm.model_executor.layers import activation

            config = VllmConfig(compilation_config=CompilationConfig(mode=0, custom_ops=["none"]))
            stack.enter_context(set_current_vllm_config(config))
        yield lambda name, arguments: getattr(activation, name)(**arguments)


def every_gate(dtype: torch.dtype) -> torch.Tensor:
    """Return all finite 16-bit numbers, except those so small that f is 0 in that dtype: (1, n)."""
    gate = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    return gate[gate.isfinite() & ((gate == 0) | (gate.abs() > 1e-30))].to(dtype)[None]


def mask_buffer(neurons: int) -> MaskBuffer:
    return MaskBuffer(neurons, 0, torch.zeros(1, dtype=torch.int64), torch.zeros((1, 1), dtype=torch.uint8))


def joined(spec: ActivationSpec, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return the fused projection with these parts."""
    gate_up = torch.empty((gate.shape[0], 2 * gate.shape[1]), dtype=gate.dtype)
    for part, values in zip(spec.split(gate_up), (gate, up), strict=True):
        part.copy_(values)
    return gate_up


def test_every_class_has_a_case() -> None:
    """Every supported class has a test case."""
    assert {name for name, _, _ in CASES.values()} == GATED


@pytest.mark.parametrize("case", CASES)
def test_active_neurons_have_a_positive_output_in_vllm(
    case: str, make: Callable[[str, dict[str, Any]], torch.nn.Module]
) -> None:
    """With up = 1, vLLM's output is positive exactly where the spec calls the gate active, for every bfloat16. The op
    stores the same bits and returns vLLM's result."""
    name, arguments, spec = CASES[case]
    activation = make(name, arguments)
    assert spec_of(activation) == spec
    gate = every_gate(torch.bfloat16)
    gate_up = joined(spec, gate, torch.ones_like(gate))
    result = activation(gate_up)
    active = gate.float() > spec.active_above
    assert torch.equal(result > 0, active)

    buffer = mask_buffer(gate.shape[1])
    assert torch.equal(CapturedActivation(LayerCapture(buffer, 0, activation, spec, None))(gate_up), result)
    bits = torch.from_numpy(buffer.masks[0, 0].numpy())[:, None] >> torch.arange(8, dtype=torch.uint8) & 1
    assert torch.equal(bits.flatten()[: gate.shape[1]].bool(), active[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_threshold_is_compared_as_vllm_compares_it(
    dtype: torch.dtype, make: Callable[[str, dict[str, Any]], torch.nn.Module]
) -> None:
    """The threshold is compared in float32. Rounded to 16 bits first, it would not separate its two neighbors."""
    activation = make("FatreluAndMul", {"threshold": 0.01})
    gate = every_gate(dtype)
    buffer = mask_buffer(gate.shape[1])
    captured = CapturedActivation(LayerCapture(buffer, 0, activation, CASES["FatreluAndMul"][2], None))
    result = captured(joined(SILU, gate, torch.ones_like(gate)))
    assert int((result > 0).sum()) == int(np.bitwise_count(buffer.masks.numpy()).sum())


def class_named(name: str, **attributes: Any) -> torch.nn.Module:
    return type(name, (torch.nn.Module,), attributes)()  # type: ignore[no-any-return]


REFUSED: dict[str, tuple[torch.nn.Module, str]] = {
    "sparse": (class_named("GeluAndMulSparse"), "its threshold is a statistic of the row"),
    "limit": (class_named("SwigluStepAndMul", limit=0.0), r"swiglu_step only within limits: its limit must be above 0"),
    "no limit": (class_named("SwigluStepAndMul", limit=math.nan), "its limit must be above 0; it is nan"),
    "limit below 0": (
        class_named("SiluAndMulWithClamp", swiglu_limit=-1.0, alpha=1.0, beta=0.0),
        "its limit must be above 0; it is -1.0",
    ),
    "alpha": (class_named("SwigluOAIAndMul", alpha=math.inf, limit=7.0), "its alpha must be finite; it is inf"),
    "beta": (class_named("SituAndMul", beta=0.0, linear_beta=None), "its beta must be finite, and above 0; it is 0.0"),
    "linear beta": (class_named("SituAndMul", beta=1.0, linear_beta=-2.0), "its linear_beta must be finite and above"),
    "threshold": (class_named("FatreluAndMul", threshold=math.nan), "its threshold must be finite; it is nan"),
    "approximation": (class_named("GeluAndMul", approximate="quick"), "must be none or tanh; it is 'quick'"),
    "attribute": (class_named("GeluAndMul"), "GeluAndMul cannot be captured: .* no attribute 'approximate'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_parameters_that_break_the_sign_rule_are_refused(case: str) -> None:
    """Parameters are refused by name if they are missing, or if f(gate) > 0 does not follow from the gate's sign."""
    module, reason = REFUSED[case]
    with pytest.raises(UnsupportedModelError, match=reason):
        spec_of(module)


def test_all_problems_are_reported_at_once() -> None:
    """The message lists both of two parameters that are out of bounds."""
    with pytest.raises(ValueError, match=r"limit must be above 0; it is -1; its alpha must be finite; it is nan"):
        ActivationSpec("swiglu_clamp", limit=-1, alpha=math.nan)


def test_other_modules_have_no_spec() -> None:
    """Only gated activations have a spec."""
    assert spec_of(torch.nn.SiLU()) is None
