"""The models of the self-test, made on the spot: tiny ones with random weights, and two real shapes without any,
LLaMA-2-7B's and Qwen1.5-MoE-A2.7B's.

All share a tokenizer of single bytes, which needs no training and no download: token 0 begins a sequence, 1 to 256 are
bytes, the rest of the vocabulary stands for nothing. There is no end of sequence: a generation runs as long as asked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from sparcom_models.tiny.tiny import make_tiny_model
from sparcom_verification.selftest.plan import EXPERT_NEURONS, NEURONS
from sparcom_verification.selftest.results import Fact

if TYPE_CHECKING:
    from sparcom_verification.selftest.process import Context

BEGIN = "<s>"
TINY_VOCABULARY = 264  # 257 tokens and a few that stand for nothing; a multiple of 8
TINY_CONTEXT = 1024
LLAMA_2_7B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": None,
}
QWEN_MOE_A2_7B = {
    "architectures": ["Qwen2MoeForCausalLM"],
    "model_type": "qwen2_moe",
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "norm_topk_prob": False,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 151936,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": None,
}
SHAPES = {"llama-2-7b-shape": LLAMA_2_7B, "qwen1.5-moe-a2.7b-shape": QWEN_MOE_A2_7B}


def make_models(context: Context, *, architectures: list[str]) -> None:
    """Step: every model that later steps use."""
    sizes = context.sizes
    tokenizer = context.folder / "tokenizer"
    make_byte_tokenizer(tokenizer, TINY_VOCABULARY)
    for architecture in architectures:
        target = tiny_model_folder(context.folder, architecture)
        make_tiny_model(
            architecture,
            target,
            layers=sizes.layers,
            neurons=NEURONS[architecture],
            expert_neurons=EXPERT_NEURONS,
            context=TINY_CONTEXT,
            tokenizer=tokenizer,
        )
        context.tell(Fact(architecture, f"{sizes.layers} layers of {NEURONS[architecture]} neurons, random weights"))
    for name in SHAPES if context.device == "cuda" else ():
        make_shape(context.folder / name, name)
        context.tell(Fact(name, "configuration and tokenizer alone"))


def tiny_model_folder(folder: Path, architecture: str) -> Path:
    """Where the tiny model of an architecture lies."""
    return folder / f"tiny-{architecture}"


def make_shape(folder: Path, name: str) -> Path:
    """A folder that vLLM takes for a model of SHAPES where weights are not loaded (`load_format="dummy"`)."""
    config = SHAPES[name]
    make_byte_tokenizer(folder, int(str(config["vocab_size"])))
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder


def make_byte_tokenizer(folder: Path, vocabulary: int) -> None:
    """Put a byte-level tokenizer of `vocabulary` tokens into a folder.

    Every id below `vocabulary` is a token, so that random ids are prompts.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    ids = {BEGIN: 0} | {letter: 1 + byte for byte, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    ids |= {f"<|{number}|>": number for number in range(len(ids), vocabulary)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer.add_special_tokens([BEGIN])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, 0)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BEGIN, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
