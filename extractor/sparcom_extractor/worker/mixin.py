"""Add capture to a vLLM worker class.

    load_model      loads the model, finds the captured layers and installs capture, before profiling and compilation
    execute_model   runs the step and sends its rows to their sessions
    sparcom_…       RPC methods for `collective_rpc`, with plain types: no pickle on the wire

Nothing is patched. vLLM loads the class by name for one engine; other engines on the machine are unaffected.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sparcom_data.errors import SparcomError, UnsupportedModelError
from sparcom_extractor.capture.counters import DeviceCounters
from sparcom_extractor.capture.discovery.describe import describe_found, refuse_model, widths_here
from sparcom_extractor.capture.discovery.findings import Findings, find_captured
from sparcom_extractor.capture.ops.install import install_all
from sparcom_extractor.capture.ops.step_buffers import StepBuffers, check_write_counters
from sparcom_extractor.capture.step import StepCapture
from sparcom_extractor.capture.transfer.queue import HostTransferQueue, TransferQueue
from sparcom_extractor.launch.bootstrap import SubprocessBootstrap
from sparcom_extractor.protocol import (
    FinishedRequest,
    SessionError,
    WorkerDescription,
    WorkerStatistics,
    from_wire,
    storage_kind,
    to_wire,
)
from sparcom_extractor.vllm_surface.config import VllmConfigLike, max_rows_per_step, refuse_engine
from sparcom_extractor.vllm_surface.runner import ModelRunnerLike, SchedulerOutputLike, batch_rows
from sparcom_extractor.writer.session import CaptureSession
from sparcom_extractor.writer.settled import read_settled
from sparcom_extractor.writer.targets import ArrayPart, RankPosition, archive_parts

logger = logging.getLogger(__name__)

MAX_MEMORY_FRACTION = 0.5  # of the machine's memory, for the counts of running requests


@dataclass(frozen=True, slots=True)
class WorkerCapture:
    """Capture of a loaded model. found: its captured layers. fusion: source of the activation outputs."""

    found: Findings
    fusion: str
    steps: StepCapture


class CaptureMixin:
    """Mixin that adds capture; place it before the platform's worker class."""

    vllm_config: VllmConfigLike
    model_runner: ModelRunnerLike
    device: torch.device
    use_v2_model_runner: bool
    _capture: WorkerCapture | str = "no model is loaded"  # the string: why nothing can be captured
    _steps = 0
    _overhead_seconds = 0.0

    @property
    def capture(self) -> WorkerCapture:
        """Capture of the loaded model; UnsupportedModelError if it cannot be captured."""
        if isinstance(self._capture, str):
            raise UnsupportedModelError(self._capture)
        return self._capture

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the model, then install capture. `sparcom_describe` reports a model that cannot be captured:
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
        if isinstance(config.additional_config, SubprocessBootstrap):  # part of the key of vLLM's compilation cache
            config.additional_config.fusion = fusion  # in place: inner models hold it too
        return WorkerCapture(found, fusion, StepCapture(buffers, *self._make_transfer(buffers)))

    def _make_transfer(self, buffers: StepBuffers) -> tuple[TransferQueue, DeviceCounters | None]:
        """Return the queue from the buffers to the sessions, and counters if the device counts rows."""
        return HostTransferQueue(), None

    def execute_model(self, scheduler_output: SchedulerOutputLike) -> Any:
        """Run one step and send the rows of captured requests, before sampling."""
        if isinstance(self._capture, str):
            return super().execute_model(scheduler_output)  # type: ignore[misc]
        steps, began = self._capture.steps, time.perf_counter()
        steps.before_step(scheduler_output)
        model_began = time.perf_counter()
        output = super().execute_model(scheduler_output)  # type: ignore[misc]
        model_ended = time.perf_counter()
        if steps.active and scheduler_output.total_num_scheduled_tokens:
            steps.after_step(batch_rows(self.model_runner, scheduler_output, v2=self.use_v2_model_runner))
        self._steps += 1
        self._overhead_seconds += time.perf_counter() - model_ended + model_began - began
        return output

    def shutdown(self) -> None:
        """Deliver pending rows, then shut down the platform's worker."""
        if not isinstance(self._capture, str):
            self._capture.steps.shutdown()
        super().shutdown()  # type: ignore[misc]

    def sparcom_describe(self) -> Any:
        """Return a `WorkerDescription` in wire format: a refusal, or the captured layers."""
        refusal = self._capture if isinstance(self._capture, str) else self._try_step()
        if refusal is not None:
            return to_wire(WorkerDescription(refusal=refusal))
        graphs, steps = self.vllm_config.compilation_config.cudagraph_mode, self.capture.steps
        mode = {
            "model_runner": "V2" if self.use_v2_model_runner else "V1",
            "cudagraph_mode": str(getattr(graphs, "name", "NONE")),
        }
        memory = {"step_buffer_bytes": steps.buffers.nbytes} | steps.queue.memory()
        found = describe_found(self.capture.found)
        return to_wire(replace(found, fusion=self.capture.fusion, mode=mode, memory=memory))

    def _try_step(self) -> str | None:
        """Run vLLM's dummy batch of one token; return why it was not captured, or None.
        This finds layers that run several times per step, or with an unknown shape, before the first request."""
        buffers, names = self.capture.steps.buffers, self.capture.steps.layer_names
        buffers.clear()
        try:
            self.execute_dummy_batch()  # type: ignore[attr-defined]
        except Exception as error:  # noqa: BLE001  every later step is checked anyway
            logger.warning("the dummy batch did not run: %s: %s", type(error).__name__, error)
            return None
        try:
            check_write_counters(buffers.write_counters.cpu().numpy(), 1, names, padded=True)
        except RuntimeError as error:
            return f"a dummy batch of one token was not captured: {buffers.problem or error}. Use another model"
        return None

    def sparcom_open(self, session: str, path: str, run: str | None = None) -> Any:
        """Open the archive at `path`, which must have this run id, for writing.
        Return None or a `SessionError` in wire format."""
        try:
            parts, instructions = archive_parts(Path(path), self._rank_position(), run)
            settled = read_settled(parts)
        except (OSError, ValueError, KeyError, SparcomError) as error:
            reason = f"the archive {path} cannot be opened for writing: {error}"
            return to_wire(SessionError(storage_kind(error), reason))
        requests = self.vllm_config.scheduler_config.max_num_seqs
        if any(part.holds_counts for part in parts):
            if refusal := self._refuse_counting(parts, requests):
                return to_wire(SessionError("storage", refusal))
            requests = 0  # running requests hold no chunks: each writes one row at its end
        self.capture.steps.open(session, CaptureSession(parts, instructions, requests=requests, settled=settled))
        return None

    def _refuse_counting(self, parts: Sequence[ArrayPart], requests: int) -> str | None:
        counters = self.capture.steps.counters
        if counters is None:
            return refuse_host_counts(parts, requests)
        try:
            counters.allocate()
        except torch.OutOfMemoryError as error:
            return (
                f"counting needs one counter per neuron and running request on the device: {error}. Serve the model "
                "with a lower gpu_memory_utilization or max_num_seqs, or choose granularity 'token'"
            )
        return None

    def _rank_position(self) -> RankPosition:
        parallel, found = self.vllm_config.parallel_config, self.capture.found
        rank = parallel.rank % parallel.tensor_parallel_size
        if parallel.pipeline_parallel_size == 1:
            return RankPosition(rank)
        return RankPosition(rank, *([item.layer_id for item in layers] for layers in (found.dense, found.moe)))

    def sparcom_poll(self, session: str, finished: list[dict[str, int]], last: bool) -> Any:
        """Accept `FinishedRequest`s and return a `PollReply`, both in wire format. last: no more requests follow."""
        steps = self.capture.steps
        if finished:
            steps.finish_requests(session, [from_wire(FinishedRequest, item) for item in finished])
        if last:
            steps.end_input(session)
        return to_wire(steps.poll(session))

    def sparcom_close(self, session: str) -> None:
        """Close the session. Rows that still arrive for it are dropped."""
        self.capture.steps.close(session)

    def sparcom_statistics(self) -> Any:
        """Return `WorkerStatistics` in wire format."""
        queue = self.capture.steps.queue
        totals = (self._steps, self._overhead_seconds, queue.backpressure_seconds, queue.sent_bytes)
        return to_wire(WorkerStatistics(*totals))


def refuse_host_counts(parts: Sequence[ArrayPart], requests: int) -> str | None:
    """Return why host memory cannot hold the counts of `requests` requests, or None.
    Two million neurons take 8 MB per request."""
    needed = requests * sum(4 * math.prod(part.row) for part in parts)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed <= MAX_MEMORY_FRACTION * memory:
        return None
    return (
        f"counting holds one number per neuron and running request: {needed / 2**30:,.1f} GiB for {requests} "
        f"requests; this machine has {memory / 2**30:,.1f}. Serve the model with a lower max_num_seqs, or choose "
        "granularity 'token'"
    )
