"""The signs and the product of a gated activation in plain NumPy and PyTorch: the CPU's way, and the kernels' twin.

The twin rounds where `kernels.py` rounds, operation by operation, so that a test can hold the two to every bit. Both
take e^x, erf and tanh from float64 there, rounded once to float32: NumPy's and PyTorch's differ in the last of 53 bits
at most, which reaches the last of 24 with a chance of about 2^-29 a number.

It does not know buffers, layers or devices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from sparcom_extractor.capture.discovery.activations import GatedActivation

Rounding = Literal["kernel", "compiled"]  # whose arithmetic a product follows; see `kernels`


def pack_signs_numpy(gate: torch.Tensor, threshold: float = 0.0) -> NDArray[np.uint8]:
    """Bits of gate > threshold for a CPU tensor (rows, neurons): uint8 (rows, ⌈neurons / 8⌉), little bit order.

    NaN and -0.0 are not active. NumPy packs twice as fast here as torch. It has no bfloat16: numbers of 16 bits are
    compared as integers, which keep the order of numbers above 0. A threshold is compared in float32, as vLLM's
    activations do it: torch would round it to bfloat16 first.
    """
    if threshold:
        active = gate.float().numpy() > np.float32(threshold)
    elif gate.dtype in _INFINITY_BITS:
        bits = gate.view(torch.int16).numpy()
        active = (bits > 0) & (bits <= _INFINITY_BITS[gate.dtype])
    else:
        active = gate.numpy() > 0
    return np.packbits(active, axis=-1, bitorder="little")


_INFINITY_BITS = {torch.bfloat16: 0x7F80, torch.float16: 0x7C00}  # NaN has more, whatever its sign


def nonfinite_rows(gate: torch.Tensor) -> NDArray[np.bool_]:
    """Which rows of a CPU tensor (rows, neurons) hold NaN or an infinity: bool (rows,).

    A sum of float32 is not finite where a member is not, and is one pass of the linear algebra library. It may also
    overflow: those rows alone are looked at number by number.
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


def pack_signs_torch(gate: torch.Tensor, threshold: float = 0.0) -> torch.Tensor:
    """The same in torch operations, for any device and without waiting for it."""
    rows, neurons = gate.shape
    active = torch.nn.functional.pad((gate.float() > threshold).to(torch.uint8), (0, -neurons % 8))
    bit = torch.arange(8, dtype=torch.uint8, device=gate.device)  # made there: a copy from the host would wait
    return (active.reshape(rows, -(-neurons // 8), 8) << bit).sum(dim=-1, dtype=torch.uint8)


def nonfinite_rows_torch(gate: torch.Tensor) -> torch.Tensor:
    """The same as `nonfinite_rows` in plain torch operations, for any device: bool (rows,)."""
    return ~torch.isfinite(gate.float()).all(dim=1)


def gated_product(gate_up: torch.Tensor, rule: GatedActivation, rounding: Rounding) -> torch.Tensor:
    """f(gate)·g(up) for `gate_up` (rows, 2·neurons): (rows, neurons) of its type, rounded as `rounding` says."""
    gate, up = (part.float() for part in rule.split(gate_up))
    if rounding == "kernel":
        return _as_kernel(gate, up, rule, gate_up.dtype).to(gate_up.dtype)
    return _as_compiled(gate, up, rule).to(gate_up.dtype)


def _as_kernel(gate: torch.Tensor, up: torch.Tensor, rule: GatedActivation, dtype: torch.dtype) -> torch.Tensor:
    limit = _float32(rule.limit)
    match rule.kind:
        case "fatrelu":
            return torch.where(gate > _float32(rule.threshold), gate, 0.0) * up
        case "situ":
            if rule.linear_beta is not None:
                up = _float32(rule.linear_beta) * _tanh(up * _reciprocal(rule.linear_beta))
            return _float32(rule.beta) * _tanh(gate * _reciprocal(rule.beta)) / (1 + _exp(-gate)) * up
        case "swiglu_oai":
            gate, up = _at_most(gate, limit), _within(up, limit)
            return (up + 1) * gate / (1 + _exp(-gate * _float32(rule.alpha)))
        case "swiglu_clamp":
            gate, up = _at_most(gate, limit).to(dtype).float(), _within(up, limit)
            activated = gate / (1 + _exp(-gate * _float32(rule.alpha)))
        case "silu":
            activated = gate / (1 + _exp(-gate))
        case "gelu" | "gelu_tanh":
            activated = _gelu(gate, rule)
        case _:
            raise NotImplementedError(f"the kernel makes no product of {rule.kind}")
    return activated.to(dtype).float() * (up + _float32(rule.beta))


def _as_compiled(gate: torch.Tensor, up: torch.Tensor, rule: GatedActivation) -> torch.Tensor:
    match rule.kind:
        case "fatrelu":
            return torch.where(gate <= _float32(rule.threshold), 0.0, gate) * up
        case "silu":
            return gate / (1 + _exp(-gate)) * up
        case "gelu" | "gelu_tanh":
            return _gelu(gate, rule) * up
        case _:
            raise NotImplementedError(f"the kernel makes no product of {rule.kind} as a compiler does")


def _gelu(gate: torch.Tensor, rule: GatedActivation) -> torch.Tensor:
    if rule.kind == "gelu_tanh":
        cube = gate * gate * gate
        inner = (cube.double() * _float32(0.044715).double() + gate.double()).float()  # rounded once, as an fma is
        return 0.5 * gate * (1 + _tanh(_float32(0.7978845608028654) * inner))
    return gate * 0.5 * (1 + _erf(gate * _float32(0.7071067811865476)))


def _at_most(x: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    """A device's fmin: the limit for any NaN. torch.fmin keeps signalling ones."""
    return torch.where(x < limit, x, limit)


def _within(x: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    return -_at_most(-_at_most(x, limit), limit)


def _through_float64(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: function(x.double()).float()


_exp, _erf, _tanh = (_through_float64(function) for function in (torch.exp, torch.erf, torch.tanh))


def _float32(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float32)


def _reciprocal(value: float) -> torch.Tensor:
    return 1 / _float32(value)
