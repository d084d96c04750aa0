"""Configurations of tiny models: one table from architecture to the options of its transformers configuration.

Sizes are small but not convenient: FFNs of 176 neurons, a multiple of 8 but not of 64; experts of 112, no multiple of
32 but whole bytes on two ranks; fewer key-value heads than heads, of the smallest size that vLLM's CPU attention
supports. A model of one layer has an MoE layer there and no dense one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# Standard deviations of weights. The usual 0.02 gives gate pre-activations of about 0.2, 0.2 gives about 2, so that
# gates are not near zero. MoE models get half of it: rounding grows from layer to layer, and with 0.2 two correct
# implementations of DeepSeek-V2 gave combine weights that were 7e-5 apart, with 0.1 they are 3e-6 apart.
DENSE_STD, MOE_STD = 0.2, 0.1
# Router parameters that transformers sets to 0 and that no trained model has at 0: the selection bias, which is added
# to the ranked scores, and ERNIE's router.
ZERO_ROUTERS = ("e_score_correction_bias", "expert_bias", "gate.weight")
HIDDEN, HEADS = 128, 4
HEAD = HIDDEN // HEADS


@dataclass(frozen=True)  # without slots: class attributes are the defaults
class Sizes:
    """Sizes that a caller may choose; `intermediate_size` is that of dense FFNs and shared experts.

    tokens: vocab_size and the ids of the special tokens, from the tokenizer.
    """

    layers: int = 3
    intermediate_size: int = 176
    context: int = 512
    moe_intermediate_size: int = 112
    tokens: dict[str, int | None] = field(default_factory=dict)

    @property
    def dense(self) -> dict[str, Any]:
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

    def moe(self, experts: int, top_k: int, experts_name: str = "num_experts") -> dict[str, Any]:
        """Options of MoE models with as many routed experts, `top_k` of them for each token."""
        return {
            **self.dense,
            "initializer_range": MOE_STD,
            "moe_intermediate_size": self.moe_intermediate_size,
            "num_experts_per_tok": top_k,
            experts_name: experts,
        }

    def moe_only(self, experts: int, top_k: int, experts_name: str = "num_local_experts") -> dict[str, Any]:
        """The same for configurations that call the experts' width intermediate_size."""
        options = self.moe(experts, top_k, experts_name)
        return options | {"intermediate_size": options.pop("moe_intermediate_size")}

    @property
    def sigmoid_router(self) -> dict[str, Any]:
        """Options of routers that rank sigmoid scores plus a bias, with a dense first layer and one shared expert."""
        return {
            **self.moe(16, 4, "n_routed_experts"),
            "n_shared_experts": 1,
            "first_k_dense_replace": self.one_if_deep,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
        }

    @property
    def one_if_deep(self) -> int:
        """1 where there is a second layer, else 0."""
        return int(self.layers > 1)

    def latent_attention(self, scale: float) -> dict[str, Any]:
        """Options of DeepSeek's attention, with the ranks that vLLM's CPU attention supports.

        Positions are scaled (YaRN) as in the published models: the CPU kernel of vLLM 0.32.0 for unscaled ones mistakes
        the heads of a query for tokens (the output of the first attention was off by up to 16).
        """
        return {
            "num_key_value_heads": HEADS,
            "q_lora_rank": None,
            "kv_lora_rank": 512,
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 32,
            "v_head_dim": 32,
            "n_group": 4,
            "topk_group": 2,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "beta_fast": 32,
                "beta_slow": 1,
                "mscale": scale,
                "mscale_all_dim": scale,
                "original_max_position_embeddings": max(1, self.context // 4),
            },
        }


