"""The steps of a lane: one tiny model, one dtype, and what must be the same whichever way it is computed.

    plain_tokens   greedy tokens of the engine without capture, and how likely each was
    capture        the same prompts with capture: the same tokens, as likely. The rows of prompt and response, then the
                   same tokens again as prompts (cut, mixed), one request at a time, and counted instead of stored
    eager          those prompts without compiled graphs
    transformers   the rows of prompt and response by another implementation, on the CPU

Files in the work folder carry tokens and archives from step to step.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparcom_data.archive import open_archive
from sparcom_data.instructions import Instruction
from sparcom_data.schema.options import ExtractionOptions
from sparcom_extractor.engine import CaptureEngine
from sparcom_extractor.settings import EngineSettings
from sparcom_verification.selftest.attempts import Attempts
from sparcom_verification.selftest.comparisons import ROUNDING_SHARE, ids_of, same_counts, same_rows, same_values, sound
from sparcom_verification.selftest.engines import Generation, extract, generate, running, together
from sparcom_verification.selftest.models import TINY_CONTEXT, tiny_model_folder
from sparcom_verification.selftest.results import Check, Fact, Measure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sparcom_verification.reference.masks import Comparison
    from sparcom_verification.selftest.plan import Sizes
    from sparcom_verification.selftest.process import Context

SEED = 11
LANE_KV_CACHE_GIB = 0.5
LANE_MEMORY_SHARE = 0.05  # of the device: what must be free when an engine starts beside those of other lanes
REFERENCE_SAMPLE = 8
HOPPER = 90  # compute capabilities 9.x, as vLLM names them
# bfloat16 against float32: measured 0.4 % on the CPU with two layers; rounding to 2⁻⁸ adds up over the layers.
SHARE_AGAINST_FLOAT32 = {"float32": ROUNDING_SHARE["float32"], "bfloat16": 3e-2}
STRAY_SHARE = {"float32": 0.0, "bfloat16": 1e-2}  # of choices and weights: the limits of `sparcom verify`


def make_texts(sizes: Sizes) -> list[str]:
    """Prompts from a few to `longest` tokens, short and long in turn, no two alike; ASCII, so that a letter is a token.

    The shortest begin and end within one step, the longest are cut into several.
    """
    draw = np.random.default_rng(SEED)
    lengths = np.geomspace(4, sizes.longest - 1, sizes.prompts).astype(int)
    draw.shuffle(lengths)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz     .,"))
    return [f"{number} {''.join(draw.choice(letters, length))}"[:length] for number, length in enumerate(lengths, 10)]


def lane_settings(context: Context, architecture: str, dtype: str, *, capture: bool, eager: bool) -> EngineSettings:
    """The settings of all engines of a lane: but for capture and eager mode the same."""
    return EngineSettings(
        model=str(tiny_model_folder(context.folder, architecture)),
        dtype=dtype,
        max_model_len=TINY_CONTEXT,
        max_num_batched_tokens=context.sizes.step_tokens,
        max_num_seqs=context.sizes.prompts,
        gpu_memory_utilization=LANE_MEMORY_SHARE if context.device == "cuda" else None,
        kv_cache_gib=LANE_KV_CACHE_GIB,
        enforce_eager=True if eager else None,
        capture=capture,
    )


def _folder(context: Context, label: str) -> Path:
    folder = context.folder / label.replace(" ", "-")
    folder.mkdir(exist_ok=True)
    return folder


def plain_tokens(context: Context, *, architecture: str, dtype: str, label: str) -> None:
    """Step: what the engine says without capture, twice."""
    asyncio.run(_plain_tokens(context, architecture, dtype, label))


async def _plain_tokens(context: Context, architecture: str, dtype: str, label: str) -> None:
    settings = lane_settings(context, architecture, dtype, capture=False, eager=False)
    async with running(context, settings) as engine:
        first, again = [await _generate(context, engine) for _ in range(2)]
    values = same_values(first.logprobs, again.logprobs, "", "", "")
    said = {"tokens": first.tokens, "logprobs": first.logprobs, "repeatable": values.passed}
    (_folder(context, label) / "plain.json").write_text(json.dumps(said))
    compared = "two runs of the plain engine"
    context.tell(same_values(first.tokens, again.tokens, f"{label}, repeatable", compared, "tokens"))
    name = "log-probabilities that differ between them"
    context.tell(Measure(f"{label}, {name}", values.differing, f"of {values.total:,}"))


async def _generate(context: Context, engine: CaptureEngine) -> Generation:
    """The lane's prompts through the engine, all beginning together, with the log-probability of every token."""
    prompts = engine.tokenizer(make_texts(context.sizes))["input_ids"]
    work = generate(engine, prompts, context.sizes.generated, logprobs=True)
    return await together(engine, len(prompts), work)


