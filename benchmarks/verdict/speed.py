"""Measure the cost of capture: two engines at once on one device, one with and one without capture, in turn.

    plain       vLLM without capture
    written     masks of all layers are on disk when the clock stops
    in memory   the same, with the archive in a file system in memory
    counted     counts of each instruction are on disk when the clock stops
    unread      capture is in the model, but no request asks for rows

There are two loads of random token ids: prefill (long prompts, one generated token) and decode (short prompts, many
generated tokens). Each round runs every way once, in the reverse order of the round before. A ratio is the time of
plain vLLM over that of the other way in the same round, so that drifts of the machine's speed cancel out.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from sparcom_data.instructions import Instruction
from sparcom_data.schema import captured_arrays
from sparcom_data.schema.options import ExtractionOptions
from sparcom_extractor.engine import CaptureEngine
from sparcom_extractor.settings import EngineSettings
from sparcom_verification.selftest import generate
from verdict.judge import Place, choose_place, judge
from verdict.steps import Context

COMMON = {"hidden_act": "silu", "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": None}
LLAMA_2_7B = COMMON | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
QWEN_MOE = COMMON | {
    "architectures": ["Qwen2MoeForCausalLM"],
    "model_type": "qwen2_moe",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "norm_topk_prob": False,
    "decoder_sparse_step": 1,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 151936,
    "max_position_embeddings": 8192,
    "rope_theta": 1000000.0,
}
TINY = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 2, "vocab_size": 512}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4}
SHAPES = {"llama-2-7b": LLAMA_2_7B, "qwen1.5-moe": QWEN_MOE, "tiny": LLAMA_2_7B | TINY | HEADS}
LENGTHS = {"prefill": (512, 1), "decode": (32, 128)}  # tokens per prompt, generated tokens
TINY_LENGTHS = {"prefill": (64, 1), "decode": (8, 16)}
# Each takes 6 to 7 s on an H100 (estimate): the end of an extraction, tens of milliseconds, must not decide.
PROMPTS = {"prefill": 512, "decode": 1024}
WARM_UP = 4  # a warm-up runs this fraction of the prompts
SEQUENCES = (256, 128, 64)  # requests at once: the largest number whose KV cache fits twice
STEP_TOKENS, TINY_STEP_TOKENS = 8192, 256
OVERHEAD_GIB = 4.0  # activations, graphs, capture's buffers and the CUDA context of one engine
CLOSE_SECONDS = 6.0


@dataclass(frozen=True)
class Load:
    """Prompts of random token ids, and the number of tokens that each generates."""

    name: str
    prompts: list[list[int]]
    generated: int

    @property
    def tokens(self) -> int:
        """Number of tokens that the model computes. It never reads the last generated token of a prompt."""
        return sum(map(len, self.prompts)) + len(self.prompts) * (self.generated - 1)

    def options(self, granularity: Any) -> ExtractionOptions:
        """Return options that capture every computed token."""
        if self.generated == 1:
            return ExtractionOptions(granularity=granularity)
        return ExtractionOptions(granularity=granularity, positions="all", max_tokens=self.generated)


def make_loads(shape: dict[str, Any], *, tiny: bool) -> list[Load]:
    """Return the two loads. Ids are random, since equal prompts would give equal rows."""
    draw = np.random.default_rng(5)
    return [
        Load(
            name,
            draw.integers(1, shape["vocab_size"], (16 if tiny else PROMPTS[name], length)).tolist(),
            generated,
        )
        for name, (length, generated) in (TINY_LENGTHS if tiny else LENGTHS).items()
    ]


def weight_gib(shape: dict[str, Any]) -> float:
    """Return the GiB of the weights in bfloat16."""
    hidden, layers = shape["hidden_size"], shape["num_hidden_layers"]
    ffn = shape["intermediate_size"]
    if "num_experts" in shape:
        ffn = shape["num_experts"] * shape["moe_intermediate_size"] + shape["shared_expert_intermediate_size"]
    weights: int = layers * (4 * hidden**2 + 3 * hidden * ffn) + 2 * hidden * shape["vocab_size"]
    return weights * 2 / 2**30


def fit_engine(shape: dict[str, Any], device_gib: float) -> tuple[int, float] | None:
    """Return max_num_seqs and the GiB of KV cache for two engines on one device without preemption, or None."""
    head = shape["hidden_size"] // shape["num_attention_heads"]
    per_token = 2 * shape["num_hidden_layers"] * shape["num_key_value_heads"] * head * 2
    for sequences in SEQUENCES:
        kv_cache = 1.05 * per_token * max(sum(LENGTHS["decode"]) * sequences, 4 * STEP_TOKENS) / 2**30
        if 2 * (weight_gib(shape) + kv_cache + OVERHEAD_GIB) <= device_gib:
            return sequences, round(kv_cache, 2)
    return None


def make_model(folder: Path, shape: dict[str, Any]) -> Path:
    """Write a configuration, and a byte-level tokenizer with a token for every id of the vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    (folder / "config.json").write_text(json.dumps(shape))
    letters = ["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    letters += [f"<|{number}|>" for number in range(len(letters), shape["vocab_size"])]
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


async def run_plain(engine: CaptureEngine, load: Load) -> float:
    """Generate without extraction; return the seconds."""
    started = time.perf_counter()
    await generate(engine, load.prompts, load.generated, in_flight=engine.max_in_flight, logprobs=False)
    return time.perf_counter() - started


async def run_extraction(engine: CaptureEngine, load: Load, granularity: str, path: Path) -> tuple[float, int]:
    """Extract into a new archive. Return the seconds from the first request until all data is on disk, and the rows
    that were computed twice, after preemptions."""
    instructions = [Instruction(id=str(number), token_ids=tuple(ids)) for number, ids in enumerate(load.prompts)]
    extraction = await asyncio.to_thread(engine.prepare, instructions, load.options(granularity), path)
    started = time.perf_counter()
    progress = await extraction.run()
    seconds = time.perf_counter() - started
    assert progress.complete == len(instructions), progress
    await asyncio.to_thread(shutil.rmtree, path)
    return seconds, extraction.rows_captured - load.tokens


@dataclass
class Measurement:
    """Two engines, and the ratios of each load and way. places: where archives may go, the preferred one first."""

    context: Context
    plain: CaptureEngine
    captured: CaptureEngine
    places: list[Place]
    row_bytes: int
    further: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.ratios: dict[tuple[str, str], list[float]] = {}
        self.chosen: dict[str, Place] = {}
        self.longest = 0.0  # seconds of a round

    async def time(self, load: Load, way: str) -> dict[str, Any]:
        """Run one load in one way; return its seconds and the growth of the capture worker's totals."""
        if way == "plain":
            return {"seconds": await run_plain(self.plain, load)}
        (before,) = await self.captured.call_workers("sparcom_statistics")
        if way == "unread":
            found: dict[str, Any] = {"seconds": await run_plain(self.captured, load)}
        else:
            granularity = "count" if way == "counted" else "token"
            with TemporaryDirectory(prefix="sparcom-bench-", dir=self.chosen[load.name].folder) as folder:
                path = Path(folder) / "archive.zarr"
                seconds, again = await run_extraction(self.captured, load, granularity, path)
            found = {"seconds": seconds, "rows_computed_twice": again}
        (after,) = await self.captured.call_workers("sparcom_statistics")
        return found | {key: round(after[key] - before[key], 4) for key in after}

    async def warm_up(self, load: Load) -> bool:
        """Run each way on some of the prompts. Judge the places by the speed of plain vLLM; return whether one will
        do."""
        part = replace(load, prompts=load.prompts[::WARM_UP])
        await self.time(part, "plain")
        seconds = (await self.time(part, "plain"))["seconds"]
        needed, size = part.tokens * self.row_bytes / seconds, load.tokens * self.row_bytes
        place, refusals = choose_place(self.places, needed, size)
        facts = {"load": load.name, "needed": needed, "bytes": size, "refusals": refusals}
        self.context.record("place", **facts, place=asdict(place) if place else None)
        if place is None:
            return False
        self.chosen[load.name] = place
        for way in (place.way, *self.further):
            await self.time(part, way)
        self.longest = max(self.longest, WARM_UP * seconds * (2 + len(self.further)))
        return True

    async def round(self, load: Load, number: int) -> None:
        """Run every way once, in one of two orders; record each pair."""
        place, started = self.chosen[load.name], time.monotonic()
        ways = ("plain", place.way, *self.further)
        found = {way: await self.time(load, way) for way in (ways if number % 2 else reversed(ways))}
        plain = found["plain"]["seconds"]
        for way in ways[1:]:
            ratios = self.ratios.setdefault((load.name, way), [])
            ratios.append(plain / found[way]["seconds"])
            judgement = asdict(judge(ratios))
            needed = load.tokens * self.row_bytes / plain
            if way == place.way and judgement["verdict"] == "fails" and place.rate < needed:
                judgement |= {"verdict": "undecided", "reason": f"{place.folder} is slower than the load needs"}
            elif again := found[way].get("rows_computed_twice"):
                judgement |= {"verdict": "undecided", "reason": f"{again} rows were computed twice, after preemptions"}
            facts = {"load": load.name, "way": way, "pair": number, "plain_seconds": plain, "pair_ratio": ratios[-1]}
            self.context.record("pair", **facts, tokens=load.tokens, needed=needed, **found[way], **judgement)
        self.longest = max(self.longest, time.monotonic() - started)

    async def run(self, loads: list[Load], pairs: int) -> None:
        """Warm up, then measure at most `pairs` rounds. Time ends the rounds, never a result."""
        usable = [load for load in loads if await self.warm_up(load)]
        for number in range(1, pairs + 1):
            for load in usable:
                if self.context.seconds_left < CLOSE_SECONDS + 1.2 * self.longest:
                    return
                await self.round(load, number)


async def measure(
    context: Context,
    name: str,
    places: list[Place],
    device_gib: float | None,
    pairs: int,
    further: tuple[str, ...],
) -> None:
    """Start both engines and measure the shape `name`. device_gib: memory of the device; None on a CPU."""
    shape, tiny, cuda = SHAPES[name], name == "tiny", device_gib is not None
    fitted = fit_engine(shape, device_gib) if device_gib is not None else (16, 0.25)
    if fitted is None:
        context.record("problem", reason=f"two engines of {name} do not fit into {device_gib:.0f} GiB")
        return
    with TemporaryDirectory(prefix="sparcom-model-") as folder:
        settings = EngineSettings(
            str(make_model(Path(folder), shape)),
            dtype="bfloat16" if cuda else "float32",
            max_model_len=1024,
            max_num_batched_tokens=TINY_STEP_TOKENS if tiny else STEP_TOKENS,
            max_num_seqs=fitted[0],
            kv_cache_gib=fitted[1],
            gpu_memory_utilization=0.45 if cuda else None,
            load_format="dummy",
        )
        started = time.monotonic()
        captured = await CaptureEngine.start(settings)
        context.record("engine", way="capture", seconds=time.monotonic() - started, **captured.engine.model_dump())
        started = time.monotonic()
        plain = await CaptureEngine.start(replace(settings, capture=False))
        context.record("engine", way="plain", seconds=time.monotonic() - started, **plain.engine.model_dump())
        try:
            row_bytes = sum(item.row_bytes for item in captured_arrays(captured.model, "token"))
            measurement = Measurement(context, plain, captured, places, row_bytes, further)
            await measurement.run(make_loads(shape, tiny=tiny), pairs)
        finally:
            await plain.close()
            await captured.close()
