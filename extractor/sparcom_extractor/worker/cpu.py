"""Capturing worker for vLLM's CPU platform."""

from __future__ import annotations

from vllm.v1.worker.cpu_worker import CPUWorker

from sparcom_extractor.worker.mixin import CaptureMixin


class CaptureCPUWorker(CaptureMixin, CPUWorker):  # type: ignore[misc]
    """vLLM's CPU worker, with capture."""
