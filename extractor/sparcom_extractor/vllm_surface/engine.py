"""The client side of vLLM: the asynchronous engine, one request, and the platform."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from sparcom_extractor.vllm_surface.config import VllmConfigLike  # imports torch


class CompletionLike(Protocol):
    """vllm.outputs.CompletionOutput."""

    text: str
    token_ids: Sequence[int]


class RequestOutputLike(Protocol):
    """vllm.outputs.RequestOutput."""

    outputs: Sequence[CompletionLike]


class AsyncLLMLike(Protocol):
    """vllm.v1.engine.async_llm.AsyncLLM."""

    errored: bool
    output_handler: asyncio.Task[None] | None
    vllm_config: VllmConfigLike

    def collective_rpc(self, method: str, *, args: Sequence[Any] = ()) -> Coroutine[Any, Any, list[Any]]: ...
    def generate(self, prompt: Any, sampling_params: Any, request_id: str) -> AsyncIterator[RequestOutputLike]: ...
    def get_tokenizer(self) -> Any: ...
    def shutdown(self) -> None: ...


def start_async_engine(arguments: dict[str, Any]) -> AsyncLLMLike:
    """Load the model and start the engine's processes. arguments: fields of vLLM's `AsyncEngineArgs`."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    # No local variable: vLLM keeps the stack frames of its start, which would hold the engine forever.
    return cast("AsyncLLMLike", AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments)))


async def generate(
    engine: AsyncLLMLike, ids: list[int], max_tokens: int, extra_args: dict[str, Any], request_id: str
) -> CompletionLike | None:
    """Run one prompt with greedy sampling. Return its completion, or None if the engine ended without one.
    max_tokens: 0 samples one token, because the engine must sample, and skips its text. Raises ValueError if vLLM
    rejects the prompt, and one of `engine_errors()` if the engine is dead."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    sampling = SamplingParams(
        max_tokens=max(1, max_tokens),
        temperature=0.0,
        detokenize=bool(max_tokens),
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args=extra_args,
    )
    result = None
    async for output in engine.generate({"type": "token", "prompt_token_ids": ids}, sampling, request_id=request_id):
        result = output
    return result.outputs[0] if result is not None and result.outputs else None


def engine_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that `AsyncLLM.generate` raises if its engine is dead."""
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    return EngineDeadError, EngineGenerateError


def platform() -> tuple[str, str]:
    """Return vLLM's device type (cpu, cuda, …) and the device's name."""
    from vllm.platforms import current_platform

    return current_platform.device_type, current_platform.get_device_name() or current_platform.device_type
