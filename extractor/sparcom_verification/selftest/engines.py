"""Engines of the self-test: one at a time in a step's process, and requests that begin together.

Two runs compare to the last bit only where every step computed the same rows: matrix products round by the shape of the
batch. So requests are held at the scheduler until all are there, and released at once.
"""

from __future__ import annotations

import asyncio
import shutil
import time
import warnings
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sparcom_data.errors import EngineError, InvalidInputError
from sparcom_data.schema.options import ExtractionOptions
from sparcom_extractor.engine import CaptureEngine
from sparcom_extractor.settings import EngineSettings
from sparcom_verification.selftest.results import Check, Fact

if TYPE_CHECKING:
    from sparcom_data.instructions import Instruction
    from sparcom_data.progress import Progress
    from sparcom_verification.selftest.process import Context

_T = TypeVar("_T")
POLL_SECONDS = 0.01
HOLD_SECONDS = 60.0
RELEASE_SECONDS = 0.2  # for the last request to reach the engine's core


@dataclass(frozen=True, slots=True)
class Generation:
    """What an engine generated for each prompt, in order, and how long all took.

    logprobs: of every token that was chosen; empty where they were not asked for.
    """

    tokens: list[list[int]]
    logprobs: list[list[float]]
    seconds: float


@asynccontextmanager
async def running(context: Context, settings: EngineSettings) -> AsyncIterator[CaptureEngine]:
    """An engine, closed at the end; says how long it took to start and what it runs by."""
    _require_platform(context.device)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing vLLM and torch's compiler warns of their own matters
        engine = await CaptureEngine.start(settings)
    context.tell(Fact("engine started in", f"{time.perf_counter() - started:.1f} s"))
    try:
        tell_mode(context, engine)
        yield engine
    finally:
        await engine.close()


def _require_platform(device: str) -> None:
    """vLLM runs on what it was built for, whatever was asked for."""
    from vllm.platforms import current_platform

    if current_platform.device_type != device:
        raise InvalidInputError(
            [f"device must be what vLLM runs on here, {current_platform.device_type!r}; it is {device!r}"]
        )


def tell_mode(context: Context, engine: CaptureEngine) -> None:
    """Say which model runner and which kind of graphs the engine has; on CUDA hold that it has those asked for."""
    config = engine.llm.vllm_config
    eager = bool(config.model_config.enforce_eager)
    settled = engine.engine.model_dump()  # the worker's word where it captures: it may choose other graphs than asked
    graphs = settled.get("cudagraph_mode") or getattr(config.compilation_config.cudagraph_mode, "name", "NONE")
    mode = getattr(config.compilation_config.mode, "name", "NONE")
    runner = 2 if getattr(config, "use_v2_model_runner", False) else 1
    context.tell(Fact("mode", f"model runner V{runner}, compilation {mode}, CUDA graphs {graphs}"))
    context.tell(Fact("product", str(settled.get("capture_product") or "the model's own: no capture")))
    if context.device == "cuda":
        wrong = (graphs == "NONE") != eager
        asked = "none: eager mode" if eager else "compiled"
        context.tell(Check("graphs", f"asked for {asked}; CUDA graphs {graphs}", 1, int(wrong), "settings"))


async def together(engine: CaptureEngine, requests: int, work: Coroutine[Any, Any, _T]) -> _T:
    """Run `work`, which makes so many requests, so that all of them begin in the same step."""
    if engine.max_in_flight < requests:
        raise EngineError(f"{requests} requests cannot begin together in an engine that takes {engine.max_in_flight}")
    await engine.llm.pause_generation(mode="keep", clear_cache=False)
    task = asyncio.ensure_future(work)
    try:
        await _arrival(engine, requests, task)
    except BaseException:
        task.cancel()
        raise
    finally:
        await engine.llm.resume_generation()
    return await task


async def _arrival(engine: CaptureEngine, requests: int, task: asyncio.Future[Any]) -> None:
    """Wait until so many requests are in the engine, or the task that makes them has ended."""
    limit = time.monotonic() + HOLD_SECONDS
    # vLLM tells nobody when a request has arrived.
    while (here := len(engine.llm.output_processor.request_states)) < requests and not task.done():
        if time.monotonic() > limit:
            raise EngineError(f"{requests} requests must arrive within {HOLD_SECONDS:.0f} s; {here} did")
        await asyncio.sleep(POLL_SECONDS)
    await asyncio.sleep(RELEASE_SECONDS)


async def generate(
    engine: CaptureEngine,
    prompts: Sequence[list[int]],
    tokens: int,
    *,
    extras: Sequence[dict[str, Any]] | None = None,
    logprobs: bool = False,
) -> Generation:
    """Greedy generation of so many tokens for each prompt. extras: `extra_args` of each; by default nothing."""
    slots = asyncio.Semaphore(engine.max_in_flight)
    started = time.perf_counter()
    options: dict[str, Any] = {"max_tokens": tokens, "detokenize": tokens > 1} | ({"logprobs": 0} if logprobs else {})
    requests = zip(prompts, extras or [{}] * len(prompts), strict=True)
    outputs = await asyncio.gather(
        *(_generate_one(engine, slots, ids, options | {"extra_args": extra or None}) for ids, extra in requests)
    )
    seconds = time.perf_counter() - started
    return Generation([list(output.token_ids) for output in outputs], [_chosen(output) for output in outputs], seconds)


def _chosen(output: Any) -> list[float]:
    """The log-probability of each token that was chosen."""
    return [step[token].logprob for token, step in zip(output.token_ids, output.logprobs or [], strict=False)]


async def _generate_one(
    engine: CaptureEngine, slots: asyncio.Semaphore, ids: list[int], options: dict[str, Any]
) -> Any:
    """The engine's last word on one prompt; sampled as an extraction samples."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    parameters = SamplingParams(temperature=0.0, output_kind=RequestOutputKind.FINAL_ONLY, **options)
    async with slots:
        stream = engine.llm.generate(
            {"type": "token", "prompt_token_ids": ids}, parameters, request_id=f"selftest-{time.monotonic_ns()}"
        )
        result = None
        async for output in stream:
            result = output
    if result is None or not result.outputs:
        raise EngineError(f"the engine gave no output for a prompt of {len(ids)} tokens; see its log")
    return result.outputs[0]


async def extract(
    engine: CaptureEngine,
    instructions: Sequence[Instruction],
    path: Path,
    options: ExtractionOptions,
    *,
    held: bool = False,
) -> tuple[Progress, float]:
    """One extraction into a new archive at `path`; what was there is removed. Every instruction must be complete.

    held: all requests begin together; see `together`. Returns the last progress, and the seconds from the first request
    until everything was on disk.
    """
    shutil.rmtree(path, ignore_errors=True)
    extraction = await asyncio.to_thread(engine.prepare, instructions, options, path)
    started = time.perf_counter()
    progress = await (together(engine, len(instructions), extraction.run()) if held else extraction.run())
    seconds = time.perf_counter() - started
    if progress.complete != len(instructions):
        raise EngineError(f"all {len(instructions)} instructions must be complete; {progress.complete} are")
    return progress, seconds
