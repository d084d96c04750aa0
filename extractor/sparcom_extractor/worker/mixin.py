"""Adds capture to a vLLM worker class.

    load_model      then find the captured layers and install capture, before profiling and compilation
    execute_model   then send the rows of the step on their way to their sessions
    sparcom_…       called by name through `collective_rpc`, with plain types: no pickle on the wire

Nothing is patched: vLLM takes the class by name for one engine; other engines on the machine stay as they are.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sparcom_data.errors import UnsupportedModelError
from sparcom_extractor.capture.discovery.describe import refuse_model, widths_here
from sparcom_extractor.capture.discovery.findings import find_captured
from sparcom_extractor.capture.ops.install import install_all
from sparcom_extractor.capture.ops.step_buffers import StepBuffers
from sparcom_extractor.capture.transfer.queue import HostTransferQueue, TransferQueue
from sparcom_extractor.launch.bootstrap import EngineNote
from sparcom_extractor.protocol import FinishedRequest, WorkerDescription, from_wire, to_wire
from sparcom_extractor.vllm_surface.config import VllmConfig, max_rows_per_step, refuse_engine
from sparcom_extractor.vllm_surface.runner import ModelRunner, SchedulerOutput, batch_rows
from sparcom_extractor.worker.capture import WorkerCapture

if TYPE_CHECKING:
    from sparcom_extractor.capture.counters import DeviceCounters  # its kernel needs Triton

logger = logging.getLogger(__name__)


class CaptureMixin:
    """Put before a platform's worker class in the bases."""

    vllm_config: VllmConfig
    model_runner: ModelRunner
    device: torch.device
    use_v2_model_runner: bool
    _capture: WorkerCapture | str = "no model is loaded"  # the string: why nothing can be captured

    @property
    def capture(self) -> WorkerCapture:
        """Capture of the loaded model.

        Raises:
            UnsupportedModelError: it cannot be captured.
        """
        if isinstance(self._capture, str):
            raise UnsupportedModelError(self._capture)
        return self._capture

    @property
    def open_sessions(self) -> tuple[str, ...]:
        """Names of the sessions that are open."""
        return self.capture.step_capture.open_sessions

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the model, then install capture. `sparcom_describe` refuses a model that cannot be captured:
        an exception here would reach the user as "engine core initialization failed"."""
        from sparcom_extractor.worker.loading import checked_loading  # imports much of vLLM

        with checked_loading(self.vllm_config):
            super().load_model(*args, **kwargs)  # type: ignore[misc]
        try:
            self._capture = self._install_capture()
        except UnsupportedModelError as error:
            self._capture = str(error)

    def _install_capture(self) -> WorkerCapture:
        config, model = self.vllm_config, self.model_runner.get_model()
        if refusal := refuse_engine(config) or getattr(model, "sparcom_refusal", None):  # see CheckedLoader
            raise UnsupportedModelError(refusal)
        found = find_captured(model, range(*config.model_config.get_layers_start_end_indices(config.parallel_config)))
        refuse_model(config, found)
        buffers = StepBuffers(max_rows_per_step(config), widths_here(found), self.device)
        fusion = install_all(model, found, buffers, config.model_config.dtype)
        if isinstance(config.additional_config, EngineNote):  # part of the key of vLLM's compilation cache
            object.__setattr__(config.additional_config, "product", fusion)  # in place: inner models hold it too
        return WorkerCapture(config, found, buffers, fusion, *self._make_transfer(buffers))

    def _make_transfer(self, buffers: StepBuffers) -> tuple[TransferQueue, DeviceCounters | None]:
        """Return the way from the buffers to the sessions, and counters if rows are counted on the way."""
        return HostTransferQueue(), None

    def execute_model(self, scheduler_output: SchedulerOutput) -> Any:
        """Run one step and send the rows of captured requests, before the step's sampling."""
        if isinstance(self._capture, str):
            return super().execute_model(scheduler_output)  # type: ignore[misc]
        began = time.perf_counter()
        capture, rows = self._capture, self._capture.step_capture
        rows.before_step(scheduler_output)
        model_began = time.perf_counter()
        output = super().execute_model(scheduler_output)  # type: ignore[misc]
        model_ended = time.perf_counter()
        if rows.active and scheduler_output.total_num_scheduled_tokens:
            rows.after_step(batch_rows(self.model_runner, scheduler_output, v2=self.use_v2_model_runner))
        capture.steps += 1
        capture.overhead_seconds += time.perf_counter() - model_ended + model_began - began
        return output

    def shutdown(self) -> None:
        """Deliver what was sent, then shut down as the platform's worker does."""
        if not isinstance(self._capture, str):
            self._capture.step_capture.shutdown()
        super().shutdown()  # type: ignore[misc]

    def sparcom_describe(self) -> Any:
        """Return a `WorkerDescription` on the wire: a refusal, or what is captured and how."""
        refusal = self._capture if isinstance(self._capture, str) else self._try_step()
        if refusal is not None:
            return to_wire(WorkerDescription(refusal=refusal))
        graphs = self.vllm_config.compilation_config.cudagraph_mode
        mode = {
            "model_runner": "V2" if self.use_v2_model_runner else "V1",
            "cudagraph_mode": str(getattr(graphs, "name", "NONE")),
        }
        return to_wire(self.capture.describe(mode))

    def _try_step(self) -> str | None:
        """Run one token that belongs to no request, as vLLM does between steps, and check the write counters.

        Returns:
            Why this model cannot be captured, or None. Layers that run several times per step, or in an unknown shape,
            are found here and not by the first request.
        """
        self.capture.buffers.clear()
        try:
            self.execute_dummy_batch()  # type: ignore[attr-defined]
        except Exception as error:  # noqa: BLE001  every step is checked all the same
            logger.warning("the trial step did not run: %s: %s", type(error).__name__, error)
            return None
        return self.capture.refuse_trial_step()

    def sparcom_open(self, session: str, path: str, run: str | None = None) -> str | None:
        """Begin to write the archive at `path`, which must have this run id; return an error or None."""
        return self.capture.open_session(session, Path(path), run)

    def sparcom_poll(self, session: str, finished: list[dict[str, int]], last: bool) -> Any:
        """Report finished instructions, and whether they are the last; return a `PollReply` on the wire.

        Args:
            finished: `FinishedRequest`s on the wire.
        """
        rows = self.capture.step_capture
        if finished:
            rows.finish_requests(session, [from_wire(FinishedRequest, item) for item in finished])
        if last:
            rows.end_input(session)
        return to_wire(rows.poll(session))

    def sparcom_close(self, session: str) -> None:
        """Forget the session; rows that still come for it are dropped."""
        self.capture.step_capture.close(session)

    def sparcom_statistics(self) -> Any:
        """Return `WorkerStatistics` on the wire."""
        return to_wire(self.capture.statistics())
