"""Capture in one worker process: the model's step buffers, and the sessions that write their rows."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sparcom_data.errors import SparcomError
from sparcom_extractor.capture.discovery.describe import describe_found
from sparcom_extractor.capture.discovery.findings import Findings
from sparcom_extractor.capture.ops.step_buffers import StepBuffers, check_write_counters
from sparcom_extractor.capture.step import StepCapture
from sparcom_extractor.capture.transfer.queue import TransferQueue
from sparcom_extractor.protocol import WorkerDescription, WorkerStatistics
from sparcom_extractor.vllm_surface.config import VllmConfig
from sparcom_extractor.writer.session import CaptureSession
from sparcom_extractor.writer.targets import ArrayPart, Place, archive_parts

if TYPE_CHECKING:
    from sparcom_extractor.capture.counters import DeviceCounters  # its kernel needs Triton

MAX_MEMORY_FRACTION = 0.5  # of the machine's, for the counts of running requests


@dataclass(slots=True)
class WorkerCapture:
    """Capture of a loaded model.

    Attributes:
        found: captured layers of the model. buffers: that they write to.
        fusion: how activation outputs are made, see `install_all`.
        queue: from the buffers to the sessions. counters: on the device; None: sessions count on the host.
        steps, overhead_seconds: see `WorkerStatistics`; the worker adds to them.
    """

    config: VllmConfig
    found: Findings
    buffers: StepBuffers
    fusion: str
    queue: TransferQueue
    counters: DeviceCounters | None = None
    steps: int = 0
    overhead_seconds: float = 0.0
    step_capture: StepCapture = field(init=False)

    def __post_init__(self) -> None:
        self.step_capture = StepCapture(self.buffers, self.queue, self.counters)

    def describe(self, mode: dict[str, str]) -> WorkerDescription:
        """Describe what is captured; mode: facts about the engine."""
        memory = {"step_buffer_bytes": self.buffers.nbytes} | self.queue.memory()
        return replace(describe_found(self.found), fusion=self.fusion, mode=mode, memory=memory)

    def statistics(self) -> WorkerStatistics:
        """Return totals since the start."""
        queue = self.queue
        return WorkerStatistics(self.steps, self.overhead_seconds, queue.backpressure_seconds, queue.sent_bytes)

    def refuse_trial_step(self) -> str | None:
        """Return why a trial step of one token, after `buffers.clear`, shows that the model cannot be captured."""
        names = [str(name) for name in self.buffers.widths.columns()]
        try:
            check_write_counters(self.buffers.write_counters.cpu().numpy(), 1, names, padded=True)
        except RuntimeError as error:
            return f"a trial step of one token failed: {self.buffers.problem or error}. Use another model"
        return None

    def open_session(self, name: str, path: Path, run: str | None) -> str | None:
        """Begin to write the archive at `path`; return an error or None.

        Args:
            run: run id that the archive must have; None: any.
        """
        try:
            parts, instructions = archive_parts(path, self._place(), run)
        except (OSError, ValueError, KeyError, SparcomError) as error:
            return f"the archive {path} cannot be opened for writing: {error}"
        requests = self.config.scheduler_config.max_num_seqs
        if any(part.target.dtype == "uint32" for part in parts):
            if refusal := self._refuse_counting(parts, requests):
                return refusal
            requests = 0  # a finished instruction writes one row
        self.step_capture.open(name, CaptureSession(parts, instructions, requests=requests))
        return None

    def _refuse_counting(self, parts: Sequence[ArrayPart], requests: int) -> str | None:
        if self.counters is None:
            return refuse_host_counts(parts, requests)
        try:
            self.counters.allocate()
        except torch.OutOfMemoryError as error:
            return (
                f"counting needs a counter for each neuron and running request on the device: {error}. Serve the "
                "model with a lower gpu_memory_utilization or max_num_seqs, or choose granularity 'token'"
            )
        return None

    def _place(self) -> Place:
        parallel = self.config.parallel_config
        rank = parallel.rank % parallel.tensor_parallel_size
        if parallel.pipeline_parallel_size == 1:
            return Place(rank)
        return Place(rank, *([item.layer_id for item in layers] for layers in (self.found.dense, self.found.moe)))


def refuse_host_counts(parts: Sequence[ArrayPart], requests: int) -> str | None:
    """Return why counts of that many running requests do not fit this machine's memory, or None.

    One request needs 8 MB for an MoE model with 2 million neurons.
    """
    needed = requests * sum(4 * math.prod(part.row) for part in parts)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed <= MAX_MEMORY_FRACTION * memory:
        return None
    return (
        f"counting holds a number for each neuron and running request: {needed / 2**30:,.1f} GiB for {requests} "
        f"requests, and this machine has {memory / 2**30:,.1f}. Serve the model with a lower max_num_seqs, or choose "
        "granularity 'token'"
    )
