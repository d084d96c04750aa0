"""Step `kernels of experts`: what a layer of experts launches, without an engine.

1. Signs and product where rows are (token, choice): bits against NumPy on the CPU, products against vLLM's own kernel.
2. Routes: what the kernel stored, against plain torch on the CPU, for every type of ids and weights.

On CUDA again out of a replayed graph. On the CPU the same calls go the host's own ways, which shows that they run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparcom_extractor.capture.discovery.activations import SILU
from sparcom_extractor.capture.ops.activation_reference import Numerics, pack_signs
from sparcom_extractor.capture.ops.captured_activation import LayerCapture
from sparcom_extractor.capture.ops.step_buffers import RouteBuffer
from sparcom_extractor.capture.ops.topk_reference import store_topk
from sparcom_verification.selftest.kernels import different_values, make_gate_up, mask_buffer, vllm_activations
from sparcom_verification.selftest.results import Check

if TYPE_CHECKING:
    from sparcom_verification.selftest.process import Context

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
IDS = (torch.int32, torch.int64, torch.uint32)
ROWS = (1, 33, 256)
SHAPES = ((4, 1408), (2, 1003), (6, 176))  # choices, neurons of an expert
EXPERTS, SCALE = 60, 1.5
REPLAYS = 3


def check_expert_kernels(context: Context) -> None:
    """Step: signs and product of chosen experts, and routes."""
    device, draw = torch.device(context.device), torch.Generator().manual_seed(3)
    with vllm_activations(custom=device.type == "cuda") as activations:
        own = activations["silu"]()
        for dtype in DTYPES:
            for check in _check_signs(device, dtype, own, draw):
                context.tell(check)
    context.tell(_check_routes(device, draw))


@dataclass(slots=True)
class _Tally:
    total: int = 0
    differing: int = 0

    def add(self, total: int, differing: int) -> None:
        self.total += total
        self.differing += differing


def _calls(device: torch.device, call: Callable[[], None], refill: Callable[[], None]) -> Iterator[None]:
    """Call once; on CUDA capture the call in a graph and replay that, with new numbers each time. Yields after each."""
    call()
    yield
    if device.type != "cuda":
        return
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    for _ in range(REPLAYS):
        refill()
        graph.replay()
        yield


def _check_signs(
    device: torch.device, dtype: torch.dtype, own: torch.nn.Module, draw: torch.Generator
) -> Iterator[Check]:
    bits, values, label = _Tally(), _Tally(), f"experts {str(dtype).removeprefix('torch.')}"
    for choices, neurons in SHAPES:
        for rows in ROWS:
            _compare_signs(_Case(device, dtype, rows, choices, neurons, draw), own, bits, values)
    yield Check(f"{label}, signs", "bits, and NumPy's on the CPU", bits.total, bits.differing)
    if device.type == "cuda":
        yield Check(f"{label}, product", "values, and vLLM's own", values.total, values.differing, "values")


class _Case:
    """Gates of one step, their buffer, and where their product goes."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype, rows: int, choices: int, neurons: int, draw: torch.Generator
    ) -> None:
        self._draw, self.rows = draw, rows
        self.buffer = mask_buffer(rows, 2, neurons, device, choices)
        self.capture = LayerCapture(self.buffer, 1, torch.nn.Identity(), SILU, Numerics.VLLM_KERNEL)
        self.gate_up = torch.empty((rows * choices, 2 * neurons), dtype=dtype, device=device)
        self.product = torch.empty((rows * choices, neurons), dtype=dtype, device=device)
        self.refill()

    def refill(self) -> None:
        """New numbers, and masks that show what is not written."""
        rows, double = self.gate_up.shape
        self.gate_up.copy_(make_gate_up(rows, double // 2, self.gate_up.dtype, self._draw))
        self.buffer.masks.fill_(0xA5)

    def call(self) -> None:
        """As the experts call it."""
        if self.gate_up.device.type == "cuda":
            self.capture.run_kernel(self.gate_up, self.capture.index, Numerics.VLLM_KERNEL, self.product)
        else:
            torch.ops.sparcom.capture_signs(self.gate_up, self.capture.index, self.buffer.number)


def _compare_signs(case: _Case, own: torch.nn.Module, bits: _Tally, values: _Tally) -> None:
    device = case.gate_up.device
    for _ in _calls(device, case.call, case.refill):
        found = case.buffer.masks[:, 1].cpu().numpy().reshape(len(case.gate_up), -1)
        expected = pack_signs(SILU.split(case.gate_up)[0].cpu())
        bits.add(case.product.numel(), int(np.bitwise_count(found ^ expected).sum()))
        if device.type == "cuda":
            values.add(case.product.numel(), different_values(case.product, own(case.gate_up.clone())))


def _check_routes(device: torch.device, draw: torch.Generator) -> Check:
    tally = _Tally()
    for dtype in DTYPES:
        for kind in IDS:
            for rows in ROWS:
                _compare_routes(device, dtype, kind, rows, draw, tally)
    return Check("routes", "experts and weights, and plain torch's on the CPU", tally.total, tally.differing, "values")


def _compare_routes(
    device: torch.device, dtype: torch.dtype, kind: torch.dtype, rows: int, draw: torch.Generator, tally: _Tally
) -> None:
    choices = SHAPES[0][0]
    found = _routes(rows, choices, device)
    ids, weights = torch.empty((rows, choices), dtype=kind, device=device), torch.empty((rows, choices), device=device)
    weights = weights.to(dtype)

    def refill() -> None:
        ids.copy_(torch.rand((rows, EXPERTS), generator=draw).topk(choices).indices.to(kind))
        weights.copy_(torch.rand((rows, choices), generator=draw))

    refill()
    for _ in _calls(device, lambda: store_topk(found, 1, ids, weights, SCALE), refill):
        twin = _routes(rows, choices, torch.device("cpu"))
        store_topk(twin, 1, ids.cpu(), weights.cpu(), SCALE)
        for one, other in ((found.experts, twin.experts), (found.weights, twin.weights)):
            tally.add(rows * choices, int((_numbers(one) != _numbers(other)).sum()))


def _routes(rows: int, choices: int, device: torch.device) -> RouteBuffer:
    counters = torch.zeros(2, dtype=torch.int64, device=device)
    return RouteBuffer(choices, counters, torch.zeros((rows, 2), dtype=torch.uint8, device=device))


def _numbers(stored: torch.Tensor) -> np.ndarray[Any, Any]:
    """The layer's values on the host."""
    return stored[:, 1].cpu().numpy()
