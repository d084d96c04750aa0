"""Measure the cost of capture on this machine's device, as ratios within one run. Needs only torch and vLLM.

    plain      vLLM without capture
    capture    capture is in the model, but no request asks for rows
    written    masks of all layers are on disk when the clock stops
    counted    counts of each instruction are on disk when the clock stops

There are two loads of random token ids: prefill (long prompts, one generated token) and decode (short prompts, many
generated tokens). Weights are random. Both engines are on the device at once, and the four variants alternate in every
round, so that drifts of the machine's speed cancel out. A ratio is the time of plain vLLM over that of the variant in
the same round; the median over rounds is reported. The tiny shape only shows that the benchmark runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from sparcom_data.instructions import Instruction
from sparcom_data.schema.options import ExtractionOptions
from sparcom_extractor.engine import CaptureEngine
from sparcom_extractor.settings import EngineSettings
from sparcom_extractor.vllm_surface.versions import installed_vllm
from sparcom_verification.selftest import generate

VARIANTS = ("plain", "capture", "written", "counted")
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


def make_loads(prompts: int, vocabulary: int, *, tiny: bool) -> list[Load]:
    """Return the two loads. Ids are random, since equal prompts would give equal rows."""
    draw = np.random.default_rng(5)
    sizes = {"prefill": (64, 1), "decode": (8, 16)} if tiny else {"prefill": (512, 1), "decode": (32, 192)}
    return [
        Load(name, draw.integers(1, vocabulary, (prompts, length)).tolist(), generated)
        for name, (length, generated) in sizes.items()
    ]


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


async def run_extraction(engine: CaptureEngine, load: Load, granularity: str, path: Path) -> float:
    """Extract into a new archive; return the seconds from the first request until all data is on disk."""
    instructions = [Instruction(id=str(number), token_ids=tuple(ids)) for number, ids in enumerate(load.prompts)]
    extraction = await asyncio.to_thread(engine.prepare, instructions, load.options(granularity), path)
    started = time.perf_counter()
    progress = await extraction.run()
    seconds = time.perf_counter() - started
    assert progress.complete == len(instructions), progress
    shutil.rmtree(path)
    return seconds


async def run_variant(
    name: str, plain: CaptureEngine, captured: CaptureEngine, load: Load, path: Path
) -> dict[str, float]:
    """Run one variant; return the seconds, and the growth of the capture worker's totals."""
    (before,) = await captured.call_workers("sparcom_statistics")
    if name in ("plain", "capture"):
        seconds = await run_plain(plain if name == "plain" else captured, load)
    else:
        seconds = await run_extraction(captured, load, "token" if name == "written" else "count", path)
    (after,) = await captured.call_workers("sparcom_statistics")
    return {"seconds": seconds} | {key: after[key] - before[key] for key in after}


async def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return every round's seconds and statistics, by load and variant."""
    shape = SHAPES[arguments.model] | ({"num_hidden_layers": arguments.layers} if arguments.layers else {})
    tiny, cuda = arguments.model == "tiny", arguments.device == "cuda"
    settings = EngineSettings(
        str(make_model(folder, shape)),
        dtype="bfloat16" if cuda else "float32",
        max_model_len=1024,
        max_num_batched_tokens=256 if tiny else 8192,
        max_num_seqs=min(256, arguments.prompts),
        gpu_memory_utilization=arguments.memory if cuda else None,
        kv_cache_gib=None if cuda else 0.25,
        load_format="dummy",
    )
    captured = await CaptureEngine.start(settings)
    plain = await CaptureEngine.start(replace(settings, capture=False))
    try:
        print(f"capture: {captured.engine.model_dump().get('capture_product', '')}", flush=True)
        rounds: list[dict[str, Any]] = []
        loads = make_loads(arguments.prompts, shape["vocab_size"], tiny=tiny)
        for number in range(arguments.rounds + 1):
            for load in loads:
                for name in VARIANTS if number % 2 else reversed(VARIANTS):
                    path = arguments.archives or folder / "archive.zarr"
                    result = await run_variant(name, plain, captured, load, path)
                    rate = load.tokens / result["seconds"]
                    print(f"round {number}  {load.name:<8} {name:<8} {rate:>12,.0f} tokens/s", flush=True)
                    if number:  # round 0 compiles and warms up
                        facts = {"round": number, "load": load.name, "variant": name, "tokens": load.tokens}
                        rounds.append(facts | result)
        return {"shape": shape, "device": captured.engine.device, "rounds": rounds}
    finally:
        await plain.close()
        await captured.close()


def summarize(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return median tokens/s and the ratio to plain vLLM (median, lowest, highest round) per load and variant."""
    table = []
    for load, tokens in dict.fromkeys((item["load"], item["tokens"]) for item in rounds):
        of_load = [item for item in rounds if item["load"] == load]
        seconds = {name: [item["seconds"] for item in of_load if item["variant"] == name] for name in VARIANTS}
        for name, took in seconds.items():
            ratios = sorted(base / other for base, other in zip(seconds["plain"], took, strict=True))
            row = {"load": load, "variant": name, "tokens/s": tokens / median(took), "ratio": median(ratios)}
            table.append(row | {"lowest": ratios[0], "highest": ratios[-1]})
    return table


def main() -> None:
    from vllm.platforms import current_platform

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="tiny", help="use a model of this shape (default: tiny)")
    parser.add_argument("--layers", type=int, help="use this many layers (default: those of the shape)")
    parser.add_argument("--prompts", type=int, help="run this many prompts per load (default: 512; 16 for tiny)")
    parser.add_argument("--rounds", type=int, default=5, help="measure this many rounds after a warm-up (default: 5)")
    parser.add_argument(
        "--memory", type=float, default=0.45, help="give each engine this fraction of the device (default: 0.45)"
    )
    parser.add_argument(
        "--archives", type=Path, help="write archives to this new path (default: in a temporary folder)"
    )
    parser.add_argument("--output", type=Path, help="write all results to this JSON file")
    arguments = parser.parse_args()
    arguments.device = current_platform.device_type
    arguments.prompts = arguments.prompts or (16 if arguments.model == "tiny" else 512)
    with tempfile.TemporaryDirectory(prefix="sparcom-bench-") as folder:
        results = asyncio.run(measure(arguments, Path(folder)))
    table = summarize(results["rounds"])
    if arguments.output:
        results |= {"model": arguments.model, "vllm": installed_vllm(), "table": table}
        arguments.output.write_text(json.dumps(results, indent=1))
    for row in table:
        rate, spread = f"{row['tokens/s']:>12,.0f} tokens/s", f"{row['lowest']:.3f} to {row['highest']:.3f}"
        print(f"{row['load']:<8} {row['variant']:<8} {rate}   {row['ratio']:.3f} ({spread})")


if __name__ == "__main__":  # vLLM starts its processes by importing this file again
    main()
