"""vLLM's gated activations that capture supports, and the FFNs that contain them.

A gated activation maps the fused projection (rows, 2·intermediate_size) to f(gate)·g(up), (rows, intermediate_size). A
neuron is active where f(gate) > 0 (equation 5 of the paper). For the activations below, this holds where the gate is
above 0, or above fatrelu's threshold if that is higher:

    kind          f(gate)                             g(up)              gate         vLLM's class
    silu          gate·σ(gate)                        up                 first half   SiluAndMul
    silu          gate·σ(gate)                        up                 second half  MulAndSilu
    gelu          gate·Φ(gate)                        up                 first half   GeluAndMul("none")
    gelu_tanh     gate·(1 + tanh(…))/2                up                 first half   GeluAndMul("tanh")
    fatrelu       gate where gate > threshold, or 0   up                 first half   FatreluAndMul
    swiglu_clamp  c·σ(alpha·c), c = min(gate, limit)  clip(up) + beta    first half   SiluAndMulWithClamp
    swiglu_oai    c·σ(alpha·c), c = min(gate, limit)  clip(up) + 1       interleaved  SwigluOAIAndMul
    swiglu_step   min(gate·σ(gate), limit)            clip(up)           first half   SwigluStepAndMul
    situ          beta·tanh(gate/beta)·σ(gate)        up, or soft clip   first half   SituAndMul

clip(up) clamps up to ±limit. f has the sign of the gate if limit and beta are positive; other values are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch

from sparcom_data.errors import UnsupportedModelError
from sparcom_extractor.vllm_surface import activations as vllm_activations

Kind = Literal["silu", "gelu", "gelu_tanh", "fatrelu", "swiglu_clamp", "swiglu_oai", "swiglu_step", "situ"]
GateLayout = Literal["first", "second", "interleaved"]

# Gated activations for which f(gate) > 0 does not follow from the gate alone.
REFUSED = {"GeluAndMulSparse": "its threshold is a statistic of the row, not a fixed number"}


@dataclass(frozen=True, slots=True)
class ActivationSpec:
    """Definition of a gated activation. kind: the archive's name for f. layout: position of the gate in the projection.
    Others: parameters of f and g."""

    kind: Kind
    layout: GateLayout = "first"
    threshold: float = 0.0
    limit: float = math.inf
    alpha: float = 1.0
    beta: float = 0.0
    linear_beta: float | None = None

    def __post_init__(self) -> None:
        positive_beta, linear = self.kind == "situ", self.linear_beta
        checks = {
            f"its threshold must be finite; it is {self.threshold}": math.isfinite(self.threshold),
            f"its limit must be above 0; it is {self.limit}": self.limit > 0,
            f"its alpha must be finite; it is {self.alpha}": math.isfinite(self.alpha),
            f"its beta must be finite{', and above 0' * positive_beta}; it is {self.beta}": (
                math.isfinite(self.beta) and (self.beta > 0 or not positive_beta)
            ),
            f"its linear_beta must be finite and above 0; it is {linear}": linear is None or 0 < linear < math.inf,
        }
        if problems := [problem for problem, holds in checks.items() if not holds]:
            raise ValueError(
                f"a neuron is active where f(gate) > 0; the gate's sign shows this for {self.kind} only within "
                f"limits: {'; '.join(problems)}"
            )

    def __str__(self) -> str:
        values = [(item.name, getattr(self, item.name), item.default) for item in fields(self)[1:]]
        changed = [f"{name}={value}" for name, value, default in values if value != default]
        return f"{self.kind} ({', '.join(changed)})" if changed else self.kind

    @property
    def active_above(self) -> float:
        """Largest gate of an inactive neuron. A negative threshold counts as 0: f is negative for negative gates."""
        return max(self.threshold, 0.0)

    def split(self, gate_up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return views of gate and up, (rows, intermediate_size) each, in `gate_up` (rows, 2·intermediate_size)."""
        if self.layout == "interleaved":
            return gate_up[:, ::2], gate_up[:, 1::2]
        first, second = gate_up.chunk(2, dim=1)
        return (first, second) if self.layout == "first" else (second, first)


SILU = ActivationSpec("silu")


def spec_of(module: torch.nn.Module) -> ActivationSpec | None:
    """Return the spec of a gated activation of vLLM, or None for other modules. Refuse unsupported parameters."""
    name = type(module).__name__
    if name in REFUSED:
        raise UnsupportedModelError(f"{name} cannot be captured: {REFUSED[name]}. Use another model")
    if name not in _READERS:
        return None
    try:
        return _READERS[name](module)
    except (AttributeError, TypeError, ValueError) as error:
        raise UnsupportedModelError(f"{name} cannot be captured: {error}. Use another model") from error


def _gelu(module: vllm_activations.GeluAndMulLike) -> ActivationSpec:
    kinds: dict[str, Kind] = {"none": "gelu", "tanh": "gelu_tanh"}
    if module.approximate not in kinds:
        raise ValueError(f"its approximation must be none or tanh; it is {module.approximate!r}")
    return ActivationSpec(kinds[module.approximate])


def _fatrelu(module: vllm_activations.FatreluAndMulLike) -> ActivationSpec:
    return ActivationSpec("fatrelu", threshold=float(module.threshold))


def _swiglu_clamp(module: vllm_activations.SiluAndMulWithClampLike) -> ActivationSpec:
    limit, alpha, beta = float(module.swiglu_limit), float(module.alpha), float(module.beta)
    return ActivationSpec("swiglu_clamp", limit=limit, alpha=alpha, beta=beta)


def _swiglu_oai(module: vllm_activations.SwigluOAIAndMulLike) -> ActivationSpec:
    return ActivationSpec("swiglu_oai", "interleaved", limit=float(module.limit), alpha=float(module.alpha), beta=1.0)


def _swiglu_step(module: vllm_activations.SwigluStepAndMulLike) -> ActivationSpec:
    return ActivationSpec("swiglu_step", limit=float(module.limit))


def _situ(module: vllm_activations.SituAndMulLike) -> ActivationSpec:
    linear = None if module.linear_beta is None else float(module.linear_beta)
    return ActivationSpec("situ", beta=float(module.beta), linear_beta=linear)


_READERS: dict[str, Callable[[Any], ActivationSpec]] = {
    "SiluAndMul": lambda _: SILU,
    "MulAndSilu": lambda _: ActivationSpec("silu", "second"),
    "GeluAndMul": _gelu,
    "FatreluAndMul": _fatrelu,
    "SiluAndMulWithClamp": _swiglu_clamp,
    "SwigluOAIAndMul": _swiglu_oai,
    "SwigluStepAndMul": _swiglu_step,
    "SituAndMul": _situ,
}
GATED = frozenset(_READERS)  # names of the supported classes


@dataclass(frozen=True, slots=True)
class GatedFFN:
    """Module `parent` with its gated activation in `attribute`. Sizes: of the layer, and of this rank's part."""

    layer_id: int
    name: str
    parent: torch.nn.Module
    attribute: str
    spec: ActivationSpec
    intermediate_size: int
    intermediate_size_per_partition: int


def layer_number(name: str) -> int:
    """Return the decoder layer of a module: the one number in its name."""
    numbers = [int(part) for part in name.split(".") if part.isdigit()]
    if len(numbers) != 1:
        raise UnsupportedModelError(
            f"the name of a layer's module must hold one number, the layer's; {name!r} holds {len(numbers)}. "
            "This model cannot be captured yet"
        )
    return numbers[0]
