"""How an engine is to run: the few settings that matter here, checked, with defaults by platform."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparcom_data.errors import InvalidInputError

DTYPES = ("auto", "float32", "bfloat16", "float16")
LOAD_FORMATS = ("auto", "dummy")
_COUNTS = (
    "max_model_len",
    "max_num_batched_tokens",
    "max_num_seqs",
    "tensor_parallel_size",
    "pipeline_parallel_size",
)


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Settings of one engine; None means the platform's default.

    model: a folder, or a name on the Hugging Face hub. name: what clients call it; the last part of `model`.
    dtype: float32, bfloat16, float16 or auto. On CPU the default is float32: few CPUs compute bfloat16 natively.
    max_model_len: longest prompt plus response, tokens. max_num_batched_tokens: tokens of one step.
    max_num_seqs: requests that run at once. gpu_memory_utilization: share of the GPU's memory.
    kv_cache_gib: GiB of KV cache (the default on CPU is 2). enforce_eager: no compilation; the default on CPU.
    capture: False runs the same engine without capture, for comparison.
    tensor_parallel_size: processes that share every layer. pipeline_parallel_size: groups of them, each with some
    layers.
    load_format: auto reads the model's weights; dummy makes some up, for timing a shape whose weights are not at hand.
    revision: branch, tag or commit of a model on the hub; also of its tokenizer.
    quantization: vLLM's name of the method; the default is the one that the checkpoint's config.json names.
    """

    model: str
    name: str = ""
    dtype: str | None = None
    max_model_len: int | None = None
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    gpu_memory_utilization: float | None = None
    kv_cache_gib: float | None = None
    enforce_eager: bool | None = None
    capture: bool = True
    load_format: str = "auto"
    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None
    revision: str | None = None
    quantization: str | None = None

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be at least 1; it is {value}"
            for name in _COUNTS
            if (value := getattr(self, name)) is not None and value < 1
        ]
        if self.dtype is not None and self.dtype not in DTYPES:
            problems.append(f"dtype must be one of {', '.join(DTYPES)}; it is {self.dtype!r}")
        if self.load_format not in LOAD_FORMATS:
            problems.append(f"load_format must be one of {', '.join(LOAD_FORMATS)}; it is {self.load_format!r}")
        if self.gpu_memory_utilization is not None and not 0 < self.gpu_memory_utilization <= 1:
            problems.append(f"gpu_memory_utilization must be in (0, 1]; it is {self.gpu_memory_utilization}")
        if self.kv_cache_gib is not None and not 0 < self.kv_cache_gib < float("inf"):
            problems.append(f"kv_cache_gib must be above 0; it is {self.kv_cache_gib}")
        problems += [
            f"{name} must not be empty; leave it out for the default"
            for name in ("revision", "quantization")
            if getattr(self, name) == ""
        ]
        if not self.model:
            problems.append("model must not be empty: give a folder or a name on the Hugging Face hub")
        if problems:
            raise InvalidInputError(problems)
        if not self.name:
            object.__setattr__(self, "name", Path(self.model).resolve().name if self.model_is_local else self.model)

    @property
    def processes(self) -> int:
        """Worker processes of the engine."""
        return (self.tensor_parallel_size or 1) * (self.pipeline_parallel_size or 1)

    @property
    def model_is_local(self) -> bool:
        """Whether the model is a folder on this machine."""
        return Path(self.model).is_dir()
