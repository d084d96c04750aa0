"""The GPU worker's transfers on the CPU, for tests, with delayed streams and the CPU reference of the count kernel."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker

from sparcom_extractor.capture.counters import DeviceCounters
from sparcom_extractor.capture.ops.count_kernel import REFERENCE
from sparcom_extractor.capture.ops.step_buffers import MaskBuffer
from sparcom_extractor.capture.transfer.device import DeviceTransferQueue
from sparcom_extractor.worker.gpu import DeviceCaptureMixin
from sparcom_verification.testing.fake_device import FakeDevice


class LateWorker(CPUWorker):  # type: ignore[misc]
    """vLLM's CPU worker with a delayed device."""

    _late: FakeDevice

    def execute_model(self, scheduler_output: Any) -> Any:
        """Run one step after all enqueued device work, as on a real device."""
        self._late.finish_step()
        return super().execute_model(scheduler_output)


class RehearsalWorker(DeviceCaptureMixin, LateWorker):
    """vLLM's CPU worker, with a delayed device between model and writer."""

    def _streams(self) -> FakeDevice:
        self.model_runner.model_memory_usage = 0  # the CPU's model runner does not set it
        self._late = FakeDevice()
        return self._late

    def _make_counters(self, buffer: MaskBuffer, queue: DeviceTransferQueue) -> DeviceCounters:
        requests = self.vllm_config.scheduler_config.max_num_seqs
        return DeviceCounters(buffer, queue, requests, kernels=REFERENCE)
