"""Tokens per second of MoE models with and without capture, in alternating rounds.

On CPUs, vLLM runs all experts of a layer in one native call, so capture computes their gates a second time. Measures
two models with random weights and layers of published size, and the demo's MoE model if it exists:

    qwen     two layers of Qwen1.5-MoE-A2.7B's shape: 60 experts of 1,408 neurons, top-4, shared experts of 5,632
    olmoe    two layers of OLMoE-1B-7B's shape: 64 experts of 1,024 neurons, top-8, no shared experts
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from throughput import compare_capture
from verdict.speed import QWEN_MOE
from workload import Workload

from sparcom_extractor.settings import EngineSettings

PER_CATEGORY = 8
CONTEXT = 2048
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
COMMON = {
    "hidden_size": 2048,
    "num_hidden_layers": 2,  # in Qwen's shape each takes 2.2 GB, in each of two engines
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": CONTEXT,
    "vocab_size": 49_152,
    "torch_dtype": "float32",
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "norm_topk_prob": False,
}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen": QWEN_MOE,
    "olmoe": {
        "architectures": ["OlmoeForCausalLM"],
        "model_type": "olmoe",
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "intermediate_size": 1024,
    },
}


async def measure_moe_throughput(workload: Workload) -> dict[str, Any]:
    """Measure capture against vLLM alone for each shape."""
    instructions = workload.instructions(PER_CATEGORY)
    ids = workload.token_ids(instructions, CONTEXT)
    settings = {
        name: EngineSettings(str(_write_model(workload, name)), load_format="dummy", kv_cache_gib=0.5)
        for name in SHAPES
    }
    moefied = workload.model.with_name(workload.model.name + "-moe")
    if moefied.exists():
        settings["demo"] = EngineSettings(str(moefied))
    results: dict[str, Any] = {}
    for name, setting in settings.items():
        found = await compare_capture(setting, instructions, ids, workload, goal=0.75)
        results |= {f"{name}: {key}": value for key, value in found.items()}
    return results


def _write_model(workload: Workload, name: str) -> Path:
    """Write a model folder without weights, for load_format "dummy"."""
    path = workload.output / name
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(SHAPES[name] | COMMON))
    for file in TOKENIZER:
        if (workload.model / file).exists():
            shutil.copyfile(workload.model / file, path / file)
    return path
