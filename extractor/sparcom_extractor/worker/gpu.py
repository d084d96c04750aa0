"""Capturing worker for vLLM's CUDA platform. It copies rows to the host while the next step runs."""

from __future__ import annotations

from vllm.v1.worker.gpu_worker import Worker

from sparcom_extractor.capture.counters import DeviceCounters
from sparcom_extractor.capture.ops.step_buffers import MaskBuffer, StepBuffers
from sparcom_extractor.capture.transfer.device import CudaStreams, DeviceTransferQueue, Streams, transfer_bytes
from sparcom_extractor.worker.mixin import CaptureMixin

RING_STEPS = 2  # one step is copied to the host while the next is computed
SMALL_BYTES = 1 << 20  # uploads of a step, alignment of regions
PINNED_SLACK = 256 << 20  # bytes by which the writer may fall behind


class DeviceCaptureMixin(CaptureMixin):
    """Mixin for device workers; place it before the platform's worker class. Counts dense neurons on the device."""

    def _streams(self) -> Streams:
        return CudaStreams(self.device)

    def _make_counters(self, buffer: MaskBuffer, queue: DeviceTransferQueue) -> DeviceCounters:
        return DeviceCounters(buffer, queue, self.vllm_config.scheduler_config.max_num_seqs)

    def _make_transfer(self, buffers: StepBuffers) -> tuple[DeviceTransferQueue, DeviceCounters | None]:
        """Allocate ring and pinned memory, before vLLM measures the memory left for its KV cache.
        MoE rows are counted on the host: a request would need one device counter per neuron of every expert."""
        dense, arrays = buffers.dense, [*buffers.arrays().values(), buffers.nonfinite]
        counts = 4 * dense.neurons * dense.masks.shape[1] + dense.masks[:1].nbytes if dense else 0  # per request
        step = transfer_bytes(arrays, buffers.write_counters)
        ring = RING_STEPS * max(step, counts + SMALL_BYTES) + SMALL_BYTES
        queue = DeviceTransferQueue(self._streams(), ring_bytes=ring, pinned_bytes=ring + PINNED_SLACK)
        # vLLM 0.24 sizes the KV cache from this value; later versions measure the device and only log it.
        self.model_runner.model_memory_usage += buffers.nbytes + queue.memory()["device_ring_bytes"]
        return queue, self._make_counters(dense, queue) if dense and not buffers.routes else None


class CaptureGPUWorker(DeviceCaptureMixin, Worker):  # type: ignore[misc]
    """vLLM's GPU worker, with capture."""
