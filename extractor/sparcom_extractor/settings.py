"""Engine settings, validated on construction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparcom_data.errors import InvalidInputError

DTYPES = ("auto", "float32", "bfloat16", "float16")
LOAD_FORMATS = ("auto", "dummy")
_COUNTS = ["max_model_len", "max_num_batched_tokens", "max_num_seqs", "tensor_parallel_size", "pipeline_parallel_size"]
_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "model": ("be a folder or a name on the Hugging Face hub", bool),
    **dict.fromkeys(_COUNTS, ("be at least 1", lambda value: value >= 1)),
    "dtype": (f"be one of {', '.join(DTYPES)}", DTYPES.__contains__),
    "load_format": (f"be one of {', '.join(LOAD_FORMATS)}", LOAD_FORMATS.__contains__),
    "gpu_memory_utilization": ("be in (0, 1]", lambda value: 0 < value <= 1),
    "kv_cache_gib": ("be above 0", lambda value: 0 < value < float("inf")),
    **dict.fromkeys(("revision", "quantization"), ("not be empty (omit it for the default)", bool)),
}


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Settings of one engine; None means the platform's default."""

    model: str  # a folder, or a name on the Hugging Face hub
    name: str = ""  # shown to clients; defaults to the folder's name or the hub name
    dtype: str | None = None  # float32 (default on CPUs), bfloat16, float16 or auto
    max_model_len: int | None = None  # maximum length of prompt plus response, in tokens
    max_num_batched_tokens: int | None = None  # maximum tokens per step
    max_num_seqs: int | None = None  # maximum requests that run at once
    gpu_memory_utilization: float | None = None  # fraction of the GPU's memory
    kv_cache_gib: float | None = None  # GiB of KV cache; the default on CPUs is 2
    enforce_eager: bool | None = None  # no compilation; the default on CPUs
    capture: bool = True  # False runs the same engine without capture, for comparison
    metrics: bool = False  # vLLM counts into Prometheus' default registry
    load_format: str = "auto"  # dummy initializes random weights, to benchmark without a checkpoint
    tensor_parallel_size: int | None = None  # ranks that split every layer
    pipeline_parallel_size: int | None = None  # stages, each with some of the layers
    revision: str | None = None  # branch, tag or commit of a model and tokenizer on the hub
    quantization: str | None = None  # vLLM's name of the method; defaults to the one in the checkpoint's config.json

    def __post_init__(self) -> None:
        problems = [
            f"{name} must {rule}; it is {value!r}"
            for name, (rule, holds) in _RULES.items()
            if (value := getattr(self, name)) is not None and not holds(value)
        ]
        if problems:
            raise InvalidInputError(problems)
        if not self.name:
            object.__setattr__(self, "name", Path(self.model).resolve().name if self.model_is_local else self.model)

    @property
    def processes(self) -> int:
        """Number of worker processes."""
        return (self.tensor_parallel_size or 1) * (self.pipeline_parallel_size or 1)

    @property
    def model_is_local(self) -> bool:
        """Whether the model is a folder on this machine."""
        return Path(self.model).is_dir()
