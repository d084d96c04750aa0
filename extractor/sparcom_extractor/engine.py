"""One vLLM engine with capture: start it, ask it what it captures, run prompts, stop it.

The engine is AsyncLLM in this process with its core in another one. It does not know instructions or archives beyond
the addresses that it passes to the worker.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sparcom_data.errors import EngineError, InvalidInputError, SparcomError, UnsupportedModelError
from sparcom_data.instructions import Instruction
from sparcom_data.schema.metadata import EngineInfo, ModelInfo
from sparcom_data.schema.options import ExtractionOptions
from sparcom_extractor.extraction import Extraction, prepare_extraction
from sparcom_extractor.launch.bootstrap import EngineNote, children_end_on_cancel, shield_children_from_interrupts
from sparcom_extractor.launch.model_files import check_model, read_json
from sparcom_extractor.launch.processor import attention_backend, expert_problem
from sparcom_extractor.prompts import tokenizer_sha256
from sparcom_extractor.protocol import WorkerDescription, from_wire
from sparcom_extractor.ranks import merge_descriptions
from sparcom_extractor.settings import EngineSettings
from sparcom_extractor.vllm_surface.versions import check_vllm, installed_vllm
from sparcom_extractor.worker import worker_class

_log = logging.getLogger(__name__)

CPU_DTYPE = "float32"  # few CPUs compute bfloat16 natively
CPU_KV_CACHE_GIB = 2.0
CPU_BATCHED_TOKENS = 512  # measured: 1,030 tokens a second against 700 to 930 with 2,048 and 4,096
CPU_SEQUENCES = 64
SMALL_MACHINE_CORES = 4
IN_FLIGHT_PER_SEQUENCE = 2  # requests handed to the engine ahead of what it runs at once

_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",  # set it to INFO to see what vLLM has to say
    "VLLM_NO_USAGE_STATS": "1",
    # A forked engine would inherit the threads and locks of this process in whatever state they are.
    "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",
}


class CaptureEngine:
    """A running engine. Make one with `start`, end it with `close`."""

    def __init__(self, settings: EngineSettings, llm: Any, model: ModelInfo, engine: EngineInfo) -> None:
        self.settings = settings
        self.name = settings.name
        self.llm = llm
        self.model = model
        self.engine = engine
        config = llm.vllm_config
        self.max_model_len = int(config.model_config.max_model_len)
        self.vocabulary = int(config.model_config.get_vocab_size())  # rows of the embedding, without vLLM's padding
        self.max_in_flight = IN_FLIGHT_PER_SEQUENCE * int(config.scheduler_config.max_num_seqs)

    @classmethod
    async def start(cls, settings: EngineSettings) -> CaptureEngine:
        """Load the model and start the engine.

        Raises:
            InvalidInputError: the model's folder or a setting is wrong; nothing was loaded.
            UnsupportedModelError: its neurons cannot be captured, its checkpoint lacks weights, or this vLLM is not
                supported.
            EngineError: vLLM did not start; its own log, on standard error, has the cause.
            asyncio.CancelledError: it was given up; the processes that were started are killed. The thread that starts
                them may go on for a while.
        """
        check_vllm(installed_vllm())
        check_model(settings)
        started: list[Any] = []  # not the thread's result: frames that vLLM keeps would hold the engine for ever
        with children_end_on_cancel():
            await asyncio.to_thread(lambda: started.append(_start_llm(settings)))
        llm = started.pop()
        try:
            described = WorkerDescription()
            if settings.capture:
                answers = await llm.collective_rpc("sparcom_describe")
                described = merge_descriptions([from_wire(WorkerDescription, answer) for answer in answers])
                _check_capturable(settings, described)
                _log.info("%s: %s", settings.name, describe_capture(described))
            return cls(settings, llm, _model_info(settings, llm, described), _engine_info(llm, described))
        except BaseException:
            llm.shutdown()
            raise

    @property
    def healthy(self) -> bool:
        """Whether the engine can run requests."""
        return self.llm is not None and not self.llm.errored

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.llm.get_tokenizer()

    @property
    def max_prompt_tokens(self) -> int:
        """The longest prompt; one token must be left for what the engine samples."""
        return self.max_model_len - 1

    def prepare(
        self, instructions: Sequence[Instruction], options: ExtractionOptions, path: Path, dataset_name: str = ""
    ) -> Extraction:
        """Tokenise instructions, plan the layout and create the archive; see `prepare_extraction`."""
        return prepare_extraction(self, instructions, options, path, dataset_name)

    async def call_workers(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of every worker process; the answers in the order of their ranks.

        Raises:
            EngineError: the engine is dead.
        """
        try:
            return list(await self.llm.collective_rpc(method, args=arguments))
        except SparcomError:
            raise
        except Exception as error:
            raise self.dead(error) from error

    def dead(self, error: BaseException) -> EngineError:
        """The sentence for an engine that died."""
        return EngineError(
            f"the engine of model {self.name!r} stopped: {type(error).__name__}: {error}. What was complete stays "
            "complete; see the engine's log on standard error, then start the server again"
        )

    async def close(self) -> None:
        """Stop the engine and its processes."""
        if self.llm is None:
            return
        handler = getattr(self.llm, "output_handler", None)
        if handler is not None:  # it would take the end of the core for its death, and log that
            handler.cancel()
            await asyncio.gather(handler, return_exceptions=True)
        llm, self.llm = self.llm, None
        await asyncio.to_thread(llm.shutdown)
        del llm, handler
        gc.collect()  # its finaliser would otherwise shut it down once more at the interpreter's end, and fail there


