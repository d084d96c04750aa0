"""Check and configure engines on CPUs.

vLLM has separate kernels for Intel processors with AMX (`amx_tile`), for bfloat16 only: latent attention (MLA),
experts, small matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparcom_data.errors import InvalidInputError, UnsupportedModelError
from sparcom_extractor.launch.model_files import read_object
from sparcom_extractor.settings import EngineSettings

CPU_DTYPE = "float32"  # few CPUs compute bfloat16 natively
# With AMX, vLLM runs latent attention (DeepSeek) through AMX_MLA, which rejects float32 weights ("expect weight to be
# bfloat16"). CPU_MLA runs every dtype on every processor. vLLM ignores it for models without latent attention.
CPU_ATTENTION = "CPU_MLA"
AMX_BLOCK = 32  # vLLM's AMX experts need widths divisible by it; other widths run in portable code
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_WIDTHS = ("moe_intermediate_size", "intermediate_size")


def validate_cpu_ranks(settings: EngineSettings, cores: int) -> None:
    """Raise InvalidInputError for more ranks than cores, and for pipeline stages. vLLM's CPU runner allocates the
    tensors between stages in a warm-up, which it skips in eager mode with a given KV cache size."""
    problems = []
    tensor, pipeline = settings.tensor_parallel_size or 1, settings.pipeline_parallel_size or 1
    if tensor > cores:
        problems.append(
            f"tensor_parallel_size must be at most the number of cores on a CPU, {cores} here; it is {tensor}. "
            "Use fewer ranks, or give the process more cores"
        )
    if pipeline > 1:
        problems.append(
            f"pipeline_parallel_size must be 1 on a CPU, where vLLM does not run pipeline stages; it is {pipeline}. "
            "Use tensor_parallel_size instead"
        )
    if problems:
        raise InvalidInputError(problems)


def check_processor(settings: EngineSettings) -> None:
    """Raise UnsupportedModelError if this processor would run a model's experts without exposing their neurons."""
    import torch

    config = read_object(Path(settings.model) / "config.json")
    if not settings.capture or config is None:
        return
    amx = bool(torch.cpu._is_amx_tile_supported())
    dtype, ranks = settings.dtype or CPU_DTYPE, settings.tensor_parallel_size or 1
    if problem := expert_problem(config, dtype, amx=amx, ranks=ranks):
        raise UnsupportedModelError(f"model {settings.name!r} is refused: {problem}")


def expert_problem(config: Mapping[str, Any], dtype: str, *, amx: bool, ranks: int = 1) -> str | None:
    """Return why a model's experts would not expose their neurons on a CPU, or None.
    config: the model's config.json. dtype: the engine's; "auto" means the checkpoint's. ranks: tensor_parallel_size."""
    text = config.get("text_config") or config
    if dtype == "auto":
        dtype = str(text.get("dtype") or text.get("torch_dtype") or config.get("torch_dtype") or "bfloat16")
    if not amx or dtype != "bfloat16" or not any(text.get(name) for name in _EXPERTS):
        return None
    width = next((text[name] for name in _WIDTHS if text.get(name)), 0)
    if width % (AMX_BLOCK * ranks) or text.get("hidden_size", 0) % AMX_BLOCK:
        return None
    return (
        "experts in bfloat16 run through AMX on this processor, which does not expose the neurons of the selected "
        "experts. Use dtype float32"
    )
