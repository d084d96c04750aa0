"""The capturing worker of vLLM's CUDA platform."""

from __future__ import annotations

from vllm.v1.worker.gpu_worker import Worker

from sparcom_extractor.capture.transfer.streams import CudaStreams
from sparcom_extractor.worker.device import DeviceCaptureMixin


class CaptureGPUWorker(DeviceCaptureMixin, Worker):  # type: ignore[misc]
    """vLLM's GPU worker, with capture."""

    def _streams(self) -> CudaStreams:
        return CudaStreams(self.device)
