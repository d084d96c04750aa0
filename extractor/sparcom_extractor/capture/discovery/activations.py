"""Which of vLLM's gated activations capture understands, and what it has to know of each.

A gated activation takes the fused projection (rows, 2·neurons) and returns f(gate)·g(up), (rows, neurons). A neuron is
active where f(gate) > 0 (equation 5 of the paper). For every activation here that is where the
gate is above 0, or above fatrelu's threshold if that is higher:

    kind          f(gate)                             g(up)            gate lies    vLLM's class
    silu          gate·σ(gate)                        up               first half   SiluAndMul
    silu          gate·σ(gate)                        up               second half  MulAndSilu
    gelu          gate·Φ(gate)                        up               first half   GeluAndMul("none")
    gelu_tanh     gate·(1 + tanh(…))/2                up               first half   GeluAndMul("tanh")
    fatrelu       gate where gate > threshold, or 0   up               first half   FatreluAndMul
    swiglu_clamp  c·σ(alpha·c), c = min(gate, limit)  clip(up) + beta  first half   SiluAndMulWithClamp
    swiglu_oai    c·σ(alpha·c), c = min(gate, limit)  clip(up) + 1     even places  SwigluOAIAndMul
    swiglu_step   min(gate·σ(gate), limit)            clip(up)         first half   SwigluStepAndMul
    situ          beta·tanh(gate/beta)·σ(gate)        up, softly cut   first half   SituAndMul

clip(up) is up within ±limit. The sign of f is that of the gate as long as limit and beta are positive: anything else is
refused. Classes are known by their names and attributes, which are the same in vLLM 0.24 to 0.33, so that this module
needs neither vLLM nor a device. It does not know how a device rounds: `kernels.py` and `twin.py` do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal

import torch

from sparcom_data.errors import UnsupportedModelError

Kind = Literal["silu", "gelu", "gelu_tanh", "fatrelu", "swiglu_clamp", "swiglu_oai", "swiglu_step", "situ"]
Place = Literal["first", "second", "interleaved"]

# Gated activations whose f(gate) > 0 cannot be told from the gate alone.
REFUSED = {"GeluAndMulSparse": "its threshold is a statistic of the row, so that no fixed sign says what is active"}


@dataclass(frozen=True, slots=True)
class GatedActivation:
    """How one gated activation works; see the module.

    kind: the archive's name for f. place: where the gate lies in the fused projection.
    The others are the parameters of f and g.
    """

    kind: Kind
    place: Place = "first"
    threshold: float = 0.0
    limit: float = math.inf
    alpha: float = 1.0
    beta: float = 0.0
    linear_beta: float | None = None

    def __post_init__(self) -> None:
        problems = []
        if not math.isfinite(self.threshold):
            problems.append(f"its threshold must be finite; it is {self.threshold}")
        if not self.limit > 0:
            problems.append(f"its limit must be above 0; it is {self.limit}")
        if not math.isfinite(self.alpha):
            problems.append(f"its alpha must be finite; it is {self.alpha}")
        if not math.isfinite(self.beta) or (self.kind == "situ" and self.beta <= 0):
            problems.append(f"its beta must be finite{', and above 0' * (self.kind == 'situ')}; it is {self.beta}")
        if self.linear_beta is not None and not 0 < self.linear_beta < math.inf:
            problems.append(f"its linear_beta must be finite and above 0; it is {self.linear_beta}")
        if problems:
            raise ValueError(
                f"a neuron is active where f(gate) > 0, which the sign of the gate tells for {self.kind} only within "
                f"limits: {'; '.join(problems)}"
            )

    def __str__(self) -> str:
        own = [f"{item.name}={getattr(self, item.name)}" for item in fields(self) if item.name != "kind"]
        plain = [f"{item.name}={item.default}" for item in fields(self) if item.name != "kind"]
        different = [text for text, usual in zip(own, plain, strict=True) if text != usual]
        return f"{self.kind} ({', '.join(different)})" if different else self.kind

    @property
    def active_above(self) -> float:
        """A neuron is active exactly where its gate is above this. f may let gates from a threshold below 0 to 0
        through, but they make f negative."""
        return max(self.threshold, 0.0)

    def gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        """View of the gate in `gate_up` (rows, 2·neurons): (rows, neurons)."""
        if self.place == "interleaved":
            return gate_up[:, ::2]
        neurons = gate_up.shape[1] // 2
        return gate_up[:, :neurons] if self.place == "first" else gate_up[:, neurons:]

    def split(self, gate_up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of the gate and the up part of `gate_up` (rows, 2·neurons): each (rows, neurons)."""
        neurons = gate_up.shape[1] // 2
        up = {"first": gate_up[:, neurons:], "second": gate_up[:, :neurons], "interleaved": gate_up[:, 1::2]}
        return self.gate(gate_up), up[self.place]


SILU = GatedActivation("silu")


def rule_of(module: torch.nn.Module) -> GatedActivation | None:
    """How `module` gates, or None where it is no gated activation of vLLM.

    Raises:
        UnsupportedModelError: it is one, but what is active cannot be told from its gate.
    """
    name = type(module).__name__
    if name in REFUSED:
        raise UnsupportedModelError(f"{name} cannot be captured: {REFUSED[name]}. Use another model")
    if name not in _READERS:
        return None
    try:
        return _READERS[name](module)
    except (AttributeError, TypeError, ValueError) as error:
        raise UnsupportedModelError(f"{name} cannot be captured: {error}. Use another model") from error


def _gelu(module: torch.nn.Module) -> GatedActivation:
    kinds: dict[str, Kind] = {"none": "gelu", "tanh": "gelu_tanh"}
    approximate = str(module.approximate)
    if approximate not in kinds:
        raise ValueError(f"its approximation must be none or tanh; it is {approximate!r}")
    return GatedActivation(kinds[approximate])


def _situ(module: torch.nn.Module) -> GatedActivation:
    linear = None if module.linear_beta is None else _number(module, "linear_beta")
    return GatedActivation("situ", beta=_number(module, "beta"), linear_beta=linear)


def _number(module: torch.nn.Module, attribute: str) -> float:
    return float(getattr(module, attribute))


_READERS: dict[str, Callable[[torch.nn.Module], GatedActivation]] = {
    "SiluAndMul": lambda _: SILU,
    "MulAndSilu": lambda _: GatedActivation("silu", "second"),
    "GeluAndMul": _gelu,
    "FatreluAndMul": lambda module: GatedActivation("fatrelu", threshold=_number(module, "threshold")),
    "SiluAndMulWithClamp": lambda module: GatedActivation(
        "swiglu_clamp",
        limit=_number(module, "swiglu_limit"),
        alpha=_number(module, "alpha"),
        beta=_number(module, "beta"),
    ),
    "SwigluOAIAndMul": lambda module: GatedActivation(
        "swiglu_oai", "interleaved", limit=_number(module, "limit"), alpha=_number(module, "alpha"), beta=1.0
    ),
    "SwigluStepAndMul": lambda module: GatedActivation("swiglu_step", limit=_number(module, "limit")),
    "SituAndMul": _situ,
}

GATED = frozenset(_READERS)  # the names of the classes that can be captured
