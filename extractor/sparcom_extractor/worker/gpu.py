"""The capturing worker of vLLM's CUDA platform: rows leave the device while the next step runs."""

from __future__ import annotations

from vllm.v1.worker.gpu_worker import Worker

from sparcom_extractor.capture.counters import DeviceCounters
from sparcom_extractor.capture.ops.step_buffers import MaskBuffer, StepBuffers
from sparcom_extractor.capture.transfer.device import CudaStreams, DeviceTransferQueue, Streams, transfer_bytes
from sparcom_extractor.worker.mixin import CaptureMixin

RING_STEPS = 2  # one step leaves the device while the next is computed
SMALL_BYTES = 1 << 20  # uploads of a step, borders of regions
PINNED_SLACK = 256 << 20  # bytes for the writer to fall behind


class DeviceCaptureMixin(CaptureMixin):
    """Put before a platform's worker class in the bases. Counts dense neurons on the device."""

    def _streams(self) -> Streams:
        return CudaStreams(self.device)

    def _make_counters(self, buffer: MaskBuffer, queue: DeviceTransferQueue) -> DeviceCounters:
        return DeviceCounters(buffer, queue, self.vllm_config.scheduler_config.max_num_seqs)

    def _make_transfer(self, buffers: StepBuffers) -> tuple[DeviceTransferQueue, DeviceCounters | None]:
        """Allocate ring and pinned memory, before vLLM measures what is left for its KV cache.
        Experts' rows are counted on the host: counters of one request would be as large as the experts' gates."""
        dense, arrays = buffers.dense, [*buffers.arrays().values(), buffers.nonfinite]
        counts = 4 * dense.neurons * dense.masks.shape[1] + dense.masks[:1].nbytes if dense else 0  # of one request
        step = transfer_bytes(arrays, buffers.write_counters)
        ring = RING_STEPS * max(step, counts + SMALL_BYTES) + SMALL_BYTES
        queue = DeviceTransferQueue(self._streams(), ring_bytes=ring, pinned_bytes=ring + PINNED_SLACK)
        # vLLM 0.24 sizes the KV cache by the weights it knows of; later versions measure the device and only log this.
        self.model_runner.model_memory_usage += buffers.nbytes + queue.memory()["device_ring_bytes"]
        return queue, self._make_counters(dense, queue) if dense and not buffers.routes else None


class CaptureGPUWorker(DeviceCaptureMixin, Worker):  # type: ignore[misc]
    """vLLM's GPU worker, with capture."""
