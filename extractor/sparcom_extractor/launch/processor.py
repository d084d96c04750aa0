"""Choices that depend on the processor, as functions of its flags, so that tests can take every branch anywhere.

Intel processors with AMX (`amx_tile`) have kernels of their own in vLLM, for bfloat16 alone: latent attention (MLA),
experts, small matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

AMX_BLOCK = 32  # vLLM's AMX experts need widths that are multiples of it; others run in portable code
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_WIDTHS = ("moe_intermediate_size", "intermediate_size")


def attention_backend(device_type: str) -> str | None:
    """The attention backend to ask vLLM for; None leaves the choice to vLLM.

    On a processor with AMX vLLM runs latent attention (DeepSeek) through `AMX_MLA`, which refuses float32 weights
    ("expect weight to be bfloat16"). `CPU_MLA` runs on every processor in every dtype. vLLM ignores the request for
    models without latent attention.
    """
    return "CPU_MLA" if device_type == "cpu" else None


def expert_problem(config: Mapping[str, Any], dtype: str, *, amx: bool, ranks: int = 1) -> str | None:
    """Why the experts of a model on a CPU would show no neurons, or None.

    Args:
        config: the model's config.json.
        dtype: that the engine is asked for; "auto" is the checkpoint's.
        amx: whether the processor has AMX.
        ranks: tensor-parallel ranks, which share the width of an expert.
    """
    text = config.get("text_config") or config
    if dtype == "auto":
        dtype = str(text.get("dtype") or text.get("torch_dtype") or config.get("torch_dtype") or "bfloat16")
    if not amx or dtype != "bfloat16" or not any(text.get(name) for name in _EXPERTS):
        return None
    width = next((text[name] for name in _WIDTHS if text.get(name)), 0)
    if width % (AMX_BLOCK * ranks) or text.get("hidden_size", 0) % AMX_BLOCK:
        return None
    return (
        "experts in bfloat16 run through AMX on this processor, which shows no neurons of the chosen experts. Use "
        "dtype float32"
    )