def _check_capturable(settings: EngineSettings, described: WorkerDescription) -> None:
    if described.refusal is not None:
        raise UnsupportedModelError(f"model {settings.name!r} is refused: {described.refusal}")


def describe_capture(described: WorkerDescription) -> str:
    """What is captured and what that takes, for a log."""
    memory = ", ".join(
        f"{name.removesuffix('_bytes').replace('_', ' ')} {size / 2**20:,.1f} MiB"
        for name, size in described.memory.items()
    )
    parts = []
    if described.layer_ids:
        parts.append(f"{len(described.layer_ids)} layers of {described.neurons:,} neurons")
    if moe := described.moe:
        shared = f", shared experts of {moe.shared_neurons:,}" if moe.shared_neurons else ""
        parts.append(
            f"{len(moe.layer_ids)} layers of {moe.experts} experts, {moe.experts_per_token} chosen, of "
            f"{moe.neurons:,} neurons{shared}"
        )
    return f"capture of {' and '.join(parts)} ({described.activation}, by {described.fusion}): {memory}"


def _start_llm(settings: EngineSettings) -> Any:
    shield_children_from_interrupts()
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    cores = sorted(os.sched_getaffinity(0))
    if current_platform.device_type == "cpu":
        check_cpu_ranks(settings, len(cores))
        check_processor(settings)
    with TemporaryDirectory(prefix="sparcom-") as folder:
        report = Path(folder) / "report"
        arguments = engine_arguments(settings, current_platform.device_type, str(report))
        try:
            with _children_get(_child_environment(current_platform.device_type, cores, settings.processes)):
                return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        except Exception as error:
            raise start_failure(settings, error, report) from error


def start_failure(settings: EngineSettings, error: Exception, report: Path) -> EngineError:
    """The error for a vLLM that did not start. A worker that could not load the model left the reason in `report`."""
    reason = (report.read_text() if report.exists() else str(error)).rstrip(".")
    return EngineError(
        f"vLLM could not start model {settings.model!r}: {reason}. Check that the path or name is right, that the "
        "model fits the memory, and vLLM's log above"
    )


def check_cpu_ranks(settings: EngineSettings, cores: int) -> None:
    """Refuse processes that a CPU cannot run, before any of them starts.

    Raises:
        InvalidInputError: more ranks than cores, each needs one of its own; or pipeline stages: vLLM's CPU runner makes
            the tensors between them in a warm-up, which it leaves out in eager mode with a KV cache of a given size.
    """
    problems = []
    tensor, pipeline = settings.tensor_parallel_size or 1, settings.pipeline_parallel_size or 1
    if tensor > cores:
        problems.append(
            f"tensor_parallel_size must be at most the number of cores on a CPU, {cores} here; it is {tensor}. "
            "Take fewer ranks, or give the process more cores"
        )
    if pipeline > 1:
        problems.append(
            f"pipeline_parallel_size must be 1 on a CPU, where vLLM does not run pipeline stages; it is {pipeline}. "
            "Use tensor_parallel_size in its place"
        )
    if problems:
        raise InvalidInputError(problems)


def check_processor(settings: EngineSettings) -> None:
    """Refuse a model whose experts this processor would run where they show no neurons.

    Raises:
        UnsupportedModelError: naming the setting that helps.
    """
    import torch

    config = read_json(Path(settings.model) / "config.json")
    if not settings.capture or not isinstance(config, dict):
        return
    amx = bool(torch.cpu._is_amx_tile_supported())
    dtype, ranks = settings.dtype or CPU_DTYPE, settings.tensor_parallel_size or 1
    if problem := expert_problem(config, dtype, amx=amx, ranks=ranks):
        raise UnsupportedModelError(f"model {settings.name!r} is refused: {problem}")


