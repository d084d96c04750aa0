"""What a capturing worker does more on a device: rows leave it while the next step runs, counts are made on it."""

from __future__ import annotations

from sparcom_extractor.capture.ops.step_buffers import StepBuffers
from sparcom_extractor.capture.transfer.device import DeviceOutbox, Streams, letter_bytes
from sparcom_extractor.worker.mixin import CaptureMixin

RING_STEPS = 2  # one step leaves the device while the next is computed
SMALL_BYTES = 1 << 20  # what a step uploads, borders of regions
PINNED_SLACK = 256 << 20  # bytes for the writer to fall behind


class DeviceCaptureMixin(CaptureMixin):
    """Put before a platform's worker class in the bases."""

    _outbox: DeviceOutbox

    def _streams(self) -> Streams:
        """The device."""
        raise NotImplementedError

    def _make_outbox(self, buffers: StepBuffers) -> DeviceOutbox:
        """Ring and pinned memory, taken before vLLM measures what is left for its KV cache."""
        arrays, dense = list(buffers.arrays().values()), buffers.dense
        counts = 4 * dense.neurons * dense.masks.shape[1] + dense.masks[:1].nbytes if dense else 0  # of one request
        step = letter_bytes([*arrays, buffers.nonfinite], buffers.write_counters)
        ring = RING_STEPS * max(step, counts + SMALL_BYTES) + SMALL_BYTES
        self._outbox = DeviceOutbox(self._streams(), ring_bytes=ring, pinned_bytes=ring + PINNED_SLACK)
        # vLLM 0.24 sizes the KV cache by the weights it knows of; later ones measure the device, and only log this.
        self.model_runner.model_memory_usage += buffers.nbytes + self._outbox.device_bytes
        return self._outbox

    def _make_counters(self) -> None:
        """Counters for as many requests as run at once. Rows of experts are counted on the host: a request's counters
        would take as much room as the experts' gates themselves."""
        if self._buffers.dense is None or self._buffers.routes is not None:
            return
        from sparcom_extractor.capture.counters import DeviceCounters

        assert self._capture is not None  # noqa: S101
        requests = int(self.vllm_config.scheduler_config.max_num_seqs)
        self._capture.counters = DeviceCounters(self._buffers.dense, self._outbox, requests)

    def _memory(self) -> dict[str, int]:
        return super()._memory() | {
            "device_ring_bytes": self._outbox.device_bytes,
            "pinned_bytes": self._outbox.pinned_bytes,
        }

    def sparcom_statistics(self) -> dict[str, float]:
        """Also: the seconds that steps waited for the ring, and the bytes that left the device."""
        return super().sparcom_statistics() | {
            "waited_seconds": self._outbox.waited_seconds,
            "sent_bytes": self._outbox.sent_bytes,
        }
