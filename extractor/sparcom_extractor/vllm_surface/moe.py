"""Attributes of vLLM's MoE layers that capture reads.

Identical in vLLM 0.24.0, 0.32.0 and 0.33.0, except where noted. Importing this module does not import vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

MOE_RUNNER = "MoERunner"  # base class of every runner
OTHER_MOE = frozenset({"FusedMoE", "SharedFusedMoE", "RoutedExperts"})  # older releases, or layers without a runner
TRITON_EXPERTS, CPU_EXPERTS = "TritonExperts", "CPUUnquantizedExperts"
CPU_ISA = "vec"  # portable instruction set of CPU_EXPERTS, with a known weight layout


class MoeParallelConfigLike(Protocol):
    """vllm.model_executor.layers.fused_moe.config.FusedMoEParallelConfig."""

    use_ep: bool
    dp_size: int


class MoeConfigLike(Protocol):
    """vllm.model_executor.layers.fused_moe.config.FusedMoEConfig."""

    num_experts: int
    experts_per_token: int
    intermediate_size_per_partition: int
    intermediate_size_per_partition_unpadded: int | None
    tp_size: int
    is_sequence_parallel: bool
    moe_parallel_config: MoeParallelConfigLike


class RouterLike(Protocol):
    """vllm.model_executor.layers.fused_moe.router.fused_moe_router.FusedMoERouter."""

    eplb_state: object | None
    num_fused_shared_experts: int
    select_experts: Callable[..., Any]


class QuantConfigLike(Protocol):
    """vllm.model_executor.layers.fused_moe.config.FusedMoEQuantConfig."""

    block_shape: Sequence[int] | None


class ActivationConfigLike(Protocol):
    """vllm.model_executor.layers.fused_moe.activation.ApplyMoEActivationConfig, from 0.32.0."""

    clamp_limit: float | None


class ExpertsLike(Protocol):
    """vllm.model_executor.layers.fused_moe.modular_kernel.FusedMoEExpertsModular and two of its subclasses.
    Complete in 0.32.0 and 0.33.0; older versions lack activation_config and the attributes of the CPU's experts."""

    apply: Callable[..., Any]
    activation: Callable[..., Any]  # TritonExperts: (kind, output, gate_up)
    quant_config: QuantConfigLike
    activation_config: ActivationConfigLike
    gemm1_clamp_limit: float | None  # TritonExperts before 0.32
    isa: str  # CPUUnquantizedExperts, as are the two below
    w1_bias: torch.Tensor | None
    _use_zentorch: bool


class MoeKernelLike(Protocol):
    """vllm.model_executor.layers.fused_moe.modular_kernel.FusedMoEKernel."""

    fused_experts: ExpertsLike


class MoeMethodLike(Protocol):
    """vllm.model_executor.layers.fused_moe.fused_moe_method_base.FusedMoEMethodBase."""

    moe_kernel: MoeKernelLike | None


class RoutedExpertsLike(Protocol):
    """vllm.model_executor.layers.fused_moe.routed_experts.RoutedExperts."""

    quant_method: MoeMethodLike
    w13_weight: torch.Tensor


class SharedExpertsLike(Protocol):
    """vllm.model_executor.layers.fused_moe.runner.shared_experts.SharedExperts."""

    _layer: torch.nn.Module


class MoeRunnerLike(Protocol):
    """vllm.model_executor.layers.fused_moe.runner.moe_runner.MoERunner."""

    layer_name: str
    moe_config: MoeConfigLike
    router: RouterLike
    routed_experts: RoutedExpertsLike
    shared_experts: SharedExpertsLike | None
    activation: Any  # MoEActivation
    routed_scaling_factor: float


def has_known_cpu_weights(experts: ExpertsLike) -> bool:
    """Return whether CPU_EXPERTS run vLLM's portable kernel, which has a known weight layout."""
    return experts.isa == CPU_ISA and not experts._use_zentorch


def has_clamp_limit(experts: ExpertsLike) -> bool:
    """Return whether TRITON_EXPERTS clamp gate and up, or might clamp them."""
    try:
        config = getattr(experts, "activation_config", None)
        limit = experts.gemm1_clamp_limit if config is None else config.clamp_limit
    except AttributeError:
        return True
    return limit is not None


def prepack_moe_weight(weight: torch.Tensor, isa: str) -> torch.Tensor:
    """Return weights (experts, rows, hidden) in the layout that vLLM's CPU kernel reads."""
    from vllm._custom_ops import cpu_prepack_moe_weight

    packed: torch.Tensor = cpu_prepack_moe_weight(weight, isa)
    return packed
