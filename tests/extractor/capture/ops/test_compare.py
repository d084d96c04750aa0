"""The comparison of activation outputs finds differences."""

from __future__ import annotations

import math

import pytest
import torch

from sparcom_extractor.capture.discovery.activations import SILU, ActivationSpec
from sparcom_extractor.capture.ops.activation_reference import Numerics, activation_output
from sparcom_extractor.capture.ops.compare import differences, output_of_experts, samples

CPU = torch.device("cpu")
NANS = {torch.bfloat16: 2 * 127, torch.float16: 2 * 1023}  # of the 65,536 patterns
INTERLEAVED = ActivationSpec("silu", "interleaved")


def output_of(spec: ActivationSpec, numerics: Numerics, slip: float = 0.0) -> object:
    """Return an activation output with a relative error `slip` of f."""

    def output(gate_up: torch.Tensor) -> torch.Tensor:
        if not slip:
            return activation_output(gate_up, spec, numerics)
        gate, up = (part.float() for part in spec.split(gate_up))
        return (torch.nn.functional.silu(gate) * (1 + slip) * up).to(gate_up.dtype)

    return output


@pytest.mark.parametrize("spec", [SILU, INTERLEAVED], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_every_gate_is_among_the_samples(spec: ActivationSpec, dtype: torch.dtype) -> None:
    """All 65,536 16-bit numbers are gates, first with up = 1, then with other values; in float32 those of both
    dtypes."""
    found = list(samples(spec, dtype, CPU))
    assert len(found) == (3 if dtype == torch.float32 else 1)
    kinds = [torch.bfloat16, torch.float16] if dtype == torch.float32 else [dtype]
    for gate_up, kind in zip(found, kinds, strict=False):
        gate, up = spec.split(gate_up)
        assert gate.shape == (2048, 2048)
        numbers = gate[:32].to(kind)
        assert len(numbers[~numbers.isnan()].view(torch.int16).unique()) == 65536 - NANS[kind]
        assert bool(numbers.isnan().any())
        assert bool((up[:32] == 1).all())
        assert torch.equal(gate[32:64].nan_to_num(), gate[:32].nan_to_num())
        assert len(up[32:64].unique()) > 60


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_equal_outputs_have_no_differences(dtype: torch.dtype) -> None:
    """NaN, infinities and zeros of both signs equal themselves."""
    own = output_of(SILU, Numerics.INDUCTOR)
    assert differences(own, own, SILU, dtype, CPU) == 0  # type: ignore[arg-type]


def test_an_extra_rounding_is_found() -> None:
    """vLLM's kernel rounds f to bfloat16 before the product, so many numbers differ from TorchInductor's."""
    kernel, inductor = output_of(SILU, Numerics.VLLM_KERNEL), output_of(SILU, Numerics.INDUCTOR)
    assert differences(kernel, inductor, SILU, torch.bfloat16, CPU) > 10_000  # type: ignore[arg-type]


def test_an_error_in_the_last_bit_is_found() -> None:
    """An error of 2⁻²³ in f, about one unit in the last place of float32, is found in float32."""
    own, slipped = output_of(SILU, Numerics.INDUCTOR), output_of(SILU, Numerics.INDUCTOR, slip=2**-23)
    assert differences(own, slipped, SILU, torch.float32, CPU) > 100_000  # type: ignore[arg-type]


@pytest.mark.parametrize(("limit", "differs"), [(math.inf, False), (1000.0, True)])
def test_experts_are_compared_by_their_output(limit: float, differs: bool) -> None:
    """The experts' activation gets its kind and an output tensor. One that clamps only large gates is detected."""

    class Experts:
        def activation(self, kind: str, output: torch.Tensor, gate_up: torch.Tensor) -> None:
            assert kind == "silu"
            gate, up = SILU.split(gate_up)
            output.copy_(activation_output(torch.cat([gate.clamp(max=limit), up], dim=1), SILU, Numerics.VLLM_KERNEL))

    own, theirs = output_of(SILU, Numerics.VLLM_KERNEL), output_of_experts(Experts(), "silu")
    assert (differences(theirs, own, SILU, torch.bfloat16, CPU) > 0) == differs  # type: ignore[arg-type]
