"""The engine that vLLM's own `EngineArgs` make of our settings."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparcom_extractor.vllm_surface.config import refuse_engine

# On CUDA, 0.24 runs V2 for six architectures only, two of these among them; 0.33 for all.
V1 = {"0.24.0": {"qwen2", "gemma", "mixtral"}}


@pytest.fixture(params=["llama", "qwen2", "gemma", "qwen2-moe", "mixtral"])
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def config(architecture: str, make_model_folder: Callable[..., Path], engine_config: Callable[..., Any]) -> Any:
    return engine_config(make_model_folder(architecture))


def test_runner(vllm: Any, config: Any, architecture: str) -> None:
    """The model runner is the one that docs/engine-notes.md names."""
    v2 = vllm.cuda and architecture not in V1.get(vllm.version, ())
    assert config.use_v2_model_runner is v2


def test_scheduling(vllm: Any, config: Any) -> None:
    """The GPU worker runs in the engine core's process, with async scheduling and two batches in flight."""
    if vllm.cuda:
        assert config.parallel_config.distributed_executor_backend == "uni"
        assert config.scheduler_config.async_scheduling
        assert config.max_concurrent_batches == 2
    assert not config.cache_config.enable_prefix_caching
    assert not config.cache_config.kv_sharing_fast_prefill
    assert refuse_engine(config) is None


def test_compilation(vllm: Any, config: Any) -> None:
    """On CUDA TorchInductor compiles, activations included, and CUDA graphs replay up to 512 rows. CPUs run eagerly."""
    compilation = config.compilation_config
    if not vllm.cuda:
        assert int(compilation.mode) == 0
        return
    assert (int(compilation.mode), compilation.backend, compilation.custom_ops) == (3, "inductor", ["none"])
    assert compilation.cudagraph_mode.name == "FULL_AND_PIECEWISE"
    assert compilation.max_cudagraph_capture_size == 512


def test_largest_graph(vllm: Any, make_model_folder: Callable[..., Path], engine_config: Callable[..., Any]) -> None:
    """The largest CUDA graph holds two rows per request: longer steps run without a graph."""
    config = engine_config(make_model_folder("llama"), max_num_seqs=32, max_num_batched_tokens=256)
    assert config.compilation_config.max_cudagraph_capture_size == (64 if vllm.cuda else None)


def test_fusions(vllm: Any, config: Any) -> None:
    """No pass fuses an activation with its neighbors in an unquantized model. On CPUs no pass runs."""
    if not vllm.cuda:
        assert int(config.compilation_config.mode) == 0
        return
    fusions = {
        name: value
        for name, value in vars(config.compilation_config.pass_config).items()
        if re.search("fus", name) and not name.endswith(("num", "mb"))
    }
    assert fusions
    assert not any(fusions.values()), fusions


def test_experts_backend(vllm: Any, config: Any) -> None:
    """Experts run in vLLM's Triton kernels on CUDA, which expose their neurons."""
    assert config.kernel_config.moe_backend == ("triton" if vllm.cuda else "auto")


def test_cache_key(make_model_folder: Callable[..., Path], engine_config: Callable[..., Any]) -> None:
    """Capture, and the source of the activation outputs, change the key of vLLM's compilation cache."""
    folder = make_model_folder("llama")
    plain, captured = engine_config(folder, capture=False), engine_config(folder)
    before = captured.compute_hash()
    captured.additional_config.fusion = "inductor-0"
    assert len({plain.compute_hash(), before, captured.compute_hash()}) == 3


@pytest.mark.parametrize(
    "option",
    [
        {"data_parallel_size": 2},
        {"enable_expert_parallel": True},
        {"prefill_context_parallel_size": 2},
        {"enable_dbo": True, "enable_expert_parallel": True},
    ],
    ids=str,
)
def test_refusals(
    vllm: Any, make_model_folder: Callable[..., Path], engine_config: Callable[..., Any], option: Any
) -> None:
    """An engine that splits a step's tokens is refused, by vLLM or by us."""
    try:
        config = engine_config(make_model_folder("qwen2-moe"), extra=option)
    except (ValueError, NotImplementedError, TypeError):
        return
    assert refuse_engine(config)
