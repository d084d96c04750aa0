"""vLLM's own FFNs of a quantized LLaMA: fused kernels stay in use, and masks are those of the gate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparcom_extractor.capture.discovery.describe import widths_here
from sparcom_extractor.capture.discovery.findings import find_captured
from sparcom_extractor.capture.ops.activation_reference import pack_signs
from sparcom_extractor.capture.ops.install import install_all
from sparcom_extractor.capture.ops.step_buffers import StepBuffers

ROWS, NEURONS, SCALE = 5, 176, 0.05
STATIC = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}
CONFIG = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "ignore": ["lm_head"],
    "config_groups": {"all": {"targets": ["Linear"], "weights": STATIC, "input_activations": STATIC}},
}
FUSED = {"0.33.0"}  # versions whose FFN fuses the activation with the quantization by the type of its module


@pytest.fixture
def kernels() -> Iterator[list[str]]:
    """Implement the kernels of one FFN on the CPU; return their calls."""
    calls: list[str] = []

    def quantize(result: Tensor, given: Tensor, scale: Tensor, *_: Any) -> None:
        calls.append("quantize")
        result.copy_((given.float() / scale).to(result.dtype))

    def fused(result: Tensor, gate_up: Tensor, scale: Tensor) -> None:
        calls.append("fused")
        gate, up = gate_up.float().chunk(2, dim=-1)
        result.copy_((torch.nn.functional.silu(gate) * up / scale).to(result.dtype))

    def multiply(out: Tensor, a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, *_: Any) -> None:
        calls.append("multiply")
        out.copy_(((a.float() * a_scale) @ (b.float() * b_scale)).to(out.dtype))

    with torch.library._scoped_library("_C", "IMPL") as library:
        for name, kernel in {
            "static_scaled_fp8_quant": quantize, "silu_and_mul_quant": fused, "cutlass_scaled_mm": multiply,
        }.items():  # fmt: skip
            library.impl(name, kernel, "CPU")
        yield calls


def test_fp8_llama(
    vllm: Any, make_model_folder: Callable[..., Path], engine_config: Callable[..., Any], build: Any, kernels: list[str]
) -> None:
    """FFNs with static FP8 scales call the same kernels with and without capture, and return the same output."""
    config = engine_config(make_model_folder("llama", quantization_config=CONFIG), enforce_eager=True)
    with build(config) as model:
        mlps = [layer.mlp for layer in model.model.layers]
        for number, mlp in enumerate(mlps):
            for linear in (mlp.gate_up_proj, mlp.down_proj):
                generator = torch.Generator().manual_seed(number)
                weight = torch.randn(linear.weight.shape, generator=generator)
                linear.weight.data.copy_(weight.to(linear.weight.dtype))
                linear.weight_scale.data.fill_(SCALE)
                linear.input_scale.data.fill_(SCALE)
                linear.quant_method.process_weights_after_loading(linear)
        x = torch.randn(ROWS, 128, generator=torch.Generator().manual_seed(9), dtype=torch.bfloat16)
        expected = ["quantize", "multiply", "fused" if vllm.version in FUSED else "quantize", "multiply"] * len(mlps)
        kernels.clear()
        plain = [mlp(x) for mlp in mlps]
        assert kernels == expected
        kernels.clear()
        found = find_captured(model, range(3))
        buffers = StepBuffers(ROWS, widths_here(found), torch.device("cpu"))
        assert buffers.dense is not None
        types = [type(mlp.act_fn) for mlp in mlps]
        assert install_all(model, found, buffers, torch.bfloat16) == f"projection-{buffers.dense.number}"
        assert [type(mlp.act_fn) for mlp in mlps] == types
        captured = [mlp(x) for mlp in mlps]
        assert kernels == expected
        for index, (mlp, before, after) in enumerate(zip(mlps, plain, captured, strict=True)):
            assert torch.equal(before, after)
            gate = mlp.gate_up_proj(x)[0][:, :NEURONS]
            np.testing.assert_array_equal(buffers.dense.masks[:, index].numpy(), pack_signs(gate.float(), 0.0))
