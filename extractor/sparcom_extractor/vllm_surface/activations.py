"""Attributes of vLLM's activations, linear layers and compiled models that capture reads.

Identical in vLLM 0.24.0, 0.32.0 and 0.33.0. Importing this module does not import vLLM.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

import torch


class CustomOpLike(Protocol):
    """vllm.model_executor.custom_op.CustomOp, the base of all activations."""

    _forward_method: Callable[..., torch.Tensor]
    forward_native: Callable[[torch.Tensor], torch.Tensor]


class GeluAndMulLike(Protocol):
    """vllm.model_executor.layers.activation.GeluAndMul."""

    approximate: str


class FatreluAndMulLike(Protocol):
    """vllm.model_executor.layers.activation.FatreluAndMul."""

    threshold: float


class SiluAndMulWithClampLike(Protocol):
    """vllm.model_executor.layers.activation.SiluAndMulWithClamp."""

    swiglu_limit: float
    alpha: float
    beta: float


class SwigluOAIAndMulLike(Protocol):
    """vllm.model_executor.layers.activation.SwigluOAIAndMul."""

    limit: float
    alpha: float


class SwigluStepAndMulLike(Protocol):
    """vllm.model_executor.layers.activation.SwigluStepAndMul."""

    limit: float


class SituAndMulLike(Protocol):
    """vllm.model_executor.layers.activation.SituAndMul, from 0.32.0."""

    beta: float
    linear_beta: float | None


class LinearLike(Protocol):
    """vllm.model_executor.layers.linear.LinearBase; only row-parallel layers have input_size_per_partition."""

    input_size: int
    input_size_per_partition: int
    output_size: int
    quant_method: object
    return_bias: bool  # whether it returns a pair, output and bias


class CompilationConfigLike(Protocol):
    """vllm.config.CompilationConfig."""

    backend: str


class CompiledModelLike(Protocol):
    """A module of a class decorated with vllm.compilation.decorators.support_torch_compile."""

    do_not_compile: bool
    compilation_config: CompilationConfigLike


def linear_layers(module: torch.nn.Module) -> list[LinearLike]:
    """Return the linear layers among a module's direct children."""
    return [cast(LinearLike, child) for child in module.children() if hasattr(child, "input_size")]


def is_unquantized(linear: LinearLike) -> bool:
    """Return whether a layer is known to be unquantized. False for a layer wrapped by LoRA, which hides its method."""
    return type(getattr(linear, "quant_method", None)).__name__ == "UnquantizedLinearMethod"


def bound_forward(activation: torch.nn.Module) -> tuple[str, bool]:
    """Return the name of the forward method that vLLM bound, or "", and whether torch.compile wraps it."""
    method = getattr(activation, "_forward_method", None)
    wrapped = getattr(method, "_torchdynamo_orig_callable", method)
    return getattr(wrapped, "__name__", ""), wrapped is not method


def is_compiled(model: torch.nn.Module) -> bool:
    """Return whether vLLM compiles the model with TorchInductor."""
    marked = [module for module in model.modules() if getattr(module, "do_not_compile", True) is False]
    return any(cast(CompiledModelLike, module).compilation_config.backend != "eager" for module in marked)