DENSE_ARCHITECTURES: dict[str, Callable[[Sizes], dict[str, Any]]] = {
    "llama": lambda sizes: sizes.dense,
    "mistral": lambda sizes: {**sizes.dense, "sliding_window": None},
    "qwen2": lambda sizes: {**sizes.dense, "use_sliding_window": False},
    # GELU gates, and in vLLM one activation module that all layers share.
    "gemma": lambda sizes: {**sizes.dense, "head_dim": HEAD, "hidden_activation": "gelu_pytorch_tanh"},
    # Norms behind the blocks. vLLM runs it with its Transformers backend.
    "olmo2": lambda sizes: sizes.dense,
    # Layers without positions. vLLM runs it with its Transformers backend too.
    "smollm3": lambda sizes: sizes.dense,
    # No gate: capture refuses it.
    "opt": lambda sizes: {
        **sizes.tokens,
        "hidden_size": HIDDEN,
        "word_embed_proj_dim": HIDDEN,
        "ffn_dim": sizes.intermediate_size,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": HEADS,
        "max_position_embeddings": sizes.context,
        "init_std": DENSE_STD,
    },
    # No gate, and fused projections under other names.
    "gpt2": lambda sizes: {
        **sizes.tokens,
        "n_embd": HIDDEN,
        "n_inner": sizes.intermediate_size,
        "n_layer": sizes.layers,
        "n_head": HEADS,
        "n_positions": sizes.context,
        "initializer_range": DENSE_STD,
    },
    # Attention scores are soft-capped, at a value that the tiny model reaches.
    "gemma2": lambda sizes: {
        **sizes.dense,
        "head_dim": HEAD,
        "query_pre_attn_scalar": HEAD,
        "attn_logit_softcapping": 1.0,
    },
    # A sliding window shorter than the prompts of the tests.
    "cohere2": lambda sizes: {**sizes.dense, "sliding_window": 8},
}
MOE_ARCHITECTURES: dict[str, Callable[[Sizes], dict[str, Any]]] = {
    # 60 experts as Qwen1.5-MoE has, and a shared expert with a gate; the second layer is dense.
    "qwen2-moe": lambda sizes: {
        **sizes.moe(60, 4),
        "shared_expert_intermediate_size": sizes.intermediate_size,
        "mlp_only_layers": [1],
    },
    # Weights normalized over the top-k experts; every second layer is an MoE layer, the first is dense.
    "qwen3-moe": lambda sizes: {
        **sizes.moe(16, 4),
        "head_dim": HEAD,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1 + sizes.one_if_deep,
    },
    # Weights normalized over the top-k experts.
    "mixtral": lambda sizes: sizes.moe_only(8, 2),
    # Weights from the softmax over all experts.
    "olmoe": lambda sizes: {**sizes.moe_only(16, 4, "num_experts"), "norm_topk_prob": False},
    # Experts ranked by group, two shared ones, the routed output times 1.5, a dense first layer.
    "deepseek-v2": lambda sizes: {
        **sizes.moe(16, 4, "n_routed_experts"),
        **sizes.latent_attention(0.707),
        "n_shared_experts": 2,
        "first_k_dense_replace": sizes.one_if_deep,
        "topk_method": "group_limited_greedy",
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.5,
    },
    # Groups rank by the sum of their two best scores.
    "deepseek-v3": lambda sizes: {
        **sizes.sigmoid_router,
        **sizes.latent_attention(1.0),
        "topk_method": "noaux_tc",  # vLLM reads these two of the published configurations, transformers does not
        "scoring_func": "sigmoid",
    },
    # One group.
    "glm4-moe": lambda sizes: {**sizes.sigmoid_router, "head_dim": HEAD, "n_group": 1, "topk_group": 1},
    # Softmax plus a bias under another name.
    "ernie4-5-moe": lambda sizes: {
        **sizes.dense,
        "initializer_range": MOE_STD,
        "moe_num_experts": 16,
        "moe_k": 4,
        "moe_num_shared_experts": 1,
        "moe_intermediate_size": sizes.moe_intermediate_size,
        "moe_layer_start_index": sizes.one_if_deep,
        "moe_layer_end_index": sizes.layers - 1,
    },
    # The bias belongs to the block, dense FFNs have w1, w2 and w3, and two layers are convolutions.
    "lfm2-moe": lambda sizes: {
        **sizes.moe(16, 4),
        "num_dense_layers": sizes.one_if_deep,
        "layer_types": ["full_attention" if layer % 2 else "conv" for layer in range(sizes.layers)],
        "use_expert_bias": True,
    },
    # Ranks logits and normalizes over the top-k experts; the router is called `router`.
    "granitemoe": lambda sizes: sizes.moe_only(16, 4),
    # Ranks logits; experts get inputs scaled by a sigmoid, and every expert computes every token.
    "llama4-text": lambda sizes: {
        **sizes.moe_only(16, 1),
        "intermediate_size_mlp": sizes.intermediate_size,
        "interleave_moe_layer_step": 1 + sizes.one_if_deep,
        "head_dim": HEAD,
        "attention_chunk_size": sizes.context,
    },
}
ARCHITECTURES = DENSE_ARCHITECTURES | MOE_ARCHITECTURES
