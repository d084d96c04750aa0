"""The self-test passes with an engine that captures correctly, and fails if anything differs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sparcom_verification import selftest


@pytest.mark.parametrize(
    ("found", "findings"),
    [
        ([[1, 2, 3], [4]], []),
        ([[1, 9], [4]], ["2 of 4 tokens differ; all must be equal to the last bit"]),
    ],
)
def test_every_value_must_be_equal(found: list[list[float]], findings: list[str]) -> None:
    """Values are compared one by one; missing values differ."""
    assert selftest.check_equal("tokens", [[1, 2, 3], [4]], found).findings == findings


def test_a_comparison_of_nothing_fails() -> None:
    """A comparison without values is a finding."""
    assert not selftest.check_equal("tokens", [], []).passed


def test_prompts_are_mixed_and_split() -> None:
    """Short and long prompts are mixed; long ones take several steps; token ids are within the vocabulary."""
    prompts = selftest.random_prompts(8, 150, 60)
    lengths = [len(ids) for ids in prompts]
    assert min(lengths) < 8
    assert max(lengths) == 150
    assert lengths != sorted(lengths)
    assert {token for ids in prompts for token in ids} == set(range(3, 60))


def test_the_tiny_model_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is made locally; kernels compiled under other settings are not used."""
    for name in (*selftest.ENVIRONMENT, "VLLM_CACHE_ROOT", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "")  # restored at the end
    settings = selftest.tiny_settings(tmp_path, "llama")
    assert (Path(settings.model) / "model.safetensors").is_file()
    assert settings.dtype == "float32"
    assert os.environ["TRITON_CACHE_DIR"].startswith(str(tmp_path))


@pytest.mark.engine
def test_a_correct_engine_passes(tiny_engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens and log-probabilities repeat, the archive is sound, and its rows agree with transformers."""
    started: list[bool] = []

    async def start(settings: Any) -> Any:
        started.append(settings.capture)
        return tiny_engine.engine  # also used as the engine without capture: a start takes 25 s

    async def stay_open() -> None:
        pass

    monkeypatch.setattr(tiny_engine.engine, "close", stay_open)
    monkeypatch.setattr(selftest, "tiny_settings", lambda *_: tiny_engine.engine.settings)
    checks, comparison = tiny_engine.loop.run(selftest.run_selftest(tmp_path, start=start))
    assert started == [False, True]
    assert [check.findings for check in checks] == [[]] * len(checks)
    assert [check.name for check in checks][:2] == ["tokens", "logprobs"]
    assert comparison.rows > 400
    assert (comparison.unexplained, comparison.differing <= 1) == (0, True)
