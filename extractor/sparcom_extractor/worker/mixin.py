"""What a vLLM worker does more when it captures; the platform's own worker does everything else.

    load_model      then find the gated FFNs and put a captured activation into each, before profiling and compilation
    execute_model   then send the rows of the step on their way to their session
    sparcom_…       called through `collective_rpc`, by name, with plain types: no pickle on the wire

Nothing is patched: vLLM takes the class by name for one engine, and other engines on the machine stay as they are.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import zarr

from sparcom_data.errors import SparcomError, UnsupportedModelError
from sparcom_extractor.capture.buffer import CaptureBuffer
from sparcom_extractor.capture.discover import GatedFFN, find_gated_ffns
from sparcom_extractor.capture.install import install_capture
from sparcom_extractor.capture.outbox import HostOutbox, Outbox
from sparcom_extractor.capture.rows import batch_rows, refuse_engine
from sparcom_extractor.capture.step import StepCapture
from sparcom_extractor.child import EngineNote
from sparcom_extractor.writer.chunks import ChunkTarget
from sparcom_extractor.writer.session import CaptureSession, Settlement


class CaptureMixin:
    """Put before a platform's worker class in the bases."""

    vllm_config: Any
    model_runner: Any
    device: Any
    use_v2_model_runner: bool

    _refusal: str | None = None
    _capture: StepCapture | None = None
    _ffns: list[GatedFFN]
    _buffer: CaptureBuffer
    _product: str
    _steps = 0
    _own_seconds = 0.0

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the model, then install capture. A model that cannot be captured is kept and refused by describe:
        an exception here would reach the user as "engine core initialization failed"."""
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        try:
            self._install_capture()
        except UnsupportedModelError as error:
            self._refusal = str(error)

    def _install_capture(self) -> None:
        config = self.vllm_config
        if refusal := refuse_engine(config):
            raise UnsupportedModelError(refusal)
        layers = config.model_config.get_num_layers(config.parallel_config)
        self._ffns = find_gated_ffns(self.model_runner.get_model(), layers)
        buffer = CaptureBuffer(most_rows(config), len(self._ffns), self._ffns[0].neurons_here, self.device)
        self._product = install_capture(self.model_runner.get_model(), self._ffns, buffer, config.model_config.dtype)
        if isinstance(config.additional_config, EngineNote):  # part of the key of vLLM's compilation cache
            made = f"{self._product}-{buffer.number}"  # the graph holds the buffer's number
            object.__setattr__(config.additional_config, "product", made)  # in place: inner models hold it too
        self._buffer = buffer
        self._capture = StepCapture(buffer, self._make_outbox(buffer))

    def _make_outbox(self, buffer: CaptureBuffer) -> Outbox:
        """The way from the buffer to the sessions."""
        return HostOutbox()

    def _make_counters(self) -> None:
        """Prepare for sessions that count; on the host they count what comes to them."""

    def execute_model(self, scheduler_output: Any) -> Any:
        """One step; the rows of captured requests go to their sessions before the step's sampling."""
        if self._capture is None:
            return super().execute_model(scheduler_output)  # type: ignore[misc]
        began = time.perf_counter()
        self._capture.before_step(scheduler_output)
        model_began = time.perf_counter()
        output = super().execute_model(scheduler_output)  # type: ignore[misc]
        model_ended = time.perf_counter()
        if self._capture.active and scheduler_output.total_num_scheduled_tokens:
            self._capture.after_step(batch_rows(self.model_runner, scheduler_output, v2=self.use_v2_model_runner))
        self._steps += 1
        self._own_seconds += time.perf_counter() - model_ended + model_began - began
        return output

    def shutdown(self) -> None:
        """Let what was sent arrive, then shut down as the platform's worker does."""
        if self._capture is not None:
            self._capture.shutdown()
        super().shutdown()  # type: ignore[misc]

    def sparcom_describe(self) -> dict[str, Any]:
        """What can be captured here: `refusal`, or the layers, their width and their activation; who makes the
        activation's product, see `install_capture`; the mode that the worker has settled on; and what capture holds of
        the device's and the host's memory."""
        if self._refusal is not None:
            return {"refusal": self._refusal}
        return {
            "refusal": None,
            "layer_ids": [ffn.layer_id for ffn in self._ffns],
            "neurons": self._ffns[0].neurons,
            "activation": self._ffns[0].activation,
            "product": self._product,
            "mode": {
                "model_runner": "V2" if self.use_v2_model_runner else "V1",
                "cudagraph_mode": str(getattr(self.vllm_config.compilation_config.cudagraph_mode, "name", "NONE")),
            },
            "memory": self._memory(),
        }

    def _memory(self) -> dict[str, int]:
        return {"step_buffer_bytes": self._buffer.masks.nbytes}

    def sparcom_open(self, session: str, path: str) -> str | None:
        """Begin to write the archive at `path`; returns an error or None."""
        assert self._capture is not None  # noqa: S101  (engines that refuse are closed before this)
        try:
            target, instructions = chunk_target(Path(path))
        except (OSError, ValueError, KeyError, SparcomError) as error:
            return f"the archive {path} cannot be opened for writing: {error}"
        counts = target.dtype == "uint32"
        if counts and self._capture.counters is None:
            try:
                self._make_counters()
            except torch.OutOfMemoryError as error:
                return (
                    f"counting needs a counter for each neuron and running request on the device: {error}. Serve the "
                    "model with a lower gpu_memory_utilization or max_num_seqs, or choose granularity 'token'"
                )
        requests = 0 if counts else int(self.vllm_config.scheduler_config.max_num_seqs)
        self._capture.open(session, CaptureSession(target, instructions, requests=requests))
        return None

    def sparcom_poll(self, session: str, settlements: list[list[int]], finish: bool) -> dict[str, Any]:
        """Settle instructions [index, row, capacity, length], say whether that is all, and hear what became durable."""
        assert self._capture is not None  # noqa: S101
        if settlements:
            self._capture.settle(session, [Settlement(*item) for item in settlements])
        if finish:
            self._capture.finish(session)
        return self._capture.poll(session)

    def sparcom_close(self, session: str) -> None:
        """Forget the session; rows that still come for it are dropped."""
        assert self._capture is not None  # noqa: S101
        self._capture.close(session)

    def sparcom_statistics(self) -> dict[str, float]:
        """Since the start: steps, and the seconds that steps spent in capture's own code on the host."""
        return {"steps": self._steps, "own_seconds": self._own_seconds}


def most_rows(config: Any) -> int:
    """The most rows that a step of an engine of this configuration (vLLM's) computes, padding of graphs included."""
    graphs = getattr(config.compilation_config, "max_cudagraph_capture_size", None) or 0
    return max(int(config.scheduler_config.max_num_batched_tokens), int(graphs))


def chunk_target(path: Path) -> tuple[ChunkTarget, int]:
    """Which chunks of the archive at `path` are written, and for how many instructions."""
    group = zarr.open_group(path, mode="r", use_consolidated=False)
    counts = "neuron/count" in group
    array = group["neuron/count" if counts else "neuron/active"]
    assert isinstance(array, zarr.Array)  # noqa: S101  (written by create_archive)
    target = ChunkTarget(
        path / array.path,
        array.shape[0],
        tuple(array.chunks),
        separator=array.metadata.encode_chunk_key((0,) * array.ndim)[1],  # c.0.0.0
        dtype="uint32" if counts else "uint8",
        compressor="blosc" if counts else None,
    )
    instructions = group["instruction/state"]
    assert isinstance(instructions, zarr.Array)  # noqa: S101
    return target, instructions.shape[0]
