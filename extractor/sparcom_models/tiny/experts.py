"""Configurations of tiny mixtures of experts: the five families, each with what is peculiar to it.

Between them they have a shared expert behind a gate and plain ones, weights normalised over the choice and not, grouped
choice, a factor on the routed output, dense layers in each of the three ways that configurations know, and 60 experts
(no power of two). A model of one layer has a mixture there and no dense layer. Knows no weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from sparcom_models.tiny.sizes import Sizes


def _qwen2_moe(sizes: Sizes) -> Any:
    """Qwen1.5-MoE's 60 experts, 4 chosen, and a shared expert with a gate; the second layer is dense."""
    from transformers import Qwen2MoeConfig

    return Qwen2MoeConfig(
        **sizes.routed,
        num_experts=60,
        num_experts_per_tok=4,
        moe_intermediate_size=sizes.expert_neurons,
        shared_expert_intermediate_size=sizes.neurons,
        mlp_only_layers=[1],
    )


def _qwen3_moe(sizes: Sizes) -> Any:
    """Weights normalised over the choice; every second layer is a mixture, the first is dense."""
    from transformers import Qwen3MoeConfig

    return Qwen3MoeConfig(
        **sizes.routed,
        head_dim=sizes.hidden // sizes.heads,
        num_experts=16,
        num_experts_per_tok=4,
        moe_intermediate_size=sizes.expert_neurons,
        norm_topk_prob=True,
        decoder_sparse_step=2 if sizes.layers > 1 else 1,
    )


def _mixtral(sizes: Sizes) -> Any:
    """Mixtures in every layer, 2 of 8, weights normalised over the choice."""
    from transformers import MixtralConfig

    options = {**sizes.routed, "intermediate_size": sizes.expert_neurons}
    return MixtralConfig(**options, num_local_experts=8, num_experts_per_tok=2)


def _olmoe(sizes: Sizes) -> Any:
    """Mixtures in every layer, weights as the softmax over all experts gives them."""
    from transformers import OlmoeConfig

    options = {**sizes.routed, "intermediate_size": sizes.expert_neurons}
    return OlmoeConfig(**options, num_experts=16, num_experts_per_tok=4, norm_topk_prob=False)


def _deepseek_v2(sizes: Sizes) -> Any:
    """Experts chosen by group, two shared ones, the routed output times 1.5, a dense first layer.

    The ranks of the latent attention are those that vLLM's CPU attention knows. Positions are scaled (YaRN), as those
    of the published models are: the CPU kernel of vLLM 0.32.0 for unscaled ones takes the heads of a query for tokens
    (the output of the first attention was off by up to 16).
    """
    from transformers import DeepseekV2Config

    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "mscale": 0.707, "mscale_all_dim": 0.707}
    original = {"original_max_position_embeddings": max(1, sizes.context // 4), "beta_fast": 32, "beta_slow": 1}

    return DeepseekV2Config(
        **{**sizes.routed, "num_key_value_heads": sizes.heads},
        q_lora_rank=None,
        kv_lora_rank=512,
        qk_rope_head_dim=64,
        qk_nope_head_dim=32,
        v_head_dim=32,
        rope_parameters={**yarn, **original},
        n_routed_experts=16,
        num_experts_per_tok=4,
        n_shared_experts=2,
        moe_intermediate_size=sizes.expert_neurons,
        first_k_dense_replace=1 if sizes.layers > 1 else 0,
        topk_method="group_limited_greedy",
        n_group=4,
        topk_group=2,
        norm_topk_prob=False,
        routed_scaling_factor=1.5,
    )


MOE_ARCHITECTURES: dict[str, Callable[[Sizes], Any]] = {
    "qwen2-moe": _qwen2_moe,
    "qwen3-moe": _qwen3_moe,
    "mixtral": _mixtral,
    "olmoe": _olmoe,
    "deepseek-v2": _deepseek_v2,
}
