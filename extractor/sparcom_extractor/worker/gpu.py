"""The capturing worker of vLLM's CUDA platform."""

from __future__ import annotations

from vllm.v1.worker.gpu_worker import Worker

from sparcom_extractor.worker.mixin import CaptureMixin


class CaptureGPUWorker(CaptureMixin, Worker):  # type: ignore[misc]
    """vLLM's GPU worker, with capture. The rows of a step are copied to the host when the step has run."""