def capture(context: Context, *, architecture: str, dtype: str, label: str) -> None:
    """Step: everything that one engine with capture can show."""
    asyncio.run(_capture(context, architecture, dtype, label))


async def _capture(context: Context, architecture: str, dtype: str, label: str) -> None:
    folder = _folder(context, label)
    settings = lane_settings(context, architecture, dtype, capture=True, eager=False)
    async with running(context, settings) as engine:
        await _capture_unseen(context, engine, folder, label)
        await _capture_generated(context, engine, folder, label)
        await _capture_forced(context, engine, folder, label, dtype)
        attempts = Attempts()
        await attempts.run("alone", _capture_alone(context, engine, folder, label, dtype))
        await attempts.run("counts", _capture_counts(context, engine, folder, label))
    attempts.finish()


async def _capture_unseen(context: Context, engine: CaptureEngine, folder: Path, label: str) -> None:
    """Capture is in the graph and nobody wants the rows: the tokens are the plain engine's, and as likely.

    A product that rounds differently is seen in log-probabilities long before it changes a token. They say nothing
    where the plain engine does not repeat its own.
    """
    if (said := _plain_said(context, engine, folder)) is None:
        return
    found = await _generate(context, engine)
    compared = "with and without capture in the graph"
    context.tell(same_values(said["tokens"], found.tokens, f"{label}, tokens", compared, "tokens"))
    check = same_values(said["logprobs"], found.logprobs, f"{label}, log-probabilities", compared, "values")
    if said["repeatable"]:
        context.tell(check)
    else:
        note = "no check: the plain engine does not repeat its own"
        context.tell(Measure(check.name, check.differing, f"of {check.total:,} differ", note=note))


def _plain_said(context: Context, engine: CaptureEngine, folder: Path) -> dict[str, Any] | None:
    """What the plain engine said, or None where it has not run, or not by the kernels that capture needs."""
    if engine.model.moe is not None and context.device == "cuda" and not _prefers_triton():
        reason = (
            "not compared: on this device vLLM may run experts by another kernel than Triton's, which capture needs"
        )
        context.tell(Fact("with and without capture", reason))
        return None
    file = folder / "plain.json"
    if not file.exists():
        context.tell(Fact("with and without capture", "not compared: the plain engine has not run"))
        return None
    said: dict[str, Any] = json.loads(file.read_text())
    return said


