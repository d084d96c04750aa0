"""vLLM's configuration, as workers and the engine's client read it. The same in vLLM 0.24.0, 0.32.0 and 0.33.0."""

from __future__ import annotations

from typing import Any, Protocol

import torch


class ParallelConfigLike(Protocol):
    """vllm.config.parallel.ParallelConfig."""

    rank: int
    tensor_parallel_size: int
    pipeline_parallel_size: int
    data_parallel_size: int
    enable_expert_parallel: bool
    use_ubatching: bool


class SchedulerConfigLike(Protocol):
    """vllm.config.scheduler.SchedulerConfig."""

    async_scheduling: bool
    max_num_seqs: int
    max_num_batched_tokens: int


class ModelConfigLike(Protocol):
    """vllm.config.model.ModelConfig."""

    architectures: list[str]
    dtype: torch.dtype
    enforce_eager: bool
    hf_config: Any
    max_model_len: int
    quantization: str | None
    revision: str | None

    def get_vocab_size(self) -> int: ...
    def get_total_num_hidden_layers(self) -> int: ...
    def get_layers_start_end_indices(self, parallel_config: Any) -> tuple[int, int]: ...


class CacheConfigLike(Protocol):
    """vllm.config.cache.CacheConfig."""

    kv_sharing_fast_prefill: bool


class CompilationConfigLike(Protocol):
    """vllm.config.compilation.CompilationConfig."""

    max_cudagraph_capture_size: int | None
    cudagraph_mode: Any  # CUDAGraphMode, an enum, or None


class LoadConfigLike(Protocol):
    """vllm.config.load.LoadConfig."""

    load_format: str


class VllmConfigLike(Protocol):
    """vllm.config.vllm.VllmConfig. additional_config is our `SubprocessBootstrap`."""

    parallel_config: ParallelConfigLike
    scheduler_config: SchedulerConfigLike
    model_config: ModelConfigLike
    cache_config: CacheConfigLike
    compilation_config: CompilationConfigLike
    load_config: LoadConfigLike
    speculative_config: object | None
    additional_config: object


def max_rows_per_step(config: VllmConfigLike) -> int:
    """Return the most rows that a step computes, including the padding of CUDA graphs."""
    graph_rows = config.compilation_config.max_cudagraph_capture_size or 0
    return max(config.scheduler_config.max_num_batched_tokens, graph_rows)


def refuse_engine(config: VllmConfigLike) -> str | None:
    """Return why rows of such an engine cannot be assigned to requests, or None."""
    parallel = config.parallel_config
    if parallel.data_parallel_size > 1 or parallel.enable_expert_parallel:
        return (
            "capture needs every process to see all tokens of a step; this engine runs data or expert parallelism. "
            "Use tensor parallelism alone, and an engine for each replica"
        )
    if parallel.use_ubatching or config.speculative_config is not None:
        return (
            "capture needs one forward pass per step and no tokens that may be taken back; this engine runs "
            "micro-batches or speculative decoding. Start it without"
        )
    if config.cache_config.kv_sharing_fast_prefill:
        return (
            "capture needs every token in every layer; kv_sharing_fast_prefill leaves tokens out of the layers that "
            "share their keys. Start the engine without it"
        )
    return None
