"""What a vLLM worker does more when it captures; the platform's own worker does everything else.

    load_model      then find the gated FFNs and put a captured activation into each, before profiling and compilation
    execute_model   then hand the rows of the step to their session
    sparcom_…       called through `collective_rpc`, by name, with plain types: no pickle on the wire

Nothing is patched: vLLM takes the class by name for one engine, and other engines on the machine stay as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zarr

from sparcom_data.errors import SparcomError, UnsupportedModelError
from sparcom_extractor.capture.discover import GatedFFN, find_gated_ffns
from sparcom_extractor.capture.op import CaptureBuffer, CapturedActivation
from sparcom_extractor.capture.rows import batch_rows
from sparcom_extractor.capture.step import StepCapture
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
        if config.parallel_config.world_size > 1:
            raise UnsupportedModelError(
                f"this release captures on one process a model; tensor × pipeline parallel size is "
                f"{config.parallel_config.world_size}. Use tensor_parallel_size=1 and pipeline_parallel_size=1"
            )
        if getattr(config.parallel_config, "use_ubatching", False) or config.speculative_config is not None:
            raise UnsupportedModelError(
                "capture needs one forward pass a step and no tokens that may be taken back; this engine runs "
                "micro-batches or speculative decoding. Start it without"
            )
        model = self.model_runner.get_model()
        layers = config.model_config.get_num_layers(config.parallel_config)
        self._ffns = find_gated_ffns(model, layers)
        buffer = CaptureBuffer(
            config.scheduler_config.max_num_batched_tokens, len(self._ffns), self._ffns[0].neurons_here, self.device
        )
        for index, ffn in enumerate(self._ffns):
            captured = CapturedActivation(getattr(ffn.parent, ffn.attribute), buffer.register(index))
            setattr(ffn.parent, ffn.attribute, captured)
        self._capture = StepCapture(buffer)

    def execute_model(self, scheduler_output: Any) -> Any:
        """One step; the rows of captured requests go to their sessions before the step's sampling."""
        if self._capture is None:
            return super().execute_model(scheduler_output)  # type: ignore[misc]
        self._capture.before_step(scheduler_output)
        output = super().execute_model(scheduler_output)  # type: ignore[misc]
        if self._capture.active and scheduler_output.total_num_scheduled_tokens:
            self._capture.after_step(batch_rows(self.model_runner, scheduler_output, v2=self.use_v2_model_runner))
        return output

    def sparcom_describe(self) -> dict[str, Any]:
        """What can be captured here: `refusal`, or the layers, their width and their activation."""
        if self._refusal is not None:
            return {"refusal": self._refusal}
        return {
            "refusal": None,
            "layer_ids": [ffn.layer_id for ffn in self._ffns],
            "neurons": self._ffns[0].neurons,
            "activation": self._ffns[0].activation,
        }

    def sparcom_open(self, session: str, path: str) -> str | None:
        """Begin to write the archive at `path`; returns an error or None."""
        assert self._capture is not None  # noqa: S101  (engines that refuse are closed before this)
        try:
            array = zarr.open_array(path, path="neuron/active", mode="r")
            instructions = zarr.open_array(path, path="instruction/state", mode="r").shape[0]
        except (OSError, ValueError, SparcomError) as error:
            return f"the archive {path} cannot be opened for writing: {error}"
        target = ChunkTarget(
            Path(path) / "neuron" / "active",
            array.shape[0],
            tuple(array.chunks),
            separator=array.metadata.encode_chunk_key((0,) * array.ndim)[1],  # c.0.0.0
        )
        self._capture.sessions[session] = CaptureSession(target, instructions)
        return None

    def sparcom_poll(self, session: str, settlements: list[list[int]], finish: bool) -> dict[str, Any]:
        """Settle instructions [index, row, capacity, length], say whether that is all, and hear what became durable."""
        assert self._capture is not None  # noqa: S101
        capture = self._capture.sessions[session]
        if settlements:
            capture.settle([Settlement(*item) for item in settlements])
        if finish:
            capture.finish()
        return capture.poll()

    def sparcom_close(self, session: str) -> None:
        """Forget the session; rows that still come for it are dropped."""
        assert self._capture is not None  # noqa: S101
        capture = self._capture.sessions.pop(session, None)
        if capture is not None:
            capture.close()