def _child_environment(device_type: str, cores: Sequence[int], processes: int) -> dict[str, str]:
    """Environment of the engine's processes, where the user has not set it.

    vLLM keeps one core for its scheduler, which on two is half the machine: without, 1,500 tokens a second against 870
    (SmolLM2, float32). Its threads then wait asleep, to leave the core to the scheduler and the writer. Processes of
    one engine share the cores; vLLM by itself gives each a NUMA node.
    """
    # vLLM's own code gives Python warnings at every start, its C++ code one about NUMA.
    environment = {"PYTHONWARNINGS": "ignore", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    if device_type == "cpu" and len(cores) <= SMALL_MACHINE_CORES:
        environment |= {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "OMP_WAIT_POLICY": "passive"}
    if device_type == "cpu" and 1 < processes <= len(cores):
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(_shares(cores, processes))
    return environment


def _shares(cores: Sequence[int], processes: int) -> list[str]:
    """The cores of each process, as vLLM writes them."""
    each = len(cores) // processes
    return [",".join(map(str, cores[first * each : (first + 1) * each])) for first in range(processes)]


@contextmanager
def _children_get(environment: dict[str, str]) -> Iterator[None]:
    """Processes started within inherit these variables; this process gets its own back."""
    added = {name: value for name, value in environment.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def engine_arguments(settings: EngineSettings, device_type: str, report: str = "") -> dict[str, Any]:
    """vLLM's engine arguments for our settings; only what is given or differs from vLLM's defaults.

    report: a file that a worker writes when it cannot load the model.
    """
    cpu = device_type == "cpu"
    arguments: dict[str, Any] = {
        "model": settings.model,
        "dtype": settings.dtype or (CPU_DTYPE if cpu else "auto"),
        "revision": settings.revision,
        "tokenizer_revision": settings.revision,
        "quantization": settings.quantization,
        "attention_backend": attention_backend(device_type),
        "load_format": settings.load_format,
        "enable_prefix_caching": False,  # a token that is not computed has no row
        "enforce_eager": cpu if settings.enforce_eager is None else settings.enforce_eager,
        "trust_remote_code": False,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "additional_config": EngineNote(settings.capture, os.getpid(), report=report),
        "max_model_len": settings.max_model_len,
        "max_num_batched_tokens": settings.max_num_batched_tokens or (CPU_BATCHED_TOKENS if cpu else None),
        "max_num_seqs": settings.max_num_seqs or (CPU_SEQUENCES if cpu else None),
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "pipeline_parallel_size": settings.pipeline_parallel_size,
    }
    gib = settings.kv_cache_gib or (CPU_KV_CACHE_GIB if cpu else None)
    arguments["kv_cache_memory_bytes"] = int(gib * 2**30) if gib else None
    if settings.capture:
        arguments["worker_cls"] = worker_class(device_type)
        if not cpu:
            arguments["moe_backend"] = "triton"  # the one that shows the neurons of chosen experts
    return {name: value for name, value in arguments.items() if value is not None}


def _model_info(settings: EngineSettings, llm: Any, described: WorkerDescription) -> ModelInfo:
    config = llm.vllm_config.model_config
    return ModelInfo(
        id=str(Path(settings.model).resolve()) if settings.model_is_local else settings.model,
        revision=getattr(config.hf_config, "_commit_hash", None) or config.revision or "",
        architecture=config.architectures[0],
        dtype=str(config.dtype).removeprefix("torch."),
        quantization=str(config.quantization) if config.quantization else None,
        layers=config.get_total_num_hidden_layers(),
        layer_ids=list(described.layer_ids),
        neurons=described.neurons,
        activation=described.activation,
        tokenizer_sha256=tokenizer_sha256(llm.get_tokenizer(), settings.model),
        moe=described.moe,
    )


def _engine_info(llm: Any, described: WorkerDescription) -> EngineInfo:
    import torch
    from vllm.platforms import current_platform

    config = llm.vllm_config
    return EngineInfo(
        vllm=installed_vllm(),
        torch=torch.__version__,
        device=current_platform.get_device_name() or current_platform.device_type,
        tensor_parallel_size=config.parallel_config.tensor_parallel_size,
        pipeline_parallel_size=config.parallel_config.pipeline_parallel_size,
        enforce_eager=bool(config.model_config.enforce_eager),
        max_num_batched_tokens=config.scheduler_config.max_num_batched_tokens,  # type: ignore[call-arg]
        max_num_seqs=config.scheduler_config.max_num_seqs,
        max_model_len=config.model_config.max_model_len,
        async_scheduling=bool(config.scheduler_config.async_scheduling),
        **described.mode,
        **({"capture_product": described.fusion, "capture_memory": described.memory} if described.fusion else {}),
    )
