"""Counting and looking in a real engine: counts are those of the masks, and the model says what it says unseen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparcom_data.archive import Archive
from sparcom_data.instructions import Instruction
from sparcom_data.verify import verify_archive

pytestmark = pytest.mark.engine

ALLOWED_SHARE = 3e-6  # of bits: batches differ between two runs, and with them the rounding of gates near zero


def counted(masks: Archive) -> Any:
    """Sums over the masks of each instruction, uint32 (instruction, layer, neuron)."""
    table = masks.instructions
    sums = np.zeros((len(table), masks.layers, masks.neurons), dtype=np.uint32)
    for index in range(len(table)):
        start, stop = int(table.token_start[index]), int(table.token_start[index] + table.token_length[index])
        bits = np.unpackbits(masks.read_active(start, stop), axis=-1, bitorder="little")[..., : masks.neurons]
        sums[index] = bits.sum(axis=0, dtype=np.uint32)
    return sums


@pytest.mark.parametrize("positions", ["prompt", "all"])
def test_counts_are_those_of_the_masks(
    positions: str, tiny_engine: Any, mixed_instructions: list[Instruction], tmp_path: Path
) -> None:
    """Chunked prefill, mixed batches, generated tokens: each count is the sum of the instruction's masks."""
    options = {"positions": positions, "max_tokens": 0 if positions == "prompt" else 7}
    masks = tiny_engine.extract(mixed_instructions, tmp_path / "masks.zarr", **options)
    counts = tiny_engine.extract(mixed_instructions, tmp_path / "counts.zarr", granularity="count", **options)
    assert counts.granularity == "count"
    assert counts.instructions.token_length.tolist() == masks.instructions.token_length.tolist()
    assert [check.findings for check in verify_archive(counts, None) if not check.passed] == []
    expected = counted(masks)
    differing = np.abs(counts.read_counts(0, len(mixed_instructions)).astype(np.int64) - expected).sum()
    bits = int(masks.instructions.token_length.sum()) * masks.layers * masks.neurons
    assert differing <= max(1.0, ALLOWED_SHARE * bits), f"{differing} of {bits} bits"
    assert expected.any()


def test_counts_after_preemptions(
    start_engine: Callable[..., Any],
    tiny_model: Callable[[str], Path],
    mixed_instructions: list[Instruction],
    tmp_path: Path,
) -> None:
    """With too little room for all sequences requests are preempted and computed again; each row counts once."""
    engine = start_engine(
        tiny_model("llama"), max_num_batched_tokens=64, max_num_seqs=8, max_model_len=320, kv_cache_gib=0.00095
    )
    options = {"positions": "all", "max_tokens": 60}
    masks = engine.extract(mixed_instructions, tmp_path / "masks.zarr", **options)
    extraction = engine.prepare(mixed_instructions, tmp_path / "counts.zarr", granularity="count", **options)
    progress = engine.run(extraction)
    assert progress.complete == len(mixed_instructions)
    assert extraction.rows_captured > progress.tokens_done, "something must have been computed twice"
    from sparcom_data.archive import open_archive

    counts = open_archive(tmp_path / "counts.zarr").read_counts(0, len(mixed_instructions))
    expected = counted(masks)
    bits = int(masks.instructions.token_length.sum()) * masks.layers * masks.neurons
    assert np.abs(counts.astype(np.int64) - expected).sum() <= max(1.0, ALLOWED_SHARE * bits)


def generate(engine: Any, prompts: Sequence[Sequence[int]], plan: Callable[[int], Any] = lambda _: None) -> Any:
    """Token ids that the engine's own interface gives, greedily, all prompts at once."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    async def one(number: int, ids: Sequence[int]) -> list[int]:
        sampling = SamplingParams(
            max_tokens=24,
            temperature=0.0,
            ignore_eos=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=plan(number),
        )
        prompt = {"type": "token", "prompt_token_ids": list(ids)}
        result = [output async for output in engine.engine.llm.generate(prompt, sampling, request_id=f"say-{number}")]
        return list(result[-1].outputs[0].token_ids)

    async def all_of_them() -> list[list[int]]:
        return list(await asyncio.gather(*(one(number, ids) for number, ids in enumerate(prompts))))

    return engine.loop.run(all_of_them())


def test_the_model_says_the_same_with_and_without_capture(
    start_engine: Callable[..., Any],
    tiny_model: Callable[[str], Path],
    mixed_instructions: list[Instruction],
) -> None:
    """Looking changes no token: an engine with capture generates what the same engine without it does."""
    settings = {"max_num_batched_tokens": 64, "max_num_seqs": 8, "max_model_len": 320}
    plain = start_engine(tiny_model("llama"), capture=False, **settings)
    prompts = [plain.engine.tokenizer(item.text)["input_ids"][:200] for item in mixed_instructions[:12]]
    said = generate(plain, prompts)
    looked_at = start_engine(tiny_model("llama"), **settings)
    assert generate(looked_at, prompts) == said
    assert len({tuple(tokens) for tokens in said}) > 6, "the prompts must not all be answered alike"
