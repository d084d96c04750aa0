"""Signs and activation output in NumPy and PyTorch: what the CPU runs, and the reference for `activation_kernel`.

The output is rounded where the kernel rounds, operation by operation, so that tests can compare every bit. Both take
e^x, erf and tanh from float64, rounded once to float32: NumPy and PyTorch differ in the last of 53 bits at most, which
reaches the last of 24 with a probability of about 2^-29.
"""

from __future__ import annotations

import functools
from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray

from sparcom_extractor.capture.discovery.activations import ActivationSpec


class Numerics(StrEnum):
    """What an activation output must equal bit for bit: that of vLLM's CUDA kernels, or of TorchInductor's code."""

    VLLM_KERNEL = "vllm_kernel"
    INDUCTOR = "inductor"


_INFINITY_BITS = {torch.bfloat16: 0x7F80, torch.float16: 0x7C00}  # NaN has more, of either sign


def pack_signs(gate: torch.Tensor, threshold: float = 0.0) -> NDArray[np.uint8]:
    """Return the bits of gate > threshold for a CPU tensor (rows, neurons): uint8 (rows, ⌈neurons / 8⌉), little order.

    NaN and -0.0 are not active. NumPy packs twice as fast here as torch. It has no bfloat16, so 16-bit numbers are
    compared as integers, which keeps their order above 0. A threshold is compared in float32, as in vLLM's activations;
    torch would round it to bfloat16 first.
    """
    if threshold:
        active = gate.float().numpy() > np.float32(threshold)
    elif gate.dtype in _INFINITY_BITS:
        bits = gate.view(torch.int16).numpy()
        active = (bits > 0) & (bits <= _INFINITY_BITS[gate.dtype])
    else:
        active = gate.numpy() > 0
    return np.packbits(active, axis=-1, bitorder="little")


def nonfinite_rows(gate: torch.Tensor) -> NDArray[np.bool_]:
    """Return which rows of a CPU tensor (rows, neurons) hold NaN or an infinity: bool (rows,).

    In float32 the sum of a row, one pass of BLAS, is not finite if a number is not. It may also overflow, so rows with
    such a sum are searched.
    """
    if gate.dtype in _INFINITY_BITS:
        bits, infinity = gate.view(torch.int16).numpy(), _INFINITY_BITS[gate.dtype]
        negative: NDArray[np.uint16] = bits.view(np.uint16).max(axis=1, initial=0)
        return np.asarray((bits.max(axis=1, initial=0) >= infinity) | (negative >= infinity + 0x8000))
    found: NDArray[np.bool_] = ~np.isfinite(torch.mv(gate, _ones(gate.shape[1])).numpy())
    for row in np.flatnonzero(found).tolist():
        found[row] = not torch.isfinite(gate[row]).all()
    return found


@functools.cache
def _ones(count: int) -> torch.Tensor:
    return torch.ones(count, dtype=torch.float32)


def activation_output(gate_up: torch.Tensor, spec: ActivationSpec, numerics: Numerics) -> torch.Tensor:
    """Return f(gate)·g(up) for `gate_up` (rows, 2·neurons): (rows, neurons) of its dtype, rounded by `numerics`."""
    gate, up = (part.float() for part in spec.split(gate_up))
    if numerics == Numerics.VLLM_KERNEL:
        return _vllm_kernel(gate, up, spec, gate_up.dtype).to(gate_up.dtype)
    match spec.kind:
        case "fatrelu":
            activated = torch.where(gate <= _float32(spec.threshold), 0.0, gate)
        case "silu":
            activated = gate / (1 + _exp(-gate))
        case "gelu" | "gelu_tanh":
            activated = _gelu(gate, spec)
        case _:
            raise NotImplementedError(
                f"the kernel has no activation output of {spec.kind} as TorchInductor computes it"
            )
    return (activated * up).to(gate_up.dtype)


def _vllm_kernel(gate: torch.Tensor, up: torch.Tensor, spec: ActivationSpec, dtype: torch.dtype) -> torch.Tensor:
    limit, alpha, beta = _float32(spec.limit), _float32(spec.alpha), _float32(spec.beta)
    if spec.kind in ("swiglu_oai", "swiglu_clamp"):
        gate, up = _fmin(gate, limit), -_fmin(-_fmin(up, limit), limit)
    match spec.kind:
        case "fatrelu":
            return torch.where(gate > _float32(spec.threshold), gate, 0.0) * up
        case "situ":
            if spec.linear_beta is not None:
                linear = _float32(spec.linear_beta)
                up = linear * _tanh(up * (1 / linear))
            return beta * _tanh(gate * (1 / beta)) / (1 + _exp(-gate)) * up
        case "swiglu_oai":
            return (up + 1) * gate / (1 + _exp(-gate * alpha))
        case "swiglu_clamp":
            gate = gate.to(dtype).float()
            activated = gate / (1 + _exp(-gate * alpha))
        case "silu":
            activated = gate / (1 + _exp(-gate))
        case "gelu" | "gelu_tanh":
            activated = _gelu(gate, spec)
        case _:
            raise NotImplementedError(f"the kernel has no activation output of {spec.kind}")
    return activated.to(dtype).float() * (up + beta)


def _gelu(gate: torch.Tensor, spec: ActivationSpec) -> torch.Tensor:
    if spec.kind == "gelu_tanh":
        cube = gate * gate * gate
        inner = (cube.double() * _float32(0.044715).double() + gate.double()).float()  # rounded once, like an fma
        return 0.5 * gate * (1 + _tanh(_float32(0.7978845608028654) * inner))
    return gate * 0.5 * (1 + _erf(gate * _float32(0.7071067811865476)))


def _fmin(x: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    """Like fmin on a device: the limit for any NaN. torch.fmin keeps signaling ones."""
    return torch.where(x < limit, x, limit)


def _exp(x: torch.Tensor) -> torch.Tensor:
    return torch.exp(x.double()).float()


def _erf(x: torch.Tensor) -> torch.Tensor:
    return torch.erf(x.double()).float()


def _tanh(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x.double()).float()


def _float32(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float32)
