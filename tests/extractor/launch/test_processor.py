"""Settings that depend on the processor, with and without AMX."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparcom_data.errors import UnsupportedModelError
from sparcom_extractor.launch.processor import CPU_ATTENTION, check_processor, expert_problem
from sparcom_extractor.launch.start import engine_arguments
from sparcom_extractor.settings import EngineSettings

MOE = {"num_experts": 60, "hidden_size": 128, "moe_intermediate_size": 96, "intermediate_size": 5632}

CHOOSE = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.utils import check_cpu_sgl_kernel
from vllm.platforms import current_platform
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa
from vllm.v1.attention.selector import AttentionSelectorConfig

for case in sys.argv[2:]:
    amx, backend, dtype = case.split(",")
    torch.cpu._is_amx_tile_supported = lambda: amx == "amx"
    config = EngineArgs(
        model=sys.argv[1], dtype=dtype, enforce_eager=True, max_model_len=128, attention_backend=backend or None
    ).create_engine_config()
    asked = AttentionSelectorConfig(
        head_size=576, dtype=config.model_config.dtype, kv_cache_dtype="auto", block_size=None,
        use_mla=config.model_config.use_mla,
    )
    chosen = current_platform.get_attn_backend_cls(config.attention_config.backend, asked)
    print("chosen", case, config.cache_config.block_size, chosen.rsplit(".", 1)[1])

for amx in (False, True):
    torch.cpu._is_amx_tile_supported = lambda: amx
    for dtype in (torch.float32, torch.bfloat16):
        print("path", amx, dtype, check_cpu_sgl_kernel(32, 576, dtype), _get_attn_isa(dtype, 128, 64))
"""
CASES = {
    "amx,,float32": "AMXMLABackend",
    f"amx,{CPU_ATTENTION},float32": "CPUMLABackend",
    f"none,{CPU_ATTENTION},float32": "CPUMLABackend",
    f"amx,{CPU_ATTENTION},bfloat16": "CPUMLABackend",
}


@pytest.fixture(scope="module")
def vllms_choices(tiny_model: Callable[[str], Path]) -> list[list[str]]:
    """Return what vLLM chooses with and without AMX, one list of words per line."""
    command = [sys.executable, "-c", CHOOSE, tiny_model("deepseek-v2"), *CASES]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=120)
    return [line.split() for line in ran.stdout.splitlines()]


def test_latent_attention_takes_the_same_path_on_every_processor(vllms_choices: list[list[str]]) -> None:
    """By default vLLM uses AMX's path, which rejects float32. Our setting makes AMD and Intel run the same."""
    chosen = [line[1:] for line in vllms_choices if line[:1] == ["chosen"]]
    assert {case: backend for case, _, backend in chosen} == CASES
    assert {size for _, size, backend in chosen if backend == "CPUMLABackend"} == {"16"}


def test_float32_takes_the_same_path_on_every_processor(vllms_choices: list[list[str]]) -> None:
    """With AMX, vLLM changes linear layers and attention in bfloat16 only."""
    assert [line[1:] for line in vllms_choices if line[:1] == ["path"]] == [
        ["False", "torch.float32", "False", "vec"],
        ["False", "torch.bfloat16", "False", "vec"],
        ["True", "torch.float32", "False", "vec"],
        ["True", "torch.bfloat16", "True", "amx"],
    ]


def test_the_setting_is_for_cpus_only() -> None:
    """On a GPU, vLLM chooses the attention backend."""
    assert "attention_backend" not in engine_arguments(EngineSettings(model="m"), "cuda")


@pytest.mark.parametrize(
    ("changes", "dtype", "amx", "refused"),
    [
        ({}, "bfloat16", True, True),
        ({}, "bfloat16", False, False),
        ({}, "float32", True, False),
        ({"dtype": "bfloat16"}, "auto", True, True),
        ({"torch_dtype": "float16"}, "auto", True, False),
        ({"moe_intermediate_size": 112}, "bfloat16", True, False),  # not divisible by 32: portable code runs them
        ({"hidden_size": 144}, "bfloat16", True, False),
        ({"num_experts": 0}, "bfloat16", True, False),
        ({"text_config": MOE}, "bfloat16", True, True),
    ],
)
def test_experts_that_amx_would_run_are_refused(changes: dict[str, Any], dtype: str, amx: bool, refused: bool) -> None:
    """AMX runs experts only in bfloat16 and in divisible widths. In float32, and elsewhere, experts are captured."""
    problem = expert_problem({**MOE, **changes}, dtype, amx=amx)
    assert (problem is not None) == refused
    assert problem is None or problem.endswith("Use dtype float32")


def test_ranks_split_the_width_of_an_expert() -> None:
    """96 neurons on two ranks are 48 each, which is not divisible by 32."""
    assert expert_problem(MOE, "bfloat16", amx=True, ranks=2) is None


def test_the_refusal_comes_before_vllm_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The refusal follows the processor's flags as torch reads them, and applies only with capture."""
    import json

    (tmp_path / "config.json").write_text(json.dumps(MOE))
    settings = {"model": str(tmp_path), "dtype": "bfloat16", "name": "m"}
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: True)
    with pytest.raises(UnsupportedModelError, match="model 'm' is refused: experts in bfloat16 run through AMX"):
        check_processor(EngineSettings(**settings))  # type: ignore[arg-type]
    check_processor(EngineSettings(**settings, capture=False))  # type: ignore[arg-type]
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    check_processor(EngineSettings(**settings))  # type: ignore[arg-type]
