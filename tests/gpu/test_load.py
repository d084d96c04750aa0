"""Engines under load on a GPU, with more requests than usual or too little memory, and with quantized weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sparcom_data.verify import verify_archive
from sparcom_verification import limits
from sparcom_verification.selftest import random_prompts

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

MANY, MANY_GENERATED = 320, 9
# 1,127 tokens of KV cache hold no 16 prompts of 100 tokens, and not the responses of those that start. A block has 16
# tokens on CUDA, and 128 on a CPU: every request needs a second one.
CROWDED, CROWDED_LENGTH, CROWDED_GENERATED, CROWDED_GIB = 16, 100, 60, 0.00215


def test_rows_of_more_than_256_requests_at_once(dense_case: Any, assert_alone: Callable[..., Any]) -> None:
    """With 320 requests in every step, each has the rows that it has alone."""
    engine = dense_case.start(max_num_seqs=MANY, max_num_batched_tokens=4096)
    before = dense_case.steps(engine)
    prompts = random_prompts(MANY, 12)
    archive = dense_case.extract(engine, "many", prompts, positions="all", max_tokens=MANY_GENERATED)
    steps = dense_case.steps(engine) - before
    assert steps < 1.5 * MANY_GENERATED, f"{steps} steps: not all requests ran at once"
    assert_alone(dense_case, engine, archive)


def test_rows_survive_preemption(dense_case: Any, assert_alone: Callable[..., Any]) -> None:
    """With too little KV cache, requests are preempted and computed again; each has the rows that it has alone."""
    engine = dense_case.start(kv_cache_gib=CROWDED_GIB, max_model_len=256, max_num_seqs=CROWDED)
    prompts = [ids[:CROWDED_LENGTH] for ids in random_prompts(4 * CROWDED, 400) if len(ids) >= CROWDED_LENGTH]
    archive, rows = dense_case.extract_counting_rows(
        engine, "crowded", prompts[:CROWDED], positions="all", max_tokens=CROWDED_GENERATED
    )
    assert rows > int(archive.instructions.token_length.sum()), "nothing was preempted"
    assert_alone(dense_case, engine, archive)


def test_rows_and_tokens_in_fp8(fp8_case: Any, against_transformers: Callable[..., Any]) -> None:
    """With FP8 weights, tokens and log-probabilities equal those without capture, and rows are those of the model."""
    engine = fp8_case.start(capture=False)
    plain, again = fp8_case.generate(engine), fp8_case.generate(engine)
    captured = fp8_case.generate(fp8_case.engine)
    assert captured.tokens == plain.tokens == again.tokens
    if plain.logprobs == again.logprobs:
        assert captured.logprobs == plain.logprobs
    assert [check.findings for check in verify_archive(fp8_case.generated, None) if not check.passed] == []
    result = against_transformers(fp8_case, fp8_case.generated)
    share = limits.DIFFERING_BITS_IN_FP8
    assert result.differing <= limits.allowed(share, result.bits), f"{result.differing} of {result.bits} bits differ"
