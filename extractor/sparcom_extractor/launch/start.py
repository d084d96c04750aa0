"""Start vLLM's engine: its arguments, and the environment of its processes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sparcom_data.errors import EngineError, UnsupportedModelError
from sparcom_extractor.launch.bootstrap import SubprocessBootstrap, shield_children_from_interrupts
from sparcom_extractor.launch.processor import CPU_ATTENTION, CPU_DTYPE, check_processor, validate_cpu_ranks
from sparcom_extractor.settings import EngineSettings
from sparcom_extractor.vllm_surface.engine import AsyncLLMLike, platform, start_async_engine

SMALL_MACHINE_CORES = 4
_CPU_DEFAULTS: dict[str, Any] = {
    "dtype": CPU_DTYPE,
    "enforce_eager": True,
    "max_num_batched_tokens": 512,  # measured: 1,030 tokens per second; 700 to 930 with 2,048 and 4,096
    "max_num_seqs": 64,
    "kv_cache_gib": 2.0,
    "attention_backend": CPU_ATTENTION,
}
_GPU_DEFAULTS: dict[str, Any] = {"dtype": "auto", "enforce_eager": False}
_WORKERS = {
    "cpu": "sparcom_extractor.worker.cpu.CaptureCPUWorker",
    "cuda": "sparcom_extractor.worker.gpu.CaptureGPUWorker",
}
_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",  # INFO shows vLLM's log
    "VLLM_NO_USAGE_STATS": "1",
    # A forked engine would inherit this process's threads and locks in an arbitrary state.
    "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",
}


def start_vllm(settings: EngineSettings) -> AsyncLLMLike:
    """Load the model and start the engine's processes. Refuses settings that this machine cannot run."""
    shield_children_from_interrupts()
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    (device_type, _), cores = platform(), sorted(os.sched_getaffinity(0))
    if device_type == "cpu":
        validate_cpu_ranks(settings, len(cores))
        check_processor(settings)
    with TemporaryDirectory(prefix="sparcom-") as folder:
        report = Path(folder) / "report"
        arguments = engine_arguments(settings, device_type, str(report))
        try:
            with _child_env(child_environment(device_type, cores, settings.processes)):
                return start_async_engine(arguments)
        except Exception as error:
            raise start_failure(settings, error, report) from error


def start_failure(settings: EngineSettings, error: Exception, report: Path) -> EngineError:
    """Return the error for a failed start. A worker's reason in the file `report` replaces vLLM's message."""
    reason = (report.read_text() if report.exists() else str(error)).rstrip(".")
    return EngineError(
        f"vLLM could not start model {settings.model!r}: {reason}. Check the path or name, that the model fits in "
        "memory, and vLLM's log above"
    )


@contextmanager
def _child_env(variables: dict[str, str]) -> Iterator[None]:
    """Set the variables that are unset, for processes started in this context; unset them afterwards."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def engine_arguments(settings: EngineSettings, device_type: str, report: str = "") -> dict[str, Any]:
    """Return fields of vLLM's `AsyncEngineArgs`. report: file for the reason why a worker could not load the model."""
    given = {name: value for name, value in asdict(settings).items() if value is not None}
    arguments = (_CPU_DEFAULTS if device_type == "cpu" else _GPU_DEFAULTS) | given
    arguments |= {
        "enable_prefix_caching": False,  # a token that is not computed has no row
        "trust_remote_code": False,
        "disable_log_stats": not settings.metrics,
        "use_tqdm_on_load": False,
        "additional_config": SubprocessBootstrap(settings.capture, os.getpid(), report=report),
    }
    if settings.revision is not None:
        arguments["tokenizer_revision"] = settings.revision
    if gib := arguments.pop("kv_cache_gib", None):
        arguments["kv_cache_memory_bytes"] = int(gib * 2**30)
    if settings.capture:
        arguments["worker_cls"] = worker_class(device_type)
        if device_type != "cpu":
            arguments["moe_backend"] = "triton"  # the backend that exposes the neurons of selected experts
    del arguments["name"], arguments["capture"], arguments["metrics"]
    return arguments


def worker_class(device_type: str) -> str:
    """Return the name of the worker class for a platform's device type; UnsupportedModelError for others."""
    if device_type not in _WORKERS:
        raise UnsupportedModelError(f"capture runs on the vLLM platforms cpu and cuda; this one is {device_type!r}")
    return _WORKERS[device_type]


def child_environment(device_type: str, cores: Sequence[int], processes: int) -> dict[str, str]:
    """Return environment variables for the engine's processes. cores: ids of the cores that this process may use."""
    # At every start, vLLM's Python code raises warnings and its C++ code warns about NUMA.
    environment = {"PYTHONWARNINGS": "ignore", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    if device_type != "cpu":
        return environment
    if len(cores) <= SMALL_MACHINE_CORES:
        # vLLM reserves one core for its scheduler. On two cores that costs half the machine: 870 tokens per second,
        # 1,500 without (SmolLM2, float32). Waiting threads sleep, which frees the core for scheduler and writer.
        environment |= {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "OMP_WAIT_POLICY": "passive"}
    if 1 < processes <= len(cores):  # split the cores; vLLM would give each process a NUMA node
        each = len(cores) // processes
        shares = (cores[rank * each : (rank + 1) * each] for rank in range(processes))
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(",".join(map(str, share)) for share in shares)
    return environment
