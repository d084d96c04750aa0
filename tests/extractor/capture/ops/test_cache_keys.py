"""Kernels need no new compilation, which a step would wait for, when the number of rows changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from sparcom_extractor.capture.discovery.activations import SILU
from sparcom_extractor.capture.discovery.describe import Widths
from sparcom_extractor.capture.ops import activation_kernel, topk_kernel
from sparcom_extractor.capture.ops.activation_reference import Numerics
from sparcom_extractor.capture.ops.step_buffers import StepBuffers

ROWS, LAYERS, NEURONS, TOP_K, EXPERTS, EXPERT_NEURONS = 32, 4, 40, 4, 60, 24


def test_kernels_are_compiled_once_for_all_numbers_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's cache key of each launch depends neither on the number of rows nor on the layer."""
    keys: dict[str, set[str]] = {"_gated_activation_kernel": set(), "_store_topk_kernel": set()}

    class Keys:
        """Replaces a jitted kernel; notes the cache keys of its launches."""

        def __init__(self, name: str, kernel: Any) -> None:
            backend = make_backend(GPUTarget("cuda", 90, 32))
            self.name, self.bind = name, create_function_from_signature(kernel.signature, kernel.params, backend)

        def __getitem__(self, _grid: Any) -> Callable[..., None]:
            return self.launch

        def launch(self, *arguments: Any, **named: Any) -> None:
            _, specialization, options = self.bind(*arguments, **({"debug": False} | named))
            keys[self.name].add(str((specialization, options)))

    for module, name in zip((activation_kernel, topk_kernel), keys, strict=True):
        monkeypatch.setattr(module, name, Keys(name, getattr(module, name)))
    cpu = torch.device("cpu")  # addresses with values decide on alignment
    buffers = StepBuffers(ROWS, Widths(range(LAYERS), NEURONS, range(LAYERS), TOP_K, EXPERT_NEURONS), cpu)
    assert buffers.dense is not None
    assert buffers.routes is not None
    for rows in (0, 1, 2, 3, 16, 17, ROWS):
        for layer in (0, 1, 3):
            gate_up, index = torch.empty(rows, 2 * NEURONS), torch.tensor(layer)
            activation_kernel.gated_activation(gate_up, index, buffers.dense, SILU, Numerics.INDUCTOR)
            ids, weights = torch.empty(rows, TOP_K, dtype=torch.int32), torch.empty(rows, TOP_K)
            topk_kernel.launch_topk(buffers.routes, layer, ids, weights, 1.5, torch.empty(rows, EXPERTS))
    assert {name: len(found) for name, found in keys.items()} == dict.fromkeys(keys, 1)
