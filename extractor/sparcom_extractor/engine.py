"""One vLLM engine with capture: start it, run prompts, call its workers, stop it.

vLLM's AsyncLLM runs in this process, its core and workers in others.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sparcom_data.errors import EngineError, SparcomError, UnsupportedModelError
from sparcom_data.instructions import Instruction
from sparcom_data.schema.metadata import EngineInfo, ModelInfo
from sparcom_data.schema.options import ExtractionOptions
from sparcom_extractor.extraction import Extraction
from sparcom_extractor.launch.bootstrap import children_end_on_cancel
from sparcom_extractor.launch.model_files import check_model
from sparcom_extractor.launch.start import start_vllm
from sparcom_extractor.preparation import prepare_extraction
from sparcom_extractor.prompts import tokenizer_sha256
from sparcom_extractor.protocol import PLAN_KEY, Plan, WorkerDescription, from_wire, to_wire
from sparcom_extractor.ranks import merge_descriptions
from sparcom_extractor.settings import EngineSettings
from sparcom_extractor.vllm_surface.engine import AsyncLLMLike, CompletionLike, engine_errors, generate, platform
from sparcom_extractor.vllm_surface.versions import check_vllm, installed_vllm

logger = logging.getLogger(__name__)

IN_FLIGHT_PER_SEQUENCE = 2  # requests submitted to the engine for each one that it can run at once
HEALTH_SECONDS = 1.0  # interval of health checks while a worker call is pending


class CaptureEngine:
    """A running vLLM engine with capture. Create it with `start`; stop it with `close`."""

    def __init__(
        self,
        settings: EngineSettings,
        llm: AsyncLLMLike,
        model: ModelInfo,
        engine: EngineInfo,
        starter: ThreadPoolExecutor | None = None,
    ) -> None:
        self._starter = starter  # the engine's processes end with its thread
        self.settings = settings
        self.name = settings.name
        self.llm: Any = llm  # an AsyncLLMLike until `close`, then None
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
            InvalidInputError: a setting or the model's folder is wrong; nothing was loaded.
            UnsupportedModelError: neurons cannot be captured, weights are missing, or this vLLM is not supported.
            EngineError: vLLM did not start; its log on standard error has the cause.
            asyncio.CancelledError: the engine's processes were killed. The thread that starts them may still run.
        """
        check_vllm(installed_vllm())
        check_model(settings)
        started: list[AsyncLLMLike] = []  # vLLM keeps stack frames alive: a thread's result would hold the engine
        starter = ThreadPoolExecutor(1, "sparcom-start")
        with children_end_on_cancel():
            await asyncio.get_running_loop().run_in_executor(starter, lambda: started.append(start_vllm(settings)))
        llm = started.pop()
        try:
            described = await _describe(settings, llm)
            return cls(settings, llm, _model_info(settings, llm, described), _engine_info(llm, described), starter)
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
        """Maximum prompt length in tokens; leaves room for one sampled token."""
        return self.max_model_len - 1

    def prepare(
        self,
        instructions: Sequence[Instruction],
        options: ExtractionOptions,
        path: Path,
        dataset_name: str = "",
        *,
        resume: bool = False,
        run: str | None = None,
        alone: Collection[int] = (),
        failures: Mapping[int, str] | None = None,
        shown: Callable[[str], str] = str,
    ) -> Extraction:
        """Tokenize instructions, plan the layout, and create or reopen the archive; see `prepare_extraction`."""
        return prepare_extraction(
            self,
            instructions,
            options,
            path,
            dataset_name,
            resume=resume,
            run=run,
            alone=alone,
            failures=failures,
            shown=shown,
        )

    async def generate(self, ids: list[int], max_tokens: int, plan: Plan, request_id: str) -> CompletionLike:
        """Run one prompt with greedy sampling and capture its rows as `plan` says. max_tokens: 0 returns no text.
        Raises EngineError if the engine is dead, ValueError if vLLM rejects the prompt."""
        try:
            completion = await generate(self.llm, ids, max_tokens, {PLAN_KEY: to_wire(plan)}, request_id)
        except engine_errors() as error:
            raise self._dead(error) from error
        if completion is None:
            raise self._dead(RuntimeError(f"no output for instruction {plan.index}"))
        return completion

    async def call_workers(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method on every worker and return the answers by rank. Raises EngineError if the engine is dead."""
        try:
            call = asyncio.ensure_future(self.llm.collective_rpc(method, args=arguments))
            try:
                while not (await asyncio.wait({call}, timeout=HEALTH_SECONDS))[0]:
                    if not self.healthy:  # vLLM never answers a call that was pending when its process died
                        raise RuntimeError("its process ended")
                return list(call.result())
            finally:
                call.cancel()
        except SparcomError:
            raise
        except Exception as error:
            raise self._dead(error) from error

    def _dead(self, error: BaseException) -> EngineError:
        return EngineError(
            f"the engine of model {self.name!r} stopped: {type(error).__name__}: {error}. Complete instructions "
            "stay complete. See the engine's log on standard error"
        )

    async def close(self) -> None:
        """Stop the engine and its processes."""
        if self.llm is None:
            return
        handler = self.llm.output_handler
        if handler is not None:  # it would log the shutdown of the engine core as a crash
            handler.cancel()
            await asyncio.gather(handler, return_exceptions=True)
        llm, self.llm = self.llm, None
        await asyncio.to_thread(llm.shutdown)
        if self._starter is not None:
            self._starter.shutdown()
        del llm, handler
        gc.collect()  # otherwise its finalizer shuts it down again at interpreter exit, and fails there


async def _describe(settings: EngineSettings, llm: AsyncLLMLike) -> WorkerDescription:
    """Return the merged description of all workers; an empty one without capture."""
    if not settings.capture:
        return WorkerDescription()
    answers = await llm.collective_rpc("sparcom_describe")
    described = merge_descriptions([from_wire(WorkerDescription, answer) for answer in answers])
    if described.refusal is not None:
        raise UnsupportedModelError(f"model {settings.name!r} is refused: {described.refusal}")
    logger.info("%s: %s", settings.name, describe_capture(described))
    return described


def describe_capture(described: WorkerDescription) -> str:
    """Return one line for the log: the captured layers and the memory that capture takes."""
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
            f"{len(moe.layer_ids)} MoE layers of {moe.experts} experts with {moe.neurons:,} neurons, top_k "
            f"{moe.experts_per_token}{shared}"
        )
    return f"capture of {' and '.join(parts)} ({described.activation}, by {described.fusion}): {memory}"


def _model_info(settings: EngineSettings, llm: AsyncLLMLike, described: WorkerDescription) -> ModelInfo:
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


def _engine_info(llm: AsyncLLMLike, described: WorkerDescription) -> EngineInfo:
    import torch

    config = llm.vllm_config
    further: dict[str, Any] = {
        "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
        "max_num_seqs": config.scheduler_config.max_num_seqs,
        "max_model_len": config.model_config.max_model_len,
        "async_scheduling": bool(config.scheduler_config.async_scheduling),
    }
    if described.fusion:
        further |= {"capture_product": described.fusion, "capture_memory": described.memory}
    return EngineInfo(
        vllm=installed_vllm(),
        torch=torch.__version__,
        device=platform()[1],
        tensor_parallel_size=config.parallel_config.tensor_parallel_size,
        pipeline_parallel_size=config.parallel_config.pipeline_parallel_size,
        enforce_eager=bool(config.model_config.enforce_eager),
        **further | described.mode,
    )
