"""vLLM's configuration as the worker reads it; the attributes are the same in vLLM 0.24, 0.32 and 0.33."""

from __future__ import annotations

from typing import Any, Protocol

import torch


class ParallelConfig(Protocol):
    """`vllm.config.ParallelConfig`."""

    rank: int
    tensor_parallel_size: int
    pipeline_parallel_size: int
    data_parallel_size: int
    enable_expert_parallel: bool
    use_ubatching: bool


class SchedulerConfig(Protocol):
    """`vllm.config.SchedulerConfig`."""

    max_num_seqs: int
    max_num_batched_tokens: int


class ModelConfig(Protocol):
    """`vllm.config.ModelConfig`."""

    dtype: torch.dtype

    def get_layers_start_end_indices(self, parallel_config: Any) -> tuple[int, int]:
        """First decoder layer of this pipeline stage, and the layer after its last."""


class CacheConfig(Protocol):
    """`vllm.config.CacheConfig`."""

    kv_sharing_fast_prefill: bool


class CompilationConfig(Protocol):
    """`vllm.config.CompilationConfig`."""

    max_cudagraph_capture_size: int | None
    cudagraph_mode: Any  # `CUDAGraphMode`, an enum, or None


class LoadConfig(Protocol):
    """`vllm.config.LoadConfig`."""

    load_format: str


class VllmConfig(Protocol):
    """`vllm.config.VllmConfig`."""

    parallel_config: ParallelConfig
    scheduler_config: SchedulerConfig
    model_config: ModelConfig
    cache_config: CacheConfig
    compilation_config: CompilationConfig
    load_config: LoadConfig
    speculative_config: Any  # None: no speculative decoding
    additional_config: Any  # our `SubprocessBootstrap`


def max_rows_per_step(config: VllmConfig) -> int:
    """Return the most rows that a step computes, including the padding of CUDA graphs."""
    graph_rows = config.compilation_config.max_cudagraph_capture_size or 0
    return max(config.scheduler_config.max_num_batched_tokens, graph_rows)


def refuse_engine(config: VllmConfig) -> str | None:
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
