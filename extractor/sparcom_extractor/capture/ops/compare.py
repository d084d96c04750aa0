"""Whether the kernel's product is that of vLLM's own code: found out on the device and with the versions at hand.

Every one of the 65,536 numbers of 16 bits is a gate, with an up of 1, which shows f, and with many other ups. In
float32, which shows f to its last bit where 16 bits hide it, the gates are all of those numbers, widened, and four
million others. The product is one multiplication of f and up and one rounding: what agrees on these agrees on all, but
for a fault in f that shows in no number of 16 bits and in none of four million.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from sparcom_extractor.capture.discovery.activations import GatedActivation, rule_of
from sparcom_extractor.capture.ops.reference import Rounding

_NEURONS = 2048  # of a row, so that 32 rows hold all gates of 16 bits
_UPS = 64  # of each of them
_OTHERS = 2**22

Product = Callable[[torch.Tensor], torch.Tensor]


def count_differences(activation: torch.nn.Module, rounding: Rounding, dtype: torch.dtype) -> int:
    """In how many numbers the kernel's product differs from that of vLLM's module on the current CUDA device."""
    rule = rule_of(activation)
    if rule is None:
        raise TypeError(f"{type(activation).__name__} is no gated activation of vLLM")
    return _count(_compiled_native(activation) if rounding == "compiled" else activation, rule, rounding, dtype)


def count_expert_differences(experts: Any, kind: Any, rule: GatedActivation, dtype: torch.dtype) -> int:
    """The same for the activation of vLLM's Triton experts; see `product_of_experts`."""
    return _count(product_of_experts(experts, kind), rule, "kernel", dtype)


def product_of_experts(experts: Any, kind: Any) -> Product:
    """vLLM's Triton experts have a method for it, which is told its kind, a `MoEActivation`, and where to put it."""

    def product(gate_up: torch.Tensor) -> torch.Tensor:
        out = gate_up.new_empty((gate_up.shape[0], gate_up.shape[1] // 2))
        experts.activation(kind, out, gate_up)
        return out

    return product


def _count(reference: Product, rule: GatedActivation, rounding: Rounding, dtype: torch.dtype) -> int:
    def own(gate_up: torch.Tensor) -> torch.Tensor:
        return _own_product(gate_up, rule, rounding)

    device = torch.device("cuda", torch.cuda.current_device())
    different = sum(differences(reference, own, rule, kind, device) for kind in {dtype, torch.float32})
    torch.cuda.empty_cache()  # vLLM measures next what the model leaves free
    return different


def differences(
    reference: Product, own: Product, rule: GatedActivation, dtype: torch.dtype, device: torch.device
) -> int:
    """In how many numbers two products of inputs of a type differ.

    Any NaN is any other. Zeros of either sign are one number: a sum of products is the same with both.
    """
    found = 0
    for gate_up in samples(rule, dtype, device):
        one, other = reference(gate_up), own(gate_up)
        found += int((~((one == other) | (one.isnan() & other.isnan()))).sum())
    return found


def samples(rule: GatedActivation, dtype: torch.dtype, device: torch.device) -> Iterator[torch.Tensor]:
    """Inputs (2048, 2·2048) of a type; see the module."""
    generator = torch.Generator(device).manual_seed(0)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32, device=device).to(torch.int16).reshape(-1, _NEURONS)
    narrow = [torch.bfloat16, torch.float16] if dtype == torch.float32 else [dtype]
    gates = [every.view(kind).to(dtype).repeat(_UPS, 1) for kind in narrow]
    if dtype == torch.float32:
        gates.append(torch.randn((_OTHERS // _NEURONS, _NEURONS), generator=generator, device=device) * 4)
    for gate in gates:
        up = torch.randn(gate.shape, generator=generator, device=device) * 2
        up[: len(every)] = 1
        yield _join(rule, gate, up.to(dtype))


def _join(rule: GatedActivation, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """The fused projection (rows, 2·neurons) whose parts these are."""
    gate_up = torch.empty((gate.shape[0], 2 * gate.shape[1]), dtype=gate.dtype, device=gate.device)
    for part, values in zip(rule.split(gate_up), (gate, up), strict=True):
        part.copy_(values)
    return gate_up


def _compiled_native(activation: Any) -> Product:
    """TorchInductor's code for the module, whole or not at all: PyTorch would run the rest eagerly without a word."""

    def native(gate_up: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = activation.forward_native(gate_up)
        return result

    return torch.compile(native, dynamic=True, fullgraph=True)


def _own_product(gate_up: torch.Tensor, rule: GatedActivation, rounding: Rounding) -> torch.Tensor:
    from sparcom_extractor.capture.ops.kernels import gated_activation

    rows, neurons = gate_up.shape[0], gate_up.shape[1] // 2
    masks = torch.empty((rows, 1, neurons // 8), dtype=torch.uint8, device=gate_up.device)
    writes = torch.zeros(1, dtype=torch.int64, device=gate_up.device)
    flags = torch.zeros((rows, 1), dtype=torch.uint8, device=gate_up.device)
    result = gated_activation(gate_up, writes.clone(), masks, writes, flags, rule, rounding)
    assert result is not None  # noqa: S101  (a rounding was given)
    return result
