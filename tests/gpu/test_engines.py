"""Capture in vLLM engines on a GPU, for several models, dtypes and engine settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sparcom_data.verify import verify_archive
from sparcom_verification import limits
from sparcom_verification.reference.comparison import compare_masks, sample_indices
from sparcom_verification.reference.model import ReferenceModel
from sparcom_verification.selftest import plain_experts_use_triton

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

SAMPLE = 8  # instructions compared with transformers, which runs on the CPU


def assert_alike(found: Any, dtype: str) -> None:
    """Check that token ids are equal, and everything else up to rounding."""
    assert found.ids == 0
    shares = {
        "bits": limits.DIFFERING_BITS,
        "routes": limits.DIFFERING_ROUTES_BETWEEN_RUNS,
        "weights": limits.DIFFERING_WEIGHTS_BETWEEN_RUNS,
    }
    assert found.bits[1] > 0
    for name, share in shares.items():
        differing, total = getattr(found, name)
        assert differing <= limits.allowed(share[dtype], total), f"{differing} of {total} {name} differ"


def test_rows_agree_with_transformers(case: Any) -> None:
    """Rows of prompts and responses equal those of transformers in float32 on the CPU, up to rounding."""
    archive = case.generated
    info = archive.attributes.model
    reference = ReferenceModel(str(case.model), "float32", info.layer_ids, info.moe)
    result = compare_masks(archive, reference, sample_indices(archive, SAMPLE), lambda _: np.zeros(0, np.int32))
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


def test_rows_of_generated_tokens_equal_those_of_the_same_prompt(case: Any, compare: Callable[..., Any]) -> None:
    """Decode steps and chunked prefill give a token the same row."""
    assert max(map(len, case.sequences)) > 256, "some prompts must be split into several steps"
    assert min(map(len, case.prompts)) < 8, "some prompts must share a step"
    assert_alike(compare(case.generated, case.forced, case.dtype), case.dtype)


def test_concurrent_rows_equal_those_of_each_request_alone(case: Any, compare: Callable[..., Any]) -> None:
    """In mixed batches, every request has the rows that it has alone."""
    assert_alike(compare(case.forced, case.extract_alone(), case.dtype), case.dtype)


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


def test_rows_of_compiled_graphs_equal_those_of_eager_mode(case: Any, device: str, compare: Callable[..., Any]) -> None:
    """Rows are the same without compilation and graphs."""
    if device != "cuda":
        pytest.skip("needs a CUDA device")
    if case.variant not in {type(case.variant)("llama"), type(case.variant)("qwen2-moe")}:
        pytest.skip("needs a CUDA device and one of two models: another engine start per variant is long")
    engine = case.start(enforce_eager=True)
    assert_alike(compare(case.forced, case.extract(engine, "eager", case.sequences), case.dtype), case.dtype)
