"""Configurations of further tiny families, each for something that a comparison with transformers must get right.

Routers that rank by sigmoid scores, with a selection bias or by groups; experts that get scaled inputs; other names of
FFNs and routers; attention with soft-capping; a sliding window. It does not depend on weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from sparcom_models.tiny.sizes import Sizes

# Parameters of routers that transformers sets to 0 and that no trained model has at 0: the selection bias, which is
# added to the ranked scores, and ERNIE's router.
ZERO_ROUTERS = ("e_score_correction_bias", "expert_bias", "gate.weight")


def _sigmoid_experts(sizes: Sizes) -> dict[str, Any]:
    return {
        **sizes.routed,
        "n_routed_experts": 16,
        "num_experts_per_tok": 4,
        "n_shared_experts": 1,
        "moe_intermediate_size": sizes.expert_neurons,
        "first_k_dense_replace": 1 if sizes.layers > 1 else 0,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
    }


def _deepseek_v3(sizes: Sizes) -> Any:
    """Sigmoid scores plus a bias; groups rank by the sum of their two best. Attention is that of DeepSeek-V2."""
    from transformers import DeepseekV3Config

    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0}
    original = {"original_max_position_embeddings": max(1, sizes.context // 4), "beta_fast": 32, "beta_slow": 1}
    return DeepseekV3Config(
        **{**_sigmoid_experts(sizes), "num_key_value_heads": sizes.heads},
        q_lora_rank=None,
        kv_lora_rank=512,
        qk_rope_head_dim=64,
        qk_nope_head_dim=32,
        v_head_dim=32,
        rope_parameters={**yarn, **original},
        n_group=4,
        topk_group=2,
        topk_method="noaux_tc",  # vLLM reads these two of the published configurations, transformers does not
        scoring_func="sigmoid",
    )


def _glm4_moe(sizes: Sizes) -> Any:
    """Sigmoid scores plus a bias, one group."""
    from transformers import Glm4MoeConfig

    return Glm4MoeConfig(**_sigmoid_experts(sizes), head_dim=sizes.hidden // sizes.heads, n_group=1, topk_group=1)


def _ernie4_5_moe(sizes: Sizes) -> Any:
    """A softmax plus a bias, under another name."""
    from transformers import Ernie4_5_MoeConfig

    return Ernie4_5_MoeConfig(
        **sizes.routed,
        moe_num_experts=16,
        moe_k=4,
        moe_num_shared_experts=1,
        moe_intermediate_size=sizes.expert_neurons,
        moe_layer_start_index=1 if sizes.layers > 1 else 0,
        moe_layer_end_index=sizes.layers - 1,
    )


def _lfm2_moe(sizes: Sizes) -> Any:
    """The bias belongs to the block, dense FFNs have w1, w2 and w3, and two layers are convolutions."""
    from transformers import Lfm2MoeConfig

    kinds = ["full_attention" if layer % 2 else "conv" for layer in range(sizes.layers)]
    return Lfm2MoeConfig(
        **sizes.routed,
        num_experts=16,
        num_experts_per_tok=4,
        moe_intermediate_size=sizes.expert_neurons,
        num_dense_layers=1 if sizes.layers > 1 else 0,
        layer_types=kinds,
        use_expert_bias=True,
    )


def _granitemoe(sizes: Sizes) -> Any:
    """Ranks logits and normalizes over the top-k; the router is called `router`."""
    from transformers import GraniteMoeConfig

    options = {**sizes.routed, "intermediate_size": sizes.expert_neurons}
    return GraniteMoeConfig(**options, num_local_experts=16, num_experts_per_tok=4)


def _llama4_text(sizes: Sizes) -> Any:
    """Ranks logits; experts get inputs scaled by a sigmoid, and every expert runs every token."""
    from transformers import Llama4TextConfig

    return Llama4TextConfig(
        **{**sizes.routed, "intermediate_size": sizes.expert_neurons},
        intermediate_size_mlp=sizes.neurons,
        num_local_experts=16,
        num_experts_per_tok=1,
        interleave_moe_layer_step=2 if sizes.layers > 1 else 1,
        head_dim=sizes.hidden // sizes.heads,
        attention_chunk_size=sizes.context,
    )


def _gemma2(sizes: Sizes) -> Any:
    """Attention scores are soft-capped, at a value that the tiny model reaches."""
    from transformers import Gemma2Config

    head = sizes.hidden // sizes.heads
    return Gemma2Config(**sizes.gated, head_dim=head, query_pre_attn_scalar=head, attn_logit_softcapping=1.0)


def _cohere2(sizes: Sizes) -> Any:
    """A sliding window shorter than the prompts of the tests."""
    from transformers import Cohere2Config

    return Cohere2Config(**sizes.gated, sliding_window=8)


MOE_FAMILIES: dict[str, Callable[[Sizes], Any]] = {
    "deepseek-v3": _deepseek_v3,
    "glm4-moe": _glm4_moe,
    "ernie4-5-moe": _ernie4_5_moe,
    "lfm2-moe": _lfm2_moe,
    "granitemoe": _granitemoe,
    "llama4-text": _llama4_text,
}
DENSE_FAMILIES: dict[str, Callable[[Sizes], Any]] = {"gemma2": _gemma2, "cohere2": _cohere2}
