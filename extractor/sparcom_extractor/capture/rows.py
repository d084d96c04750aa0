"""Whose rows a step computes: the one place that knows how the two model runners of vLLM lay out a batch.

    V1: `runner.input_batch` holds the order of the requests after `execute_model`, the scheduler's output the counts.
    V2: `runner.execute_model_state.input_batch` holds all of it until `sample_tokens` clears it.

Never the order of `num_scheduled_tokens`: it is not the order of the rows. The attributes that are read here are the
same in vLLM 0.24 to 0.33 (compared in the sources of 0.24.0, 0.32.0 and 0.33.0), with and without asynchronous
scheduling, whose counts of computed tokens are exact as long as no tokens are speculated. Nothing here waits for a
device: what the model was fed stays where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class BatchRows:
    """The rows of one step, request after request.

    request_ids: one a request, in row order. start: int64 (requests + 1,), row borders.
    first_position: int64 (requests,), position of each request's first row within its sequence.
    ids: int32 (rows,), positions: int64 (rows,): what the model was fed, where the runner keeps it; the next step
    overwrites it.
    """

    request_ids: Sequence[str]
    start: NDArray[np.int64]
    first_position: NDArray[np.int64]
    ids: torch.Tensor
    positions: torch.Tensor

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.positions) == self.count:
            raise RuntimeError(
                f"a step of {self.count} rows has as many token ids and positions; there are {len(self.ids)} and "
                f"{len(self.positions)}. The layout of vLLM's batch is not the one this release knows"
            )

    @property
    def count(self) -> int:
        """Rows of the step."""
        return int(self.start[-1])

    def expected_positions(self) -> NDArray[np.int64]:
        """The positions that the layout of the batch implies, int64 (rows,)."""
        return np.arange(self.count) + np.repeat(self.first_position - self.start[:-1], np.diff(self.start))


def check_positions(expected: NDArray[np.int64], fed: NDArray[np.int64]) -> None:
    """Hold that the positions fed to the model are those that the layout of the batch implies.

    Raises:
        RuntimeError: they are not; rows would go to the wrong places.
    """
    if not np.array_equal(expected, fed):
        row = int(np.flatnonzero(expected != fed)[0])
        raise RuntimeError(
            f"row {row} of a step must be position {int(expected[row])} of its request; the model was fed position "
            f"{int(fed[row])}. The layout of vLLM's batch is not the one this release knows"
        )


def batch_rows(runner: Any, scheduler_output: Any, *, v2: bool) -> BatchRows:
    """The rows of the step that `runner`, of version 1 or 2, has just executed."""
    if v2:
        return _rows_v2(runner.execute_model_state.input_batch)
    return _rows_v1(runner, scheduler_output)


def _rows_v1(runner: Any, scheduler_output: Any) -> BatchRows:
    batch = runner.input_batch
    request_ids = list(batch.req_ids)
    counts = np.array([scheduler_output.num_scheduled_tokens[request] for request in request_ids], dtype=np.int64)
    start = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])
    rows = int(start[-1])
    return BatchRows(
        request_ids=request_ids,
        start=start,
        first_position=np.array(batch.num_computed_tokens_cpu[: len(request_ids)], dtype=np.int64),
        ids=runner.input_ids.gpu[:rows],
        positions=runner.positions[:rows],
    )


def _rows_v2(batch: Any) -> BatchRows:
    start = np.array(batch.query_start_loc_np[: len(batch.req_ids) + 1], dtype=np.int64)
    rows = int(start[-1])
    return BatchRows(
        request_ids=batch.req_ids,
        start=start,
        first_position=np.array(batch.num_computed_tokens_np[: len(batch.req_ids)], dtype=np.int64),
        ids=batch.input_ids[:rows],
        positions=batch.positions[:rows],
    )


def refuse_engine(config: Any) -> str | None:
    """Why the rows of an engine of this configuration (vLLM's) could not be told, or None."""
    parallel = config.parallel_config
    if parallel.data_parallel_size > 1 or parallel.enable_expert_parallel:
        return (
            "capture needs every process to see all tokens of a step; this engine runs data or expert parallelism. "
            "Use tensor parallelism alone, and an engine for each replica"
        )
    if getattr(parallel, "use_ubatching", False) or config.speculative_config is not None:
        return (
            "capture needs one forward pass a step and no tokens that may be taken back; this engine runs "
            "micro-batches or speculative decoding. Start it without"
        )
    if getattr(config.cache_config, "kv_sharing_fast_prefill", False):
        return (
            "capture needs every token in every layer; kv_sharing_fast_prefill leaves tokens out of the layers that "
            "share their keys. Start the engine without it"
        )
    return None
