"""Run one tiny random model with and without capture, and compare tokens, log-probabilities and archive.

The rounding of matrix products depends on the batch shape. Two runs agree to the last bit only if every step computes
the same rows, so the compared requests run one at a time. The archive's rows are computed concurrently.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from sparcom_data.archive import open_archive
from sparcom_data.instructions import Instruction
from sparcom_data.schema.options import ExtractionOptions
from sparcom_data.verify import Check, verify_archive
from sparcom_extractor.engine import CaptureEngine
from sparcom_extractor.settings import EngineSettings
from sparcom_models import make_tiny_model
from sparcom_models.testing import SMALL_VOCABULARY, write_small_tokenizer
from sparcom_verification.reference.comparison import MaskComparison, compare_masks
from sparcom_verification.reference.model import ReferenceModel

GENERATED = 9  # tokens per prompt
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRITON_F32_DEFAULT": "ieee",  # TF32 rounds the inputs of float32 products, by 3e-4 of a value
    "TORCHINDUCTOR_DETERMINISTIC": "1",  # otherwise two engines may sum a reduction in different orders
}
Start = Callable[[EngineSettings], Awaitable[CaptureEngine]]


async def run_selftest(
    folder: Path, *, moe: bool = False, start: Start = CaptureEngine.start
) -> tuple[list[Check], MaskComparison]:
    """Make a tiny float32 model in `folder`; return its checks and its comparison with transformers.

    The device is that of the installed vLLM. moe: use an MoE model instead of a dense one. start: starts an engine.
    """
    settings = tiny_settings(folder, "qwen2-moe" if moe else "llama")
    prompts = random_prompts(8, 150)
    instructions = [Instruction(id=str(number), token_ids=tuple(ids)) for number, ids in enumerate(prompts)]
    async with AsyncExitStack() as stack:
        plain = await start(replace(settings, capture=False))
        stack.push_async_callback(plain.close)
        captured = await start(settings)
        stack.push_async_callback(captured.close)
        one, other = [await generate(engine, prompts, GENERATED) for engine in (plain, captured)]
        options = ExtractionOptions(positions="all", max_tokens=GENERATED)
        await captured.prepare(instructions, options, folder / "selftest.zarr").run()
    checks = []
    if not moe or plain_experts_use_triton():
        checks.append(check_equal("tokens", one.tokens, other.tokens))
        checks.append(check_equal("logprobs", one.logprobs, other.logprobs))
    archive = open_archive(folder / "selftest.zarr")
    reference = ReferenceModel(settings.model, "float32", captured.model.layer_ids, captured.model.moe)
    comparison = compare_masks(archive, reference, archive.instructions.complete, lambda _: np.zeros(0, np.int32))
    return [*checks, *verify_archive(archive, None)], comparison


def tiny_settings(folder: Path, architecture: str, dtype: str = "float32") -> EngineSettings:
    """Make a tiny model in `folder`; return settings that split long prompts and run 8 requests at once.

    Sets environment variables that make runs comparable.
    """
    # New caches: code compiled without these variables must not be used.
    caches = {"VLLM_CACHE_ROOT": str(folder / "vllm"), "TRITON_CACHE_DIR": str(folder / "triton")}
    os.environ.update(ENVIRONMENT | caches)
    model = make_tiny_model(architecture, folder / architecture, tokenizer=write_small_tokenizer(folder)).path
    return EngineSettings(
        str(model),
        dtype=dtype,
        max_model_len=320,
        max_num_batched_tokens=64,
        max_num_seqs=8,
        gpu_memory_utilization=0.1,
        kv_cache_gib=0.25,
    )


def random_prompts(count: int, longest: int, vocabulary: int = SMALL_VOCABULARY) -> list[list[int]]:
    """Return `count` prompts of 4 to `longest` random token ids, in mixed order of length."""
    draw = np.random.default_rng(11)
    lengths = draw.permutation(np.geomspace(4, longest, count).astype(int))
    return [draw.integers(3, vocabulary, length).tolist() for length in lengths]


def check_equal(name: str, expected: Sequence[Sequence[float]], found: Sequence[Sequence[float]]) -> Check:
    """Return a check that two runs gave the same values. Missing values differ."""
    pairs = [pair for rows in zip(expected, found, strict=True) for pair in zip_longest(*rows)]
    differing = sum(one != other for one, other in pairs)
    check = Check(name, f"{len(pairs)} values with and without capture: {differing} differ")
    if differing or not pairs:
        check.findings.append(f"{differing} of {len(pairs)} {name} differ; all must be equal to the last bit")
    return check


def plain_experts_use_triton() -> bool:
    """Return whether vLLM runs experts alike with and without capture: on CPUs and on compute capability 9."""
    from vllm.platforms import current_platform

    return current_platform.device_type == "cpu" or bool(current_platform.is_device_capability_family(90))


@dataclass(frozen=True, slots=True)
class Generation:
    """Greedy output for each prompt: token ids and, if requested, the log-probability of each."""

    tokens: list[list[int]]
    logprobs: list[list[float]]


async def generate(
    engine: CaptureEngine, prompts: Sequence[list[int]], max_tokens: int, *, in_flight: int = 1, logprobs: bool = True
) -> Generation:
    """Generate greedily, as an extraction does; at most `in_flight` requests run at once."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    slots, kind = asyncio.Semaphore(in_flight), RequestOutputKind.FINAL_ONLY
    parameters = SamplingParams(
        temperature=0.0,
        max_tokens=max_tokens,
        logprobs=0 if logprobs else None,
        detokenize=False,
        output_kind=kind,
    )

    async def one(number: int, ids: list[int]) -> Any:
        prompt, name = {"type": "token", "prompt_token_ids": ids}, f"selftest-{time.monotonic_ns()}-{number}"
        async with slots:
            return [output async for output in engine.llm.generate(prompt, parameters, request_id=name)][-1].outputs[0]

    outputs = await asyncio.gather(*(one(number, ids) for number, ids in enumerate(prompts)))
    tokens = [list(output.token_ids) for output in outputs]
    steps = zip(tokens, [output.logprobs or [] for output in outputs], strict=True)
    return Generation(tokens, [[at[token].logprob for token, at in zip(*pair, strict=False)] for pair in steps])
