"""Fields of vLLM's configuration that workers and client read. Identical in vLLM 0.24.0, 0.32.0 and 0.33.0."""

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
    """Return the maximum number of rows per step, including CUDA graph padding."""
    graph_rows = config.compilation_config.max_cudagraph_capture_size or 0
    return max(config.scheduler_config.max_num_batched_tokens, graph_rows)


def refuse_engine(config: VllmConfigLike) -> str | None:
    """Return why the rows of this engine cannot be assigned to requests, or None."""
    parallel = config.parallel_config
    context_parallel = getattr(parallel, "prefill_context_parallel_size", 1) > 1  # splits the tokens of a prompt
    if parallel.data_parallel_size > 1 or parallel.enable_expert_parallel or context_parallel:
        return (
            "capture needs every worker to see all tokens of a step; this engine runs data, expert or prefill context "
            "parallelism. Use tensor parallelism only, and one engine per replica"
        )
    if parallel.use_ubatching or config.speculative_config is not None:
        return (
            "capture needs one forward pass per step and no tokens that may be rejected; this engine runs "
            "micro-batches or speculative decoding. Start the engine without them"
        )
    if config.cache_config.kv_sharing_fast_prefill:
        return (
            "capture needs every token in every layer; kv_sharing_fast_prefill skips tokens in layers that share "
            "keys. Start the engine without it"
        )
    return None