def _prefers_triton() -> bool:
    """Whether vLLM runs unquantised experts by Triton's kernels unasked: of 0.24 to 0.33, on capability 9."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_device_capability_family(HOPPER))


async def _capture_generated(context: Context, engine: CaptureEngine, folder: Path, label: str) -> None:
    """Prompt and response rows; the response is the one that the plain engine gave."""
    texts = make_texts(context.sizes)
    instructions = [Instruction(id=str(number), text=text) for number, text in enumerate(texts)]
    options = ExtractionOptions(positions="all", max_tokens=context.sizes.generated)
    path = folder / "generated.zarr"
    await extract(engine, instructions, path, options, held=True)
    context.tell(sound(path, f"{label}, generated", engine.tokenizer))
    if (said := _plain_said(context, engine, folder)) is not None:
        archive = open_archive(path)
        lengths = archive.instructions.prompt_length
        found = [ids_of(archive, index)[lengths[index] :].tolist() for index in range(len(texts))]
        expected = [tokens[:-1] for tokens in said["tokens"]]  # the last is never fed to the model
        compared = "without capture, and in the archive"
        context.tell(same_values(expected, found, f"{label}, captured tokens", compared, "tokens"))


def _forced_instructions(folder: Path) -> list[Instruction]:
    """Prompts that are whole sequences of the first archive."""
    archive = open_archive(folder / "generated.zarr")
    return [
        Instruction(id=f"f{index}", token_ids=tuple(ids_of(archive, index).tolist()))
        for index in range(len(archive.instructions))
    ]


async def _capture_forced(context: Context, engine: CaptureEngine, folder: Path, label: str, dtype: str) -> None:
    await extract(engine, _forced_instructions(folder), folder / "forced.zarr", ExtractionOptions(), held=True)
    compared = "rows of generated tokens, and the same tokens as prompts"
    for check in same_rows(folder / "generated.zarr", folder / "forced.zarr", label, compared, dtype):
        context.tell(check)
    context.tell(sound(folder / "forced.zarr", f"{label}, as prompts"))


async def _capture_alone(context: Context, engine: CaptureEngine, folder: Path, label: str, dtype: str) -> None:
    ahead, engine.max_in_flight = engine.max_in_flight, 1
    try:
        await extract(engine, _forced_instructions(folder), folder / "alone.zarr", ExtractionOptions())
    finally:
        engine.max_in_flight = ahead
    compared = "concurrent requests, and one request at a time"
    for check in same_rows(folder / "forced.zarr", folder / "alone.zarr", f"{label}, alone", compared, dtype):
        context.tell(check)


async def _capture_counts(context: Context, engine: CaptureEngine, folder: Path, label: str) -> None:
    path = folder / "counts.zarr"
    options = ExtractionOptions(granularity="count")
    await extract(engine, _forced_instructions(folder), path, options, held=True)
    context.tell(sound(path, f"{label}, counted"))
    context.tell(same_counts(path, folder / "forced.zarr", label))


def eager(context: Context, *, architecture: str, dtype: str, label: str) -> None:
    """Step: the same rows without compiled graphs."""
    asyncio.run(_eager(context, architecture, dtype, label))


async def _eager(context: Context, architecture: str, dtype: str, label: str) -> None:
    folder = _folder(context, label)
    instructions = _forced_instructions(folder)  # before the engine starts: they may not be there
    settings = lane_settings(context, architecture, dtype, capture=True, eager=True)
    async with running(context, settings) as engine:
        await extract(engine, instructions, folder / "eager.zarr", ExtractionOptions(), held=True)
    compared = "compiled graphs, and eager mode"
    one, other = folder / "forced.zarr", folder / "eager.zarr"
    for check in same_rows(one, other, f"{label}, eager", compared, dtype):
        context.tell(check)


def transformers(context: Context, *, architecture: str, dtype: str, label: str) -> None:
    """Step: the rows of prompts and responses against transformers in float32 on the CPU."""
    from sparcom_verification.reference.masks import ReferenceModel, compare_with_reference, sample_indices

    archive = open_archive(_folder(context, label) / "generated.zarr")
    model = archive.attributes.model
    path = tiny_model_folder(context.folder, architecture)
    reference = ReferenceModel(str(path), "float32", model.layer_ids, model.moe)
    indices = sample_indices(archive, REFERENCE_SAMPLE)
    result = compare_with_reference(archive, reference, indices, lambda _: np.zeros(0, np.int32))
    for check in _against_transformers(result, dtype, label):
        context.tell(check)


def _against_transformers(result: Comparison, dtype: str, label: str) -> Iterator[Check]:
    compared = f"{result.rows:,} rows, and transformers in float32 on the CPU"
    share = SHARE_AGAINST_FLOAT32[dtype]
    yield Check(f"{label}, transformers", compared, result.bits, result.differing, "bits", share)
    if dtype == "float32":
        far = "of those, with a gate further from zero than rounding explains"
        yield Check(f"{label}, rounding", far, result.bits, result.unexplained, "bits")
    if (experts := result.experts) is not None:
        stray, ties = STRAY_SHARE[dtype], f"{experts.ties} ties followed" if experts.ties else ""
        yield Check(f"{label}, routes", compared, experts.routes, experts.unexplained, "choices", stray, ties)
        yield Check(f"{label}, combine weights", compared, experts.weights, experts.off_weights, "weights", stray)
