"""Capture in vLLM engines on a GPU, for several models, dtypes and engine settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sparcom_data.verify import verify_archive
from sparcom_verification import limits
from sparcom_verification.selftest import plain_experts_use_triton

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]


def test_rows_agree_with_transformers(case: Any, against_transformers: Callable[..., Any]) -> None:
    """Rows of prompts and responses equal those of transformers in float32 on the CPU, up to rounding."""
    result = against_transformers(case, case.generated)
    share = limits.DIFFERING_BITS_FROM_FLOAT32[case.dtype]
    assert result.differing <= limits.allowed(share, result.bits), f"{result.differing} of {result.bits} bits differ"
    if case.dtype == "float32":
        assert result.unexplained == 0, result.examples
    if (experts := result.experts) is not None:
        share = limits.UNEXPLAINED_SHARE.get(case.dtype, 0.0)
        assert experts.unexplained <= share * experts.routes, experts.route_examples
        assert experts.weights_unexplained <= share * experts.weights, experts.weight_examples


def test_tokens_and_logprobs_equal_those_without_capture(case: Any) -> None:
    """Greedy tokens are equal with and without capture in the graph, and log-probabilities equal to the last bit.

    An activation output that rounds differently changes log-probabilities long before it changes a token. They are
    comparable if the engine without capture reproduces its own.

    """
    if case.engine.model.moe is not None and not plain_experts_use_triton():
        pytest.skip("needs a CUDA device of capability 9: on others vLLM may run experts by another kernel")
    engine = case.start(capture=False)
    plain, again = case.generate(engine), case.generate(engine)
    captured = case.generate(case.engine)
    assert captured.tokens == plain.tokens == again.tokens
    if plain.logprobs == again.logprobs:
        assert captured.logprobs == plain.logprobs
    generated = [ids[len(prompt) :] for ids, prompt in zip(case.sequences, case.prompts, strict=True)]
    assert generated == [tokens[:-1] for tokens in plain.tokens], "the last token is never fed to the model"


def test_rows_of_generated_tokens_equal_those_of_the_same_prompt(case: Any, assert_alike: Callable[..., Any]) -> None:
    """Decode steps and chunked prefill give a token the same row."""
    assert max(map(len, case.sequences)) > 256, "some prompts must be split into several steps"
    assert min(map(len, case.prompts)) < 8, "some prompts must share a step"
    assert_alike(case.generated, case.forced, case.dtype)


def test_concurrent_rows_equal_those_of_each_request_alone(case: Any, assert_alike: Callable[..., Any]) -> None:
    """In mixed batches, every request has the rows that it has alone."""
    assert_alike(case.forced, case.extract_alone(case.engine, case.sequences), case.dtype)


def test_counts_are_sums_of_the_masks(case: Any, wrong_counts: Callable[..., int]) -> None:
    """Granularity count gives exactly the sums over each instruction's rows, if both runs have the same batches."""
    counts = case.extract(case.engine, "counts", case.sequences, granularity="count")
    assert [check.findings for check in verify_archive(counts, None) if not check.passed] == []
    assert wrong_counts(counts, case.forced) == 0


def test_archives_are_valid(case: Any) -> None:
    """`sparcom verify` finds no problem in format, checksums, states, unwritten rows and spare bits."""
    for archive in (case.generated, case.forced):
        assert [check.findings for check in verify_archive(archive, None) if not check.passed] == []


def test_the_engine_runs_as_requested(case: Any, device: str) -> None:
    """On CUDA, graphs are captured, by the requested version of the model runner."""
    mode = case.engine.engine.model_dump()
    assert (mode["cudagraph_mode"] != "NONE") == (device == "cuda")
    assert mode["tensor_parallel_size"] == case.variant.ranks
    if case.variant.runner:
        assert mode["model_runner"] == case.variant.runner


def test_rows_of_compiled_graphs_equal_those_of_eager_mode(
    case: Any, device: str, assert_alike: Callable[..., Any]
) -> None:
    """Rows are the same without compilation and graphs."""
    if device != "cuda":
        pytest.skip("needs a CUDA device")
    if case.variant not in {type(case.variant)("llama"), type(case.variant)("qwen2-moe")}:
        pytest.skip("needs a CUDA device and one of two models: another engine start per variant is long")
    engine = case.start(enforce_eager=True)
    assert_alike(case.forced, case.extract(engine, "eager", case.sequences), case.dtype)
