"""What a vLLM worker does more when it captures; the platform's own worker does everything else.

    load_model      then find the gated FFNs and the experts and put capture into each, before profiling and compilation
    execute_model   then send the rows of the step on their way to their session
    sparcom_…       called through `collective_rpc`, by name, with plain types: no pickle on the wire

Nothing is patched: vLLM takes the class by name for one engine, and other engines on the machine stay as they are.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sparcom_data.errors import SparcomError, UnsupportedModelError
from sparcom_extractor.capture.discovery.describe import describe_found, refuse_model, widths_here
from sparcom_extractor.capture.discovery.findings import Findings, find_captured
from sparcom_extractor.capture.ops.buffer import check_writes
from sparcom_extractor.capture.ops.buffers import StepBuffers
from sparcom_extractor.capture.ops.install import install_all
from sparcom_extractor.capture.rows import batch_rows, refuse_engine
from sparcom_extractor.capture.step import StepCapture
from sparcom_extractor.capture.transfer.outbox import HostOutbox, Outbox
from sparcom_extractor.launch.bootstrap import EngineNote
from sparcom_extractor.protocol import FinishedRequest, WorkerDescription, WorkerStatistics, from_wire, to_wire
from sparcom_extractor.writer.session import CaptureSession
from sparcom_extractor.writer.targets import ArrayPart, RankPosition, archive_parts

_log = logging.getLogger(__name__)

MOST_OF_MEMORY = 0.5  # that sums of running requests may take


class CaptureMixin:
    """Put before a platform's worker class in the bases."""

    vllm_config: Any
    model_runner: Any
    device: Any
    use_v2_model_runner: bool

    _refusal: str | None = None
    _capture: StepCapture | None = None
    _found: Findings
    _buffers: StepBuffers
    _product: str
    _steps = 0
    _overhead_seconds = 0.0

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the model, then install capture. A model that cannot be captured is kept and refused by describe:
        an exception here would reach the user as "engine core initialization failed"."""
        from sparcom_extractor.worker.loading import checked_loading  # imports much of vLLM

        with checked_loading(self.vllm_config):
            super().load_model(*args, **kwargs)  # type: ignore[misc]
        try:
            self._install_capture()
        except UnsupportedModelError as error:
            self._refusal = str(error)

    def _install_capture(self) -> None:
        config, model = self.vllm_config, self.model_runner.get_model()
        if refusal := refuse_engine(config) or getattr(model, "sparcom_refusal", None):  # see CheckedLoader
            raise UnsupportedModelError(refusal)
        own = range(*config.model_config.get_layers_start_end_indices(config.parallel_config))
        self._found = find_captured(model, own)
        refuse_model(config, self._found)
        buffers = StepBuffers(most_rows(config), widths_here(self._found), self.device)
        self._product = install_all(model, self._found, buffers, config.model_config.dtype)
        if isinstance(config.additional_config, EngineNote):  # part of the key of vLLM's compilation cache
            object.__setattr__(config.additional_config, "product", self._product)  # in place: inner models hold it too
        self._buffers = buffers
        self._capture = StepCapture(buffers, self._make_outbox(buffers))

    def _make_outbox(self, buffers: StepBuffers) -> Outbox:
        """The way from the buffers to the sessions."""
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
        self._overhead_seconds += time.perf_counter() - model_ended + model_began - began
        return output

    def shutdown(self) -> None:
        """Let what was sent arrive, then shut down as the platform's worker does."""
        if self._capture is not None:
            self._capture.shutdown()
        super().shutdown()  # type: ignore[misc]

    def sparcom_describe(self) -> Any:
        """What can be captured here: `refusal`, or the layers, their widths and their activation; how it is done, see
        `install_all`; the mode that the worker has settled on; and what capture holds of the device's and the host's
        memory."""
        if refusal := self._refusal or self._try_step():
            return to_wire(WorkerDescription(refusal=refusal))
        mode = {
            "model_runner": "V2" if self.use_v2_model_runner else "V1",
            "cudagraph_mode": str(getattr(self.vllm_config.compilation_config.cudagraph_mode, "name", "NONE")),
        }
        found = describe_found(self._found)
        return to_wire(replace(found, fusion=self._product, mode=mode, memory=self._memory()))

    def _try_step(self) -> str | None:
        """Run one token that is nobody's, as vLLM does between steps, and check what the layers wrote.

        Returns the reason why this model cannot be captured, or None: layers that run several times per step, or in a
        shape that capture does not know, are found here and not by the first request.
        """
        self._buffers.clear()
        try:
            self.execute_dummy_batch()  # type: ignore[attr-defined]
        except Exception as error:  # noqa: BLE001  every step is checked all the same
            _log.warning("the trial step did not run: %s: %s", type(error).__name__, error)
            return None
        names = [str(name) for name in self._buffers.widths.columns()]
        try:
            check_writes(self._buffers.writes.cpu().numpy(), 1, names, padded=True)
        except RuntimeError as error:
            return f"a trial step of one token failed: {self._buffers.problem or error}. Use another model"
        return None

    def _memory(self) -> dict[str, int]:
        return {"step_buffer_bytes": self._buffers.nbytes}

    def sparcom_open(self, session: str, path: str, run: str | None = None) -> str | None:
        """Begin to write the archive at `path`, which must have this run id; returns an error or None."""
        assert self._capture is not None  # noqa: S101  (engines that refuse are closed before this)
        try:
            parts, instructions = archive_parts(Path(path), self._place(), run)
        except (OSError, ValueError, KeyError, SparcomError) as error:
            return f"the archive {path} cannot be opened for writing: {error}"
        counts = any(part.target.dtype == "uint32" for part in parts)
        if counts and self._capture.counters is None:
            try:
                self._make_counters()
            except torch.OutOfMemoryError as error:
                return (
                    f"counting needs a counter for each neuron and running request on the device: {error}. Serve the "
                    "model with a lower gpu_memory_utilization or max_num_seqs, or choose granularity 'token'"
                )
        requests = int(self.vllm_config.scheduler_config.max_num_seqs)
        if counts and self._capture.counters is None and (refusal := too_much_to_count(parts, requests)):
            return refusal
        requests = 0 if counts else requests
        self._capture.open(session, CaptureSession(parts, instructions, requests=requests))
        return None

    def _place(self) -> RankPosition:
        """Which process of the engine this is."""
        parallel = self.vllm_config.parallel_config
        rank = int(parallel.rank) % int(parallel.tensor_parallel_size)
        if parallel.pipeline_parallel_size == 1:
            return RankPosition(rank)
        dense, moe = ([item.layer_id for item in items] for items in (self._found.dense, self._found.moe))
        return RankPosition(rank, dense, moe)

    def sparcom_poll(self, session: str, finished: list[dict[str, int]], last: bool) -> Any:
        """Settle instructions [index, row, capacity, length], say whether that is all, and hear what became durable."""
        assert self._capture is not None  # noqa: S101
        if finished:
            self._capture.finish_requests(session, [from_wire(FinishedRequest, item) for item in finished])
        if last:
            self._capture.end_input(session)
        return to_wire(self._capture.poll(session))

    def sparcom_close(self, session: str) -> None:
        """Forget the session; rows that still come for it are dropped."""
        assert self._capture is not None  # noqa: S101
        self._capture.close(session)

    def sparcom_statistics(self) -> Any:
        """Return `WorkerStatistics` on the wire."""
        return to_wire(self._statistics())

    def _statistics(self) -> WorkerStatistics:
        return WorkerStatistics(steps=self._steps, overhead_seconds=self._overhead_seconds)


def too_much_to_count(parts: Sequence[ArrayPart], requests: int) -> str | None:
    """Why so many requests cannot be counted at once on this machine, or None.

    Where counts are made on the host a sum is held for every running request: of a mixture of experts with 2 million
    neurons 8 MB.
    """
    needed = requests * sum(4 * math.prod(part.row) for part in parts)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed <= MOST_OF_MEMORY * memory:
        return None
    return (
        f"counting holds a number for each neuron and running request: {needed / 2**30:,.1f} GiB for {requests} "
        f"requests, and this machine has {memory / 2**30:,.1f}. Serve the model with a lower max_num_seqs, or choose "
        "granularity 'token'"
    )


def most_rows(config: Any) -> int:
    """The most rows that a step of an engine of this configuration (vLLM's) computes, padding of graphs included."""
    graphs = getattr(config.compilation_config, "max_cudagraph_capture_size", None) or 0
    return max(int(config.scheduler_config.max_num_batched_tokens), int(graphs))
