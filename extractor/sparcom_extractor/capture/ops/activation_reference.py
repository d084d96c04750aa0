"""Reference of `activation_kernel` and `cpu.kernel`: signs in NumPy, activation output in PyTorch, on the CPU.

The output is rounded where the kernel rounds, so tests can compare every bit. Kernel tests and reference compute e^x,
erf and tanh in float64, where NumPy and PyTorch may differ in the last bit. That reaches float32 with a probability of
about 2^-29.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparcom_extractor.capture.discovery.activations import ActivationSpec, Kind


class Numerics(StrEnum):
    """Code that an activation output must match bit for bit: vLLM's CUDA kernels, TorchInductor's code, or PyTorch's
    operations on a CPU."""

    VLLM_KERNEL = "vllm_kernel"
    INDUCTOR = "inductor"
    PYTORCH = "pytorch"


ON_CUDA = (Numerics.VLLM_KERNEL, Numerics.INDUCTOR)
# Kinds that the kernels can output. TorchInductor's code for the others changes from version to version.
FUSED: dict[Numerics, frozenset[Kind]] = {
    Numerics.VLLM_KERNEL: frozenset({"silu", "gelu", "gelu_tanh", "fatrelu", "swiglu_clamp", "swiglu_oai", "situ"}),
    Numerics.INDUCTOR: frozenset({"silu", "gelu", "gelu_tanh", "fatrelu"}),
    Numerics.PYTORCH: frozenset({"silu"}),
}


def pack_signs(gate: Tensor, threshold: float = 0.0) -> NDArray[np.uint8]:
    """Pack gate > threshold of a CPU tensor (rows, neurons): uint8 (rows, ⌈neurons / 8⌉), little bit order.
    NaN and -0.0 are inactive. A threshold is compared in float32, as in vLLM's activations."""
    return np.packbits(gate.float().numpy() > np.float32(threshold), axis=-1, bitorder="little")


def nonfinite_rows(gate: Tensor) -> NDArray[np.bool_]:
    """Return a mask of the rows of a CPU tensor (rows, neurons) that hold NaN or an infinity: bool (rows,)."""
    found: NDArray[np.bool_] = (~torch.isfinite(gate)).any(dim=1).numpy()
    return found


def activation_output(gate_up: Tensor, spec: ActivationSpec, numerics: Numerics) -> Tensor:
    """Return f(gate)·g(up) for `gate_up` (rows, 2·neurons): (rows, neurons) of its dtype, rounded as in `numerics`."""
    if numerics not in ON_CUDA or spec.kind not in FUSED[numerics]:  # PyTorch is its own reference
        raise NotImplementedError(f"the kernel has no activation output of {spec.kind} for {numerics} on CUDA")
    gate, up = (part.float() for part in spec.split(gate_up))
    if numerics == Numerics.VLLM_KERNEL:
        return _vllm_kernel(gate, up, spec, gate_up.dtype).to(gate_up.dtype)
    if spec.kind == "fatrelu":
        return (torch.where(gate <= _float32(spec.threshold), 0.0, gate) * up).to(gate_up.dtype)
    return (_activated(gate, spec) * up).to(gate_up.dtype)


def _vllm_kernel(gate: Tensor, up: Tensor, spec: ActivationSpec, dtype: torch.dtype) -> Tensor:
    limit, alpha, beta = _float32(spec.limit), _float32(spec.alpha), _float32(spec.beta)
    if spec.kind in ("swiglu_oai", "swiglu_clamp"):
        gate, up = _fmin(gate, limit), -_fmin(-_fmin(up, limit), limit)
    match spec.kind:
        case "fatrelu":
            return torch.where(gate > _float32(spec.threshold), gate, 0.0) * up
        case "situ":
            if spec.linear_beta is not None:
                linear = _float32(spec.linear_beta)
                up = linear * _float64(torch.tanh, up * (1 / linear))
            return beta * _float64(torch.tanh, gate * (1 / beta)) / (1 + _float64(torch.exp, -gate)) * up
        case "swiglu_oai":
            return (up + 1) * gate / (1 + _float64(torch.exp, -gate * alpha))
        case "swiglu_clamp":
            gate = gate.to(dtype).float()
    return _activated(gate, spec).to(dtype).float() * (up + beta)


def _activated(gate: Tensor, spec: ActivationSpec) -> Tensor:
    """Return f(gate) of silu, swiglu_clamp, gelu and gelu_tanh."""
    if spec.kind == "gelu_tanh":
        cube = gate * gate * gate
        inner = (cube.double() * _float32(0.044715).double() + gate.double()).float()  # rounded once, like an fma
        return 0.5 * gate * (1 + _float64(torch.tanh, _float32(0.7978845608028654) * inner))
    if spec.kind == "gelu":
        return gate * 0.5 * (1 + _float64(torch.erf, gate * _float32(0.7071067811865476)))
    return gate / (1 + _float64(torch.exp, -gate * _float32(spec.alpha)))


def _fmin(x: Tensor, limit: Tensor) -> Tensor:
    """Return fmin as a device computes it: the limit for any NaN. torch.fmin keeps signaling NaNs."""
    return torch.where(x < limit, x, limit)


def _float64(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return function(x.double()).float()


def _float32(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)
