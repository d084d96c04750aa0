"""Configurations of tiny models: a table from architecture to the options of its transformers configuration.

Sizes are small and deliberately uneven. FFNs have 176 neurons, a multiple of 8 but not of 64. Experts have 112 neurons,
not a multiple of 32, but whole bytes on two ranks. There are fewer key-value heads than heads, of the smallest size
that vLLM's CPU attention supports. The only layer of a one-layer MoE model is an MoE layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Options = dict[str, Any]  # of a transformers configuration
# Standard deviations of weights. The usual 0.02 gives gate pre-activations of about 0.2. A value of 0.2 gives about 2,
# which keeps gates away from zero. MoE models use 0.1, since rounding grows from layer to layer: combine weights of two
# correct implementations of DeepSeek-V2 differed by 7e-5 with 0.2 and by 3e-6 with 0.1.
DENSE_STD, MOE_STD = 0.2, 0.1
# Router parameters that transformers initializes to 0 and that are never 0 in trained models: the selection bias, which
# is added to the ranked scores, and ERNIE's router.
ZERO_ROUTERS = ("e_score_correction_bias", "expert_bias", "gate.weight")
HIDDEN, HEADS = 128, 4
HEAD = HIDDEN // HEADS


@dataclass(frozen=True)  # without slots: class attributes are the defaults
class Sizes:
    """Sizes that a caller may choose; `intermediate_size` applies to dense FFNs and shared experts.

    tokens: vocab_size and the ids of the special tokens, from the tokenizer.
    """

    layers: int = 3
    intermediate_size: int = 176
    context: int = 512
    moe_intermediate_size: int = 112
    tokens: dict[str, int | None] = field(default_factory=dict)

    @property
    def one_if_deep(self) -> int:
        """1 if there is a second layer, else 0."""
        return int(self.layers > 1)

    @property
    def dense(self) -> Options:
        """Options of LLaMA and its descendants."""
        return {
            **self.tokens,
            "hidden_size": HIDDEN,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": HEADS,
            "num_key_value_heads": 2,
            "max_position_embeddings": self.context,
            "initializer_range": DENSE_STD,
        }

    def moe(self, width: str = "moe_intermediate_size", **options: Any) -> Options:
        """Options of MoE models; `width` is the option's name for the experts' intermediate size."""
        return self.dense | {"initializer_range": MOE_STD, width: self.moe_intermediate_size} | options

    def deepseek(self, rope_scale: float, **options: Any) -> Options:
        """Options of DeepSeek: a dense first layer, experts in groups, latent attention of ranks that vLLM supports.

        Positions are scaled (YaRN) as in the published models. The CPU kernel of vLLM 0.32.0 for unscaled positions
        mistakes query heads for tokens (the output of the first attention was off by up to 16).
        """
        yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "beta_fast": 32, "beta_slow": 1}
        scales = {"mscale": rope_scale, "mscale_all_dim": rope_scale}
        return self.moe(
            n_routed_experts=16,
            num_experts_per_tok=4,
            first_k_dense_replace=self.one_if_deep,
            n_group=4,
            topk_group=2,
            num_key_value_heads=HEADS,
            q_lora_rank=None,
            kv_lora_rank=512,
            qk_rope_head_dim=64,
            qk_nope_head_dim=32,
            v_head_dim=32,
            rope_parameters={**yarn, **scales, "original_max_position_embeddings": max(1, self.context // 4)},
            **options,
        )


SIGMOID: Options = {"n_shared_experts": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.5}
DENSE_ARCHITECTURES: dict[str, Callable[[Sizes], Options]] = {
    "llama": lambda s: s.dense,
    "mistral": lambda s: s.dense | {"sliding_window": None},
    "qwen2": lambda s: s.dense | {"use_sliding_window": False},
    # GELU gates; in vLLM all layers share one activation module.
    "gemma": lambda s: s.dense | {"head_dim": HEAD, "hidden_activation": "gelu_pytorch_tanh"},
    # Norms after the blocks. vLLM runs it, like smollm3, with its Transformers backend.
    "olmo2": lambda s: s.dense,
    # Layers without position embeddings.
    "smollm3": lambda s: s.dense,
    # No gate, so capture refuses it.
    "opt": lambda s: {
        **s.tokens,
        "hidden_size": HIDDEN,
        "word_embed_proj_dim": HIDDEN,
        "ffn_dim": s.intermediate_size,
        "num_hidden_layers": s.layers,
        "num_attention_heads": HEADS,
        "max_position_embeddings": s.context,
        "init_std": DENSE_STD,
    },
    # No gate, and fused projections under other names.
    "gpt2": lambda s: {
        **s.tokens,
        "n_embd": HIDDEN,
        "n_inner": s.intermediate_size,
        "n_layer": s.layers,
        "n_head": HEADS,
        "n_positions": s.context,
        "initializer_range": DENSE_STD,
    },
    # Attention scores are soft-capped at a value that the tiny model reaches.
    "gemma2": lambda s: s.dense | {"head_dim": HEAD, "query_pre_attn_scalar": HEAD, "attn_logit_softcapping": 1.0},
    # A sliding window shorter than the prompts of the tests.
    "cohere2": lambda s: s.dense | {"sliding_window": 8},
}
MOE_ARCHITECTURES: dict[str, Callable[[Sizes], Options]] = {
    # 60 experts like Qwen1.5-MoE, and a shared expert with a gate; the second layer is dense.
    "qwen2-moe": lambda s: s.moe(
        num_experts=60, num_experts_per_tok=4, shared_expert_intermediate_size=s.intermediate_size, mlp_only_layers=[1]
    ),
    # Weights normalized over the top-k experts; every second layer is an MoE layer, the first is dense.
    "qwen3-moe": lambda s: s.moe(
        num_experts=16, num_experts_per_tok=4, head_dim=HEAD, norm_topk_prob=True, decoder_sparse_step=1 + s.one_if_deep
    ),
    # Weights normalized over the top-k experts.
    "mixtral": lambda s: s.moe("intermediate_size", num_local_experts=8, num_experts_per_tok=2),
    # Weights from the softmax over all experts.
    "olmoe": lambda s: s.moe("intermediate_size", num_experts=16, num_experts_per_tok=4, norm_topk_prob=False),
    # Group-limited routing, two shared experts, routed output times 1.5.
    "deepseek-v2": lambda s: s.deepseek(
        rope_scale=0.707,
        n_shared_experts=2,
        norm_topk_prob=False,
        routed_scaling_factor=1.5,
        topk_method="group_limited_greedy",
    ),
    # Sigmoid scores plus a bias; groups rank by the sum of their two best scores. vLLM reads topk_method and
    # scoring_func of the published configurations; transformers does not.
    "deepseek-v3": lambda s: s.deepseek(1.0, **SIGMOID, topk_method="noaux_tc", scoring_func="sigmoid"),
    # Sigmoid scores plus a bias, one group, a dense first layer.
    "glm4-moe": lambda s: s.moe(
        n_routed_experts=16,
        num_experts_per_tok=4,
        head_dim=HEAD,
        n_group=1,
        topk_group=1,
        **{**SIGMOID, "first_k_dense_replace": s.one_if_deep},
    ),
    # Softmax plus a bias under another name.
    "ernie4-5-moe": lambda s: s.moe(
        moe_num_experts=16,
        moe_k=4,
        moe_num_shared_experts=1,
        moe_layer_start_index=s.one_if_deep,
        moe_layer_end_index=s.layers - 1,
    ),
    # The bias belongs to the block; dense FFNs have w1, w2 and w3; two layers are convolutions.
    "lfm2-moe": lambda s: s.moe(
        num_experts=16,
        num_experts_per_tok=4,
        num_dense_layers=s.one_if_deep,
        use_expert_bias=True,
        layer_types=["full_attention" if layer % 2 else "conv" for layer in range(s.layers)],
    ),
    # Ranks logits and normalizes over the top-k experts; the router is called `router`.
    "granitemoe": lambda s: s.moe("intermediate_size", num_local_experts=16, num_experts_per_tok=4),
    # Ranks logits; experts get inputs scaled by a sigmoid; every expert computes every token.
    "llama4-text": lambda s: s.moe(
        width="intermediate_size",
        intermediate_size_mlp=s.intermediate_size,
        head_dim=HEAD,
        num_local_experts=16,
        num_experts_per_tok=1,
        attention_chunk_size=s.context,
        interleave_moe_layer_step=1 + s.one_if_deep,
    ),
}
ARCHITECTURES = DENSE_ARCHITECTURES | MOE_ARCHITECTURES
