"""What capture costs where a router chooses experts: tokens a second with capture and without, in alternating rounds.

On a CPU vLLM runs all experts of a layer in one native call, so capture computes their gates a second time. Two models
of random weights, with layers as large as those of published ones, and the demo model's mixture where it is on disk:

    qwen     two layers of Qwen1.5-MoE-A2.7B's shape: 60 experts of 1,408 neurons, 4 chosen, shared experts of 5,632
    olmoe    two layers of OLMoE-1B-7B's shape: 64 experts of 1,024 neurons, 8 chosen, none shared
"""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

from throughput import in_turn, ratios
from workload import natural

from sparcom_data.schema.options import ExtractionOptions
from sparcom_extractor.prompts import load_tokenizer, make_prompts
from sparcom_extractor.settings import EngineSettings

LAYERS = 2  # of Qwen's shape each takes 2.2 GB, and two engines hold them
ROUNDS = 5
PER_CATEGORY = 8
CONTEXT = 2048
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
COMMON = {
    "hidden_size": 2048,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": CONTEXT,
    "vocab_size": 49_152,
    "torch_dtype": "float32",
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen": {
        "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe",
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "intermediate_size": 5632,
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
    },
    "olmoe": {
        "architectures": ["OlmoeForCausalLM"],
        "model_type": "olmoe",
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "intermediate_size": 1024,
        "norm_topk_prob": False,
    },
}


async def measure_moe_throughput(model: Path, output: Path) -> dict[str, Any]:
    instructions = natural(PER_CATEGORY)
    prompts = make_prompts(load_tokenizer(str(model)), instructions, ExtractionOptions(), CONTEXT - 1)
    ids = [prompt.ids.tolist() for prompt in prompts]
    tokens = sum(map(len, ids))
    results: dict[str, Any] = {"instructions": len(ids), "tokens": tokens}
    settings = {
        name: EngineSettings(str(_folder(output / name, shape, model)), load_format="dummy", kv_cache_gib=0.5)
        for name, shape in SHAPES.items()
    }
    mixture = model.with_name(model.name + "-moe")
    if mixture.exists():
        settings["demo"] = EngineSettings(str(mixture))
    for name, setting in settings.items():
        seconds = await in_turn(setting, instructions, ids, output / "round.zarr", ROUNDS)
        found = ratios(seconds, "goal 0.75") | {
            "tokens/s, capture and writing": tokens / statistics.median(seconds["capture"]),
            "tokens/s, vLLM alone": tokens / statistics.median(seconds["plain"]),
        }
        results |= {f"{name}: {key}": value for key, value in found.items()}
    return results


def _folder(path: Path, shape: dict[str, Any], tokenizer: Path) -> Path:
    """A model without weights: vLLM makes some up."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(COMMON | shape))
    for name in TOKENIZER:
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, path / name)
    return path
