"""Compare the kernel's activation output with that of vLLM's own code, on this device and with these versions.

Gates take all 65,536 values of 16 bits, with up = 1, which isolates f, and with many other values of up. In float32,
gates take the same values, widened, and four million others, which test f to its last bit. The output is one product
of f and up, rounded once. Outputs that agree here agree everywhere, unless f has a fault that
none of these gates triggers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sparcom_data.schema import mask_bytes
from sparcom_extractor.capture.discovery.activations import ActivationSpec
from sparcom_extractor.capture.ops.activation_reference import Numerics
from sparcom_extractor.capture.ops.cpu.kernel import silu_and_pack
from sparcom_extractor.capture.ops.step_buffers import MaskBuffer
from sparcom_extractor.vllm_surface.activations import CustomOpLike
from sparcom_extractor.vllm_surface.moe import ExpertsLike

_NEURONS = 2048  # per row, so 32 rows hold all gates of 16 bits
_UPS = 64  # per gate
_FLOAT32_GATES = 2**22
_CPU_SHAPES = ((256, _NEURONS), (1, 11), (3, 1003), (37, 1376), (301, 1003))  # rows and neurons

Output = Callable[[Tensor], Tensor]


def count_differences(activation: Output, spec: ActivationSpec, numerics: Numerics, dtype: torch.dtype) -> int:
    """Return the number of values where the kernel's output differs from vLLM's module, on the current CUDA device, or
    on the CPU with `PYTORCH` numerics."""
    if numerics == Numerics.PYTORCH:
        return _count_differences_on_cpu(activation)

    from sparcom_extractor.capture.ops.activation_kernel import gated_activation  # needs Triton

    reference, device = activation, torch.device("cuda", torch.cuda.current_device())
    if numerics == Numerics.INDUCTOR:  # fullgraph: PyTorch would otherwise run parts eagerly without a warning
        native = cast(CustomOpLike, activation).forward_native
        reference = torch.compile(native, dynamic=True, fullgraph=True)

    def own(gate_up: Tensor) -> Tensor:
        rows, counters = len(gate_up), torch.zeros(1, dtype=torch.int64, device=device)
        buffer = MaskBuffer(_NEURONS, 0, counters, torch.zeros((rows, 1), dtype=torch.uint8, device=device))
        out = gate_up.new_empty((rows, _NEURONS))
        gated_activation(gate_up, torch.zeros_like(counters), buffer, spec, numerics, out)
        return out

    found = sum(differences(reference, own, spec, kind, device) for kind in {dtype, torch.float32})
    torch.cuda.empty_cache()  # vLLM measures the free memory next
    return found


def _count_differences_on_cpu(activation: Output) -> int:
    """Compare SiLU in float32 on fewer numbers, because every start of an engine waits: all of 16 bits, and a million.
    PyTorch computes the ends of rows and of threads' shares differently, so some shapes have no common divisor."""

    def own(gate_up: Tensor) -> Tensor:
        rows, neurons = gate_up.shape[0], gate_up.shape[1] // 2
        return silu_and_pack(gate_up, np.empty((rows, mask_bytes(neurons)), np.uint8), np.zeros(rows, np.uint8))

    generator = torch.Generator().manual_seed(0)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).reshape(-1, _NEURONS)
    inputs = [torch.randn((rows, 2 * neurons), generator=generator) * 4 for rows, neurons in _CPU_SHAPES]
    inputs[0][: 2 * len(every), :_NEURONS] = torch.cat([every.view(torch.bfloat16), every.view(torch.float16)])
    return sum(_different(activation(gate_up), own(gate_up)) for gate_up in inputs)


def output_of_experts(experts: ExpertsLike, kind: Any) -> Output:
    """Return the activation of vLLM's Triton experts as a function of `gate_up`. kind: its MoEActivation."""

    def output(gate_up: Tensor) -> Tensor:
        out = gate_up.new_empty((gate_up.shape[0], gate_up.shape[1] // 2))
        experts.activation(kind, out, gate_up)
        return out

    return output


def differences(one: Output, other: Output, spec: ActivationSpec, dtype: torch.dtype, device: torch.device) -> int:
    """Return the number of values where two outputs differ. All NaNs are equal. So are zeros of either sign, which
    sums of products cannot distinguish."""
    return sum(_different(one(gate_up), other(gate_up)) for gate_up in samples(spec, dtype, device))


def _different(one: Tensor, other: Tensor) -> int:
    return int((~((one == other) | (one.isnan() & other.isnan()))).sum())


def samples(spec: ActivationSpec, dtype: torch.dtype, device: torch.device) -> Iterator[Tensor]:
    """Yield inputs (2048, 2·2048) of a dtype; see the module's docstring."""
    generator = torch.Generator(device).manual_seed(0)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32, device=device).to(torch.int16).reshape(-1, _NEURONS)
    narrow = [torch.bfloat16, torch.float16] if dtype == torch.float32 else [dtype]
    gates = [every.view(kind).to(dtype).repeat(_UPS, 1) for kind in narrow]
    if dtype == torch.float32:
        gates.append(torch.randn((_FLOAT32_GATES // _NEURONS, _NEURONS), generator=generator, device=device) * 4)
    for gate in gates:
        up = torch.randn(gate.shape, generator=generator, device=device) * 2
        up[: len(every)] = 1
        gate_up = torch.empty((gate.shape[0], 2 * _NEURONS), dtype=dtype, device=device)
        for part, values in zip(spec.split(gate_up), (gate, up), strict=True):
            part.copy_(values)
        yield gate_up
